#!/bin/bash
# Appends an exclamation mark to the message.
message=$(cat /dev/stdin)
echo "${message}!" > /dev/stdout
