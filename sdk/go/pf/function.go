package pf

import (
	"context"
	"encoding/json"
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

func reflected(given interface{}) (function, error) {
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
			argument, err := decode(payload, input)
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
