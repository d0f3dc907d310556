// Package pf runs functions written for Pulsar on Geminga. It has the interface of Apache Pulsar's Go
// functions, so that code which imports it builds unchanged, and speaks with Geminga's worker. Consuming,
// retries, dead letters, acknowledging and producing are the worker's.
package pf

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/apache/pulsar/pulsar-function-go/internal/host"
)

// Start runs a function until the worker ends it. It is the last call of main.
//
// The legal forms, where input and output are []byte, string, or anything that encoding/json knows:
//
//	func()
//	func() error
//	func() (output, error)
//	func(input) error
//	func(input) (output, error)
//	func(context.Context) error
//	func(context.Context) (output, error)
//	func(context.Context, input) error
//	func(context.Context, input) (output, error)
//
// With windowConfig the input is a slice of these: the messages of a window.
func Start(funcName interface{}) {
	wire, err := host.Open()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fc, wrong := greet(wire)
	var call function
	if wrong == nil && fc.facts["windows"] == "1" {
		call, wrong = newWindowFunction(funcName)
	} else if wrong == nil {
		call, wrong = newFunction(funcName)
	}
	if wrong != nil {
		_ = wire.Send('F', nil, []byte(wrong.Error()))
		os.Exit(1)
	}
	ready := host.AppendPair(nil, "protocol", host.Protocol)
	ready = host.AppendPair(ready, "language", runtime.Version())
	if err := wire.Send('R', ready, nil); err != nil {
		os.Exit(1)
	}
	if err := serve(wire, fc, call); err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "the worker is gone:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// greet reads who the function is.
func greet(wire *host.Wire) (*FunctionContext, error) {
	frame, err := wire.Next()
	if err != nil {
		return nil, err
	}
	fc := NewFuncContext()
	fc.wire = wire
	for _, pair := range host.ParseBlock(frame.Body) {
		if pair.Name == "input" {
			fc.inputs = append(fc.inputs, pair.Value)
		} else if name, found := strings.CutPrefix(pair.Name, "secret."); found {
			fc.secrets[name] = pair.Value
		} else {
			fc.facts[pair.Name] = pair.Value
		}
	}
	if frame.Kind != 'H' || fc.facts["protocol"] != host.Protocol {
		return nil, fmt.Errorf("the worker speaks host protocol %q, this program %s", fc.facts["protocol"], host.Protocol)
	}
	return fc, nil
}

func serve(wire *host.Wire, fc *FunctionContext, call function) error {
	ctx := NewContext(context.Background(), fc)
	done := host.Done
	if fc.facts["manualAck"] == "1" {
		done = host.Hold
	}
	for {
		frame, err := wire.Next()
		if err != nil {
			return err
		}
		switch frame.Kind {
		case 'P':
			err = wire.Send('G', nil, nil)
		case 'D':
			return nil
		case 'B':
			err = batch(wire, fc, ctx, call, done, frame.Body)
		}
		if err != nil {
			return err
		}
	}
}

func batch(wire *host.Wire, fc *FunctionContext, ctx context.Context, call function, done byte, body []byte) error {
	if len(body) < 12 {
		return errors.New("a batch that is too short")
	}
	first, count := binary.LittleEndian.Uint64(body), int(binary.LittleEndian.Uint32(body[8:]))
	at := 12 + 8*count
	if len(body) < at {
		return errors.New("a batch that is too short")
	}
	wire.Begin()
	records := make([]record, count)
	for index := 0; index < count; index++ {
		sizes := body[12+8*index:]
		middle := at + int(binary.LittleEndian.Uint32(sizes))
		end := middle + int(binary.LittleEndian.Uint32(sizes[4:]))
		if end > len(body) {
			return errors.New("a batch that is too short")
		}
		// Without spare capacity: a function that appends to its input must not write into the next.
		records[index].block, records[index].payload = body[at:middle:middle], body[middle:end:end]
		at = end
		if err := one(wire, fc, ctx, call, done, first+uint64(index), &records[index]); err != nil {
			return err
		}
	}
	return wire.End()
}

func one(wire *host.Wire, fc *FunctionContext, ctx context.Context, call function, done byte, number uint64, in *record) error {
	fc.begin(in)
	output, has, err := guarded(ctx, call, in.payload)
	outputs := fc.end()
	if err != nil {
		kind, reason := verdictOf(err), err.Error()
		if kind == host.Drop {
			reason = ""
		}
		return wire.Outcome(number, kind, reason, nil)
	}
	if has {
		if outputs == nil {
			return wire.Outcome(number, done, "", []host.Output{{Payload: output}})
		}
		outputs = append([]host.Output{{Payload: output}}, outputs...)
	}
	return wire.Outcome(number, done, "", outputs)
}

// guarded calls the function; a panic is a failed message, not the end of the process.
func guarded(ctx context.Context, call function, payload []byte) (output []byte, has bool, err error) {
	defer func() {
		if what := recover(); what != nil {
			fmt.Fprintf(os.Stderr, "panic: %v\n%s", what, debug.Stack())
			output, has, err = nil, false, fmt.Errorf("panic: %v", what)
		}
	}()
	return call(ctx, payload)
}

// GetUserConfMap is the user configuration; it is known before Start.
func GetUserConfMap() map[string]interface{} {
	values := map[string]interface{}{}
	if text := os.Getenv("GMG_USERCONFIG"); text != "" {
		_ = json.Unmarshal([]byte(text), &values)
	}
	return values
}

// GetUserConfValue is a value of the user configuration; it is known before Start.
func GetUserConfValue(key string) interface{} { return GetUserConfMap()[key] }
