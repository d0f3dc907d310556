#!/bin/bash
# Turns the text of the message around.
message=$(cat /dev/stdin)
reversed=
for ((i = ${#message} - 1; i >= 0; i--)); do
  reversed+=${message:i:1}
done
echo "$reversed" > /dev/stdout
