package pf

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// function calls user code of any legal form.
type function func(ctx context.Context, input []byte) (output []byte, hasOutput bool, err error)

var (
	contextType = reflect.TypeOf((*context.Context)(nil)).Elem()
	errorType   = reflect.TypeOf((*error)(nil)).Elem()
	bytesType   = reflect.TypeOf([]byte(nil))
	stringType  = reflect.TypeOf("")
)

const legal = "a function is func() or takes (input), (context.Context) or (context.Context, input), " +
	"and returns nothing, error, or (output, error)"

// newFunction checks the form of a function. Input and output are []byte in Pulsar's own SDK; here
// they may be string, or anything that encoding/json knows, too.
func newFunction(given interface{}) (function, error) {
	switch call := given.(type) {
	case func():
		return func(context.Context, []byte) ([]byte, bool, error) { call(); return nil, false, nil }, nil
	case func() error:
		return func(context.Context, []byte) ([]byte, bool, error) { return nil, false, call() }, nil
	case func() ([]byte, error):
		return func(context.Context, []byte) ([]byte, bool, error) { return given2(call()) }, nil
	case func([]byte) error:
		return func(_ context.Context, in []byte) ([]byte, bool, error) { return nil, false, call(in) }, nil
	case func([]byte) ([]byte, error):
		return func(_ context.Context, in []byte) ([]byte, bool, error) { return given2(call(in)) }, nil
	case func(context.Context) error:
		return func(ctx context.Context, _ []byte) ([]byte, bool, error) { return nil, false, call(ctx) }, nil
	case func(context.Context) ([]byte, error):
		return func(ctx context.Context, _ []byte) ([]byte, bool, error) { return given2(call(ctx)) }, nil
	case func(context.Context, []byte) error:
		return func(ctx context.Context, in []byte) ([]byte, bool, error) { return nil, false, call(ctx, in) }, nil
	case func(context.Context, []byte) ([]byte, error):
		return func(ctx context.Context, in []byte) ([]byte, bool, error) { return given2(call(ctx, in)) }, nil
	}
	return reflected(given)
}

func given2(output []byte, err error) ([]byte, bool, error) {
	return output, output != nil, err
}

// newWindowFunction checks the form of a function of windows.
func newWindowFunction(given interface{}) (function, error) {
	return reflectedWith(given, func(kind reflect.Type) (func([]byte) (reflect.Value, error), error) {
		if kind.Kind() != reflect.Slice || kind == bytesType {
			return nil, fmt.Errorf("with windowConfig the input is a slice of messages, such as [][]byte")
		}
		return func(payload []byte) (reflect.Value, error) { return decodeWindow(payload, kind) }, nil
	})
}

func decodeWindow(payload []byte, kind reflect.Type) (reflect.Value, error) {
	short := errors.New("a window that is too short")
	if len(payload) < 4 {
		return reflect.Value{}, short
	}
	count := int(binary.LittleEndian.Uint32(payload))
	at := 4 + 8*count
	if len(payload) < at {
		return reflect.Value{}, short
	}
	window := reflect.MakeSlice(kind, 0, count)
	for index := 0; index < count; index++ {
		sizes := payload[4+8*index:]
		middle := at + int(binary.LittleEndian.Uint32(sizes))
		end := middle + int(binary.LittleEndian.Uint32(sizes[4:]))
		if end > len(payload) {
			return reflect.Value{}, short
		}
		one, err := decode(payload[middle:end:end], kind.Elem())
		if err != nil {
			return reflect.Value{}, err
		}
		window = reflect.Append(window, one)
		at = end
	}
	return window, nil
}

func reflected(given interface{}) (function, error) {
	return reflectedWith(given, func(kind reflect.Type) (func([]byte) (reflect.Value, error), error) {
		return func(payload []byte) (reflect.Value, error) { return decode(payload, kind) }, nil
	})
}

