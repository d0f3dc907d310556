#!/bin/bash
# Counts the words of the message.
read -r -d '' -a words < /dev/stdin
echo "${#words[@]}" > /dev/stdout
