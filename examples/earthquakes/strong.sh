# Lets strong earthquakes through, as short alerts. Needs nothing but bash: no jq, no subprocess.
#
# `process` is called for each event; $MSG is the event, `emit` sends one on.

# Sets REPLY to a decimal number times 1,000, as bash can compare it: -0.8 becomes -800.
thousandths() {
  local sign=${1%%[0-9]*} whole=${1#-} part=000
  [[ $whole != *.* ]] || { part=${whole#*.}000 whole=${whole%%.*}; }
  REPLY=$((${sign}1 * (10#$whole * 1000 + 10#${part:0:3})))
}

number='(-?[0-9]+(\.[0-9]+)?)'
text='"(([^"\\]|\\.)*)"'

process() {
  if [[ ! $MSG =~ \"mag\":$number ]]; then
    # A magnitude that is null is no error, just not strong. Anything else is not an earthquake.
    [[ $MSG == *'"mag":null'* ]] || { log ERROR "no magnitude in ${MSG:0:80}"; return 65; }
    return 0
  fi
  local magnitude=${BASH_REMATCH[1]} place='' id=''
  thousandths "$magnitude"
  local is=$REPLY
  conf minimum 4.5
  thousandths "$REPLY"
  ((is >= REPLY)) || return 0

  # Text stays as it stands in the event, so it needs no unescaping and no escaping.
  [[ ! $MSG =~ \"place\":$text ]] || place=${BASH_REMATCH[1]}
  [[ ! $MSG =~ \"id\":$text ]] || id=${BASH_REMATCH[1]}
  emit -k "$id" "{\"id\":\"$id\",\"magnitude\":$magnitude,\"place\":\"$place\"}"
}
