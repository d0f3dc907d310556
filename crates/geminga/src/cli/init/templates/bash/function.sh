# Puts a mark behind each message, and counts them. `process` is called for each message.
process() {
  if [[ -z $MSG ]]; then
    dlq "the message is empty"
    return
  fi
  state incr seen
  log INFO "got ${#MSG} characters"
  conf mark '!'
  emit "$MSG$REPLY"
}
