# Geminga's host for Bash: one warm shell that is sent message after message.
#
# A script that defines `process` is loaded once and `process` is called for each message, without
# a fork. Any other script is run in a subshell for each message, its standard input the payload.
# What is printed on standard output is the output; standard error is the log.
#
# Inside a script:
#   $MSG                              the payload ($MSG_ENCODING is `base64` where it holds NUL bytes)
#   msg_key, msg_id, msg_topic        set REPLY; in $( ) they print
#   msg_prop NAME, msg_header NAME    the same
#   conf NAME [DEFAULT], secret NAME  the same
#   emit [-t topic] [-k key] [-p name=value]... [-e event-time] [-d delay-ms] [--] [text]
#   ack [id], nack [reason], dlq [reason], drop
#   log LEVEL text...                 metric NAME VALUE
#   state get KEY | put KEY VALUE | del KEY | incr KEY [N]
# Names that begin with _gmg_ are ours, and so is $GMG_TMP/.geminga-later. The protocol: docs/host-protocol.md, the shell binding.

exec {_gmg_in}<&0 {_gmg_to}>&1 </dev/null
_gmg_mark=$GMG_HOST_TOKEN
unset GMG_HOST_TOKEN GMG_HOST_BINDING GMG_HOST_FD
_gmg_id='' _gmg_headers='' _gmg_depth=0 _gmg_manual=0 _gmg_bytes=0 _gmg_call=process
# _gmg_held: 1 with an output in _gmg_kept, 2 while no message is in hand.
_gmg_later=() _gmg_fields=() _gmg_held=2 _gmg_kept=''
_gmg_left=$GMG_TMP/.geminga-later
declare -A _gmg_conf=() _gmg_secret=()
MSG='' MSG_ENCODING='' REPLY=''

# _gmg_say HEAD FIELD...: one record. The head names the kind, a number, and the count of fields.
_gmg_say() { printf '%s\0' '' "$_gmg_mark $1" "${@:2}" >&"$_gmg_to"; }

