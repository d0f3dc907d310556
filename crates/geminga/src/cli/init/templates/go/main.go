// Puts a mark behind each message, and counts them. Written for Apache Pulsar's Go functions.
package main

import (
	"context"
	"errors"
	"fmt"

	log "github.com/apache/pulsar/pulsar-function-go/logutil"
	"github.com/apache/pulsar/pulsar-function-go/pf"
)

func exclaim(ctx context.Context, in []byte) ([]byte, error) {
	fc, ok := pf.FromContext(ctx)
	if !ok {
		return nil, errors.New("no function context")
	}
	if len(in) == 0 {
		return nil, errors.New("the message is empty")
	}
	if err := fc.IncrCounter("seen", 1); err != nil {
		return nil, err
	}
	log.Infof("got %d characters", len(in))
	mark := fc.GetUserConfValue("mark")
	if mark == nil {
		mark = "!"
	}
	return fmt.Appendf(nil, "%s%v", in, mark), nil
}

func main() { pf.Start(exclaim) }
