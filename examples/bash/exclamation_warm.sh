# The same as exclamation.sh for the warm shell: `process` is called for each message, without a
# new process.
process() {
  emit "$MSG!"
}