# Reads one frame into _gmg_kind and _gmg_body, and with an argument splits a batch at 0x1F into
# _gmg_fields. Lengths count bytes, hence the C locale; a change of locale costs as much as a message.
_gmg_frame() {
  local LC_ALL=C IFS= -
  read -r -N 12 -u "$_gmg_in" _gmg_body || return 1
  _gmg_kind=${_gmg_body:0:1}
  local size=$((10#${_gmg_body:2:9}))
  _gmg_body=''
  ((size == 0)) || read -r -N "$size" -u "$_gmg_in" _gmg_body
  if [[ $# == 1 && $_gmg_kind == B ]]; then
    IFS=$'\x1f'
    set -f
    # shellcheck disable=SC2206
    _gmg_fields=($_gmg_body)
  fi
}

# The same for a batch that came while an answer was waited for.
_gmg_split() {
  local LC_ALL=C IFS=$'\x1f' -
  set -f
  # shellcheck disable=SC2206
  _gmg_fields=($1)
}

# A batch that came while an answer was waited for is kept in _gmg_later; but what a subshell keeps is
# gone with it, so that it leaves the batch in a file, which is taken before anything is read. Whatever
# is in the file came after what is in _gmg_later.
_gmg_keep() {
  if ((BASH_SUBSHELL == 0)); then
    [[ ! -s $_gmg_left ]] || _gmg_take
    _gmg_later+=("$_gmg_body")
  else
    local LC_ALL=C
    printf 'B %09d\n%s' "${#_gmg_body}" "$_gmg_body" >>"$_gmg_left" ||
      _gmg_fatal "\`$_gmg_left\` can not be written: messages that came during \`state get\` would be lost"
  fi
}

_gmg_take() {
  local _gmg_in _gmg_kind _gmg_body
  exec {_gmg_in}<"$_gmg_left" || exit 1
  while _gmg_frame; do _gmg_later+=("$_gmg_body"); done
  exec {_gmg_in}<&-
  : >|"$_gmg_left"
}

# Gives $REPLY to the caller: as it is, or printed when the caller is a command substitution.
_gmg_give() { ((BASH_SUBSHELL == _gmg_depth)) || printf '%s' "$REPLY"; }

_gmg_unescape() { [[ $REPLY != *\\* ]] || printf -v REPLY %b "$REPLY"; }

_gmg_escape() {
  REPLY=${1//\\/\\\\}
  REPLY=${REPLY//$'\n'/\\n}
  REPLY=${REPLY//$'\x1f'/\\037}
}

msg_header() {
  local lines=$'\n'$_gmg_headers
  REPLY=
  if [[ $lines == *$'\n'"$1:"* ]]; then
    REPLY=${lines#*$'\n'"$1:"}
    REPLY=${REPLY%%$'\n'*}
    _gmg_unescape
    _gmg_give
  else
    return 1
  fi
}
msg_key() { msg_header key || msg_header key64; }
msg_id() { msg_header id; }
msg_topic() { msg_header topic; }
msg_prop() {
  _gmg_escape "prop.$1"
  msg_header "${REPLY//:/\\072}"
}

conf() {
  if [[ -n ${_gmg_conf[x$1]+set} ]]; then
    REPLY=${_gmg_conf[x$1]}
  else
    REPLY=${2-}
    (($# > 1)) || return 1
  fi
  _gmg_give
}
secret() {
  REPLY=${_gmg_secret[x$1]-}
  [[ -n ${_gmg_secret[x$1]+set} ]] || return 1
  _gmg_give
}

emit() {
  # The common call: one text, no options. It is kept until its message ends, so that both are one
  # write; a subshell can keep nothing.
  case $#,$BASH_SUBSHELL,$_gmg_held,$1 in
    1,0,0,-*) ;;
    1,0,0,*)
      _gmg_held=1 _gmg_kept=$1
      return
      ;;
  esac
  local headers='' option OPTIND=1 OPTARG='' text
  while getopts t:k:p:e:d: option; do
    _gmg_escape "$OPTARG"
    case $option in
      t) headers+="topic:$REPLY"$'\n' ;;
      k) headers+="key:$REPLY"$'\n' ;;
      e) headers+="eventTime:$REPLY"$'\n' ;;
      d) headers+="delayMs:$REPLY"$'\n' ;;
      p)
        _gmg_escape "${OPTARG%%=*}"
        headers+="prop.${REPLY//:/\\072}:"
        _gmg_escape "${OPTARG#*=}"
        headers+=$REPLY$'\n'
        ;;
      *) return 2 ;;
    esac
  done
  shift $((OPTIND - 1))
  if (($# > 0)); then
    text=$*
  else
    IFS= read -r -d '' text || :
    text=${text%$'\n'}
  fi
  if ((_gmg_held == 2)); then
    _gmg_say 'P 0 2' "$headers" "$text"
    return
  fi
  if ((BASH_SUBSHELL == 0 && _gmg_held)); then
    _gmg_held=0
    _gmg_say 'E 0 2' '' "$_gmg_kept"
  fi
  _gmg_say 'E 0 2' "$headers" "$text"
}

ack() {
  if ((_gmg_manual)); then
    (($# > 0)) && REPLY=$1 || { local _gmg_depth=$BASH_SUBSHELL; msg_header id; }
    _gmg_say 'K 0 1' "$REPLY"
  else
    _gmg_say 'V 0 2' 0 ''
  fi
}
nack() { _gmg_say 'V 0 2' nack "${*:-not acknowledged}"; }
dlq() { _gmg_say 'V 0 2' dlq "${*:-refused by the function}"; }
drop() { _gmg_say 'V 0 2' drop ''; }
log() { _gmg_say 'L 0 2' "$1" "${*:2}"; }
metric() { _gmg_say 'M 0 2' "$1" "$2"; }

state() {
  case $1 in
    get)
      _gmg_say 'S 0 2' get "$2"
      local _gmg_kind _gmg_body
      while :; do
        _gmg_frame || exit 1
        case $_gmg_kind in
          A) break ;;
          B) _gmg_keep ;;
        esac
      done
      REPLY=${_gmg_body:1}
      case ${_gmg_body:0:1} in
        0) return 1 ;;
        b) log WARN "the value of state key $2 holds NUL bytes: given as base64" ;;
      esac
      _gmg_give
      ;;
    put) _gmg_say 'S 0 3' put "$2" "$3" ;;
    del) _gmg_say 'S 0 2' del "$2" ;;
    incr) _gmg_say 'S 0 3' incr "$2" "${3:-1}" ;;
    *)
      echo "state: get, put, del or incr, not '$1'" >&2
      return 2
      ;;
  esac
}

# The environment that a script of its own process would see (docs/guide/bash.md).
_gmg_environment() {
  local line name IFS=$'\n' -
  set -f
  for line in $_gmg_headers; do
    name=${line%%:*} REPLY=${line#*:}
    _gmg_unescape
    case $name in
      topic) export GMG_TOPIC=$REPLY ;;
      id) export GMG_MESSAGE_ID=$REPLY ;;
      key | key64) export GMG_KEY=$REPLY ;;
      eventTime) export GMG_EVENT_TIME=$REPLY ;;
      publishTime) export GMG_PUBLISH_TIME=$REPLY ;;
      sequence) export GMG_SEQUENCE=$REPLY ;;
      redelivery) export GMG_REDELIVERY=$REPLY ;;
      partition) export GMG_PARTITION=$REPLY ;;
      producer) export GMG_PRODUCER=$REPLY ;;
      prop.*)
        name=${name#prop.}
        export "GMG_PROP_${name//[!A-Za-z0-9]/_}=$REPLY"
        ;;
    esac
  done
}

# A script without `process`: a subshell a message, so that `exit`, `cd` and variables stay in it.
_gmg_subshell() {
  if ((_gmg_text && !_gmg_bytes)); then
    (
      _gmg_depth=$BASH_SUBSHELL
      _gmg_environment
      # shellcheck disable=SC1090
      source "$_gmg_code"
    ) <<<"$MSG"
  else
    printf %s "$MSG" | (
      _gmg_depth=$BASH_SUBSHELL
      _gmg_environment
      # shellcheck disable=SC1090
      source "$_gmg_code"
    )
  fi
}

