// Counts words. It is written for Apache Pulsar's Go functions, and runs on Geminga as it is.
package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	log "github.com/apache/pulsar/pulsar-function-go/logutil"
	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func count(ctx context.Context, in []byte) ([]byte, error) {
	fc, ok := pf.FromContext(ctx)
	if !ok {
		return nil, errors.New("no function context")
	}
	words := strings.Fields(string(in))
	if len(words) == 0 {
		log.Warn("a line without words")
		return nil, nil
	}
	for _, word := range words {
		if err := fc.IncrCounter(strings.ToLower(word), 1); err != nil {
			return nil, err
		}
	}
	first := strings.ToLower(words[0])
	seen, err := fc.GetCounter(first)
	return fmt.Appendf(nil, "%d words, %q seen %d times", len(words), first, seen), err
}

func main() {
	pf.Start(count)
}
