// Adds an exclamation mark. Built with GOOS=wasip1 GOARCH=wasm it runs inside the worker.
package main

import (
	"context"

	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func exclaim(ctx context.Context, in []byte) ([]byte, error) {
	return append(in, '!'), nil
}

func main() { pf.Start(exclaim) }