_gmg_batch() {
  local _gmg_text _gmg_said
  while [[ $# != 0 ]]; do
    # The number keeps its flag: the worker knows it so, and cutting it off costs time.
    _gmg_id=$1 _gmg_headers=$2 MSG=${3-}
    shift 3 || set --
    case $_gmg_id in
      r*) _gmg_text=1 MSG_ENCODING= ;;
      e*) _gmg_text=1 MSG_ENCODING=; printf -v MSG %b "$MSG" ;;
      E*) _gmg_text=0 MSG_ENCODING=; printf -v MSG %b "$MSG" ;;
      b*) _gmg_text=0 MSG_ENCODING=base64 ;;
      *) _gmg_text=0 MSG_ENCODING= ;;
    esac
    # A plain call, so that a script's `set -e` keeps its meaning; the exit trap tells the rest.
    "$_gmg_call"
    _gmg_said=$?
    # The common end, here and not in a function, since a call costs as much as the rest of it.
    case $_gmg_said,$_gmg_manual,$_gmg_held in
      0,0,1)
        _gmg_held=0
        printf '%s\0' '' "$_gmg_mark E 0 2" '' "$_gmg_kept" '' "$_gmg_mark O $_gmg_id 2" 0 '' >&"$_gmg_to"
        _gmg_id=
        ;;
      *) _gmg_done "$_gmg_said" ;;
    esac
  done
}

_gmg_done() {
  local said=$1
  if ((_gmg_manual && said == 0)); then said=hold; fi
  if ((_gmg_held)); then
    _gmg_held=0
    printf '%s\0' '' "$_gmg_mark E 0 2" '' "$_gmg_kept" '' "$_gmg_mark O $_gmg_id 2" "$said" '' >&"$_gmg_to"
  else
    printf '%s\0' '' "$_gmg_mark O $_gmg_id 2" "$said" '' >&"$_gmg_to"
  fi
  _gmg_id=
}

# `exit` inside `process` ends this shell: the message gets its status, the worker starts another.
_gmg_exit() {
  local status=$?
  trap - EXIT
  [[ -n $_gmg_id ]] || _gmg_held=2
  eval "$_gmg_trap"
  if [[ -n $_gmg_id ]]; then
    _gmg_done "$status"
    _gmg_say 'X 0 0'
  fi
}

_gmg_hello() {
  local line name IFS=$'\n' -
  set -f
  for line in $_gmg_body; do
    name=${line%%:*} REPLY=${line#*:}
    _gmg_unescape
    case $name in
      code) _gmg_code=$REPLY ;;
      manualAck) _gmg_manual=$REPLY ;;
      content) [[ $REPLY != bytes ]] || _gmg_bytes=1 ;;
      conf.*) _gmg_conf[x${name#conf.}]=$REPLY ;;
      secret.*) _gmg_secret[x${name#secret.}]=$REPLY ;;
    esac
  done
}

_gmg_fatal() {
  _gmg_say 'F 0 1' "$1"
  exit 1
}

# What a shell before this one left is sent again.
[[ ! -s $_gmg_left ]] || : >|"$_gmg_left"
_gmg_frame || exit 1
_gmg_hello
[[ -e $_gmg_code ]] || _gmg_fatal "\`$_gmg_code\` does not exist"
[[ -r $_gmg_code && ! -d $_gmg_code ]] || _gmg_fatal "\`$_gmg_code\` can not be read"
_gmg_source=$(<"$_gmg_code")
_gmg_source=$'\n'$_gmg_source
if [[ $_gmg_source =~ $'\n'[[:blank:]]*(function[[:blank:]]+process([[:blank:]]|\(|\{)|process[[:blank:]]*\([[:blank:]]*\)) ]]; then
  _gmg_ok=0
  # shellcheck disable=SC1090
  source "$_gmg_code" && _gmg_ok=1
  declare -F process >/dev/null || _gmg_fatal "\`$_gmg_code\` did not define process: see its standard error"
else
  _gmg_call=_gmg_subshell
  "$BASH" -n "$_gmg_code" || _gmg_fatal "\`$_gmg_code\` has a syntax error: see its standard error"
fi
unset _gmg_source _gmg_ok
_gmg_trap=$(trap -p EXIT)
_gmg_trap=${_gmg_trap#trap -- }
_gmg_trap=${_gmg_trap% EXIT}
eval "_gmg_trap=$_gmg_trap"
trap _gmg_exit EXIT
_gmg_held=0
_gmg_say 'R 0 2' 1 "bash $BASH_VERSION"

while :; do
  [[ ${_gmg_later+set} || ! -s $_gmg_left ]] || _gmg_take
  if [[ ${_gmg_later+set} ]]; then
    _gmg_kind=B
    _gmg_split "${_gmg_later[0]}"
    _gmg_later=("${_gmg_later[@]:1}")
  elif ! _gmg_frame split; then
    break
  fi
  case $_gmg_kind in
    B) _gmg_batch "${_gmg_fields[@]}" ;;
    P) _gmg_say 'G 0 0' ;;
    D) break ;;
  esac
done
