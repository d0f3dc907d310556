// A function as its authors write it: what comes in goes out with a suffix of the user's configuration.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func exclaim(ctx context.Context, in []byte) ([]byte, error) {
	here, word := pf.FromContext(ctx), string(in)
	command, argument, _ := strings.Cut(word, " ")
	switch command {
	case "pid":
		return fmt.Append(nil, os.Getpid()), nil
	case "crash-once":
		if isFirst(argument) {
			fmt.Fprintln(os.Stderr, "about to crash")
			return nil, errors.New("crashed as it was told")
		}
		return []byte("survived"), nil
	case "grow-once":
		if isFirst(argument) {
			var all [][]byte
			for range 64 {
				all = append(all, bytes.Repeat([]byte{1}, 32<<20))
			}
			return fmt.Append(nil, "grew by ", len(all)), nil
		}
		return []byte("survived"), nil
	case "flood":
		line := []byte(strings.Repeat("flood ", 1000) + "\n")
		for range 5000 {
			os.Stderr.Write(line)
		}
		return []byte("flooded"), nil
	case "read":
		if _, err := os.ReadFile(argument); err != nil {
			return []byte(err.Error()), nil
		}
		return []byte("it is read"), nil
	}
	here.Log("saw " + word)
	return fmt.Append(nil, word, here.GetUserConfValue("suffix")), nil
}

// isFirst tells whether nobody has asked for this file yet.
func isFirst(marker string) bool {
	file, err := os.OpenFile(marker, os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		file.Close()
	}
	return err == nil
}

func main() { pf.Start(exclaim) }
