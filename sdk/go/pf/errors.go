package pf

import (
	"errors"

	"github.com/apache/pulsar/pulsar-function-go/internal/host"
)

// ErrDrop is returned for a message that is to be acknowledged without an output.
var ErrDrop = errors.New("dropped")

type verdict struct {
	error
	kind byte
}

func (v verdict) Unwrap() error { return v.error }

// BadData marks an error of a message that can never be processed: it goes to the dead-letter topic
// at once.
func BadData(err error) error { return verdict{err, host.BadData} }

// Retry marks an error of a message that may be processed later: it is tried again after a pause.
func Retry(err error) error { return verdict{err, host.Temporary} }

func verdictOf(err error) byte {
	var marked verdict
	switch {
	case errors.Is(err, ErrDrop):
		return host.Drop
	case errors.As(err, &marked):
		return marked.kind
	}
	return host.Failed
}