// reflectedWith makes a function whose input is read as reader says for its type.
func reflectedWith(
	given interface{}, reader func(reflect.Type) (func([]byte) (reflect.Value, error), error),
) (function, error) {
	value := reflect.ValueOf(given)
	if given == nil || value.Kind() != reflect.Func {
		return nil, fmt.Errorf("pf.Start was given %T, which is no function: %s", given, legal)
	}
	kind := value.Type()
	if value.IsNil() {
		return nil, fmt.Errorf("pf.Start was given a function that is nil")
	}
	wrong := func(format string, args ...interface{}) (function, error) {
		return nil, fmt.Errorf("%s is no legal function: %s; %s", kind, fmt.Sprintf(format, args...), legal)
	}
	if kind.IsVariadic() {
		return wrong("it is variadic")
	}
	takesContext := kind.NumIn() > 0 && kind.In(0) == contextType
	var input reflect.Type
	switch {
	case kind.NumIn() > 2:
		return wrong("it takes %d arguments, 2 at most are possible", kind.NumIn())
	case kind.NumIn() == 2 && !takesContext:
		return wrong("the first of two arguments is context.Context, not %s", kind.In(0))
	case kind.NumIn() == 2:
		input = kind.In(1)
	case kind.NumIn() == 1 && !takesContext:
		input = kind.In(0)
	}
	if input != nil && !transferable(input) {
		return wrong("an input can not be %s", input)
	}
	var read func([]byte) (reflect.Value, error)
	if input != nil {
		var err error
		if read, err = reader(input); err != nil {
			return wrong("%s", err)
		}
	}
	var output reflect.Type
	switch {
	case kind.NumOut() > 2:
		return wrong("it returns %d values, 2 at most are possible", kind.NumOut())
	case kind.NumOut() > 0 && kind.Out(kind.NumOut()-1) != errorType:
		return wrong("the last result is error, not %s", kind.Out(kind.NumOut()-1))
	case kind.NumOut() == 2:
		output = kind.Out(0)
	}
	if output != nil && !transferable(output) {
		return wrong("an output can not be %s", output)
	}
	return func(ctx context.Context, payload []byte) ([]byte, bool, error) {
		arguments := make([]reflect.Value, 0, 2)
		if takesContext {
			arguments = append(arguments, reflect.ValueOf(ctx))
		}
		if input != nil {
			argument, err := read(payload)
			if err != nil {
				return nil, false, BadData(fmt.Errorf("the input is no %s: %w", input, err))
			}
			arguments = append(arguments, argument)
		}
		results := value.Call(arguments)
		if len(results) > 0 {
			if err, failed := results[len(results)-1].Interface().(error); failed {
				return nil, false, err
			}
		}
		if output == nil {
			return nil, false, nil
		}
		return encode(results[0])
	}, nil
}

// transferable tells whether values of a type can be made of bytes, and bytes of them.
func transferable(kind reflect.Type) bool {
	switch kind.Kind() {
	case reflect.Chan, reflect.Func, reflect.UnsafePointer, reflect.Uintptr, reflect.Complex64, reflect.Complex128:
		return false
	case reflect.Interface:
		return kind.NumMethod() == 0
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		return kind.Elem() == kind || transferable(kind.Elem())
	}
	return true
}

func decode(payload []byte, kind reflect.Type) (reflect.Value, error) {
	switch {
	case kind == bytesType:
		return reflect.ValueOf(payload), nil
	case kind.Kind() == reflect.String:
		return reflect.ValueOf(string(payload)).Convert(kind), nil
	}
	value := reflect.New(kind)
	err := json.Unmarshal(payload, value.Interface())
	return value.Elem(), err
}

func encode(value reflect.Value) ([]byte, bool, error) {
	switch value.Kind() {
	case reflect.String:
		return []byte(value.String()), true, nil
	case reflect.Pointer, reflect.Interface, reflect.Map, reflect.Slice:
		if value.IsNil() {
			return nil, false, nil
		}
	}
	if value.Type() == bytesType {
		return value.Bytes(), true, nil
	}
	text, err := json.Marshal(value.Interface())
	return text, err == nil, err
}
