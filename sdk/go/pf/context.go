package pf

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar/pulsar-function-go/internal/host"
)

// FunctionContext is what a function may know and ask for. FromContext gives it.
type FunctionContext struct {
	wire    *host.Wire
	facts   map[string]string
	inputs  []string
	secrets map[string]string

	userConfig     map[string]interface{}
	userConfigOnce sync.Once

	// The message in hand. A function that goes on after its return publishes outside of it.
	lock    sync.Mutex
	record  pulsar.Message
	active  bool
	outputs []host.Output
}

// NewFuncContext makes a context that knows nothing: for tests of functions.
func NewFuncContext() *FunctionContext {
	return &FunctionContext{facts: map[string]string{}, secrets: map[string]string{}}
}

type key struct{}

// NewContext puts a function's context into a context.
func NewContext(parent context.Context, fc *FunctionContext) context.Context {
	return context.WithValue(parent, key{}, fc)
}

// FromContext gives the function's context, when there is one.
func FromContext(ctx context.Context) (*FunctionContext, bool) {
	fc, ok := ctx.Value(key{}).(*FunctionContext)
	return fc, ok
}

// GetInstanceID is the instance's number, from 0 on.
func (c *FunctionContext) GetInstanceID() int { return c.number("instance") }

// GetNumInstances is how many instances there are.
func (c *FunctionContext) GetNumInstances() int { return c.number("instances") }

func (c *FunctionContext) number(name string) int {
	number, _ := strconv.Atoi(c.facts[name])
	return number
}

// GetInputTopics are the topics that are read.
func (c *FunctionContext) GetInputTopics() []string { return append([]string(nil), c.inputs...) }

// GetOutputTopic is the topic of what the function returns; empty when there is none.
func (c *FunctionContext) GetOutputTopic() string { return c.facts["output"] }

// GetFuncTenant is the function's tenant.
func (c *FunctionContext) GetFuncTenant() string { return c.facts["tenant"] }

// GetFuncNamespace is the function's namespace.
func (c *FunctionContext) GetFuncNamespace() string { return c.facts["namespace"] }

// GetFuncName is the function's name.
func (c *FunctionContext) GetFuncName() string { return c.facts["name"] }

// GetTenantAndNamespace is tenant/namespace.
func (c *FunctionContext) GetTenantAndNamespace() string {
	return c.GetFuncTenant() + "/" + c.GetFuncNamespace()
}

// GetTenantAndNamespaceAndName is tenant/namespace/name.
func (c *FunctionContext) GetTenantAndNamespaceAndName() string {
	return c.GetTenantAndNamespace() + "/" + c.GetFuncName()
}

// GetFuncID changes with each start.
func (c *FunctionContext) GetFuncID() string { return c.facts["functionId"] }

// GetFuncVersion changes with each update.
func (c *FunctionContext) GetFuncVersion() string { return c.facts["version"] }

// GetClusterName is the cluster's name.
func (c *FunctionContext) GetClusterName() string { return c.facts["cluster"] }

// GetPort is 0: the worker speaks with the function over a socket pair, and no port is open.
func (c *FunctionContext) GetPort() int { return 0 }

// GetMetricsPort is 0: the worker has the metrics.
func (c *FunctionContext) GetMetricsPort() int { return 0 }

// GetExpectedHealthCheckInterval is -1: the worker watches the process itself.
func (c *FunctionContext) GetExpectedHealthCheckInterval() int32 { return -1 }

// GetExpectedHealthCheckIntervalAsDuration is the same as a duration.
func (c *FunctionContext) GetExpectedHealthCheckIntervalAsDuration() time.Duration {
	return time.Duration(c.GetExpectedHealthCheckInterval())
}

// GetMaxIdleTime is how long a function may be without a health check.
func (c *FunctionContext) GetMaxIdleTime() int64 {
	return int64(c.GetExpectedHealthCheckIntervalAsDuration() * 3 * time.Second)
}

// GetUserConfMap is the user configuration.
func (c *FunctionContext) GetUserConfMap() map[string]interface{} {
	c.userConfigOnce.Do(func() {
		c.userConfig = map[string]interface{}{}
		if text := c.facts["userConfig"]; text != "" {
			// The worker wrote it as an object.
			_ = json.Unmarshal([]byte(text), &c.userConfig)
		}
	})
	return c.userConfig
}

// GetUserConfValue is a value of the user configuration, nil when there is none.
func (c *FunctionContext) GetUserConfValue(key string) interface{} { return c.GetUserConfMap()[key] }

// GetSecretValue is the value of a secret.
func (c *FunctionContext) GetSecretValue(name string) (*string, error) {
	value, found := c.secrets[name]
	if !found {
		return nil, fmt.Errorf("there is no secret %q", name)
	}
	return &value, nil
}

// GetCurrentRecord is the message in hand.
func (c *FunctionContext) GetCurrentRecord() pulsar.Message {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.record
}

// SetCurrentRecord sets the message in hand: for tests of functions.
func (c *FunctionContext) SetCurrentRecord(record pulsar.Message) {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.record = record
}

// Ack acknowledges a message, where the function does that itself (processingGuarantees: MANUAL).
func (c *FunctionContext) Ack(message pulsar.Message) error {
	if c.wire == nil {
		return errNotRunning
	}
	return c.wire.Request("ack", nil, host.Pair{Name: "id", Value: message.ID().String()})
}

// RecordMetric adds a value to a metric of the function.
func (c *FunctionContext) RecordMetric(metricName string, metricValue float64) {
	if c.wire == nil {
		return
	}
	block := host.AppendPair(nil, "name", metricName)
	block = host.AppendPair(block, "value", strconv.FormatFloat(metricValue, 'g', -1, 64))
	// When the worker is gone, the process ends.
	_ = c.wire.Send('M', block, nil)
}

var errNotRunning = errors.New("the function does not run")

// GetState is the value of a key, nil when there is none.
func (c *FunctionContext) GetState(key string) ([]byte, error) {
	if c.wire == nil {
		return nil, errNotRunning
	}
	value, found, err := c.wire.Ask("state.get", key)
	if !found {
		value = nil
	}
	return value, err
}

// PutState sets the value of a key. It counts when the message in hand succeeds.
func (c *FunctionContext) PutState(key string, value []byte) error {
	return c.change("state.put", value, host.Pair{Name: "key", Value: key})
}

// DeleteState removes a key.
func (c *FunctionContext) DeleteState(key string) error {
	return c.change("state.delete", nil, host.Pair{Name: "key", Value: key})
}

// IncrCounter adds to a counter.
func (c *FunctionContext) IncrCounter(key string, amount int64) error {
	by := strconv.FormatInt(amount, 10)
	return c.change("state.increment", nil, host.Pair{Name: "key", Value: key}, host.Pair{Name: "by", Value: by})
}

// GetCounter is the value of a counter, 0 when there is none.
func (c *FunctionContext) GetCounter(key string) (int64, error) {
	value, err := c.GetState(key)
	if err != nil || len(value) != 8 {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(value)), nil
}

func (c *FunctionContext) change(op string, value []byte, pairs ...host.Pair) error {
	if c.wire == nil {
		return errNotRunning
	}
	return c.wire.Request(op, value, pairs...)
}

func (c *FunctionContext) begin(record pulsar.Message) {
	c.lock.Lock()
	c.record, c.active = record, true
	c.lock.Unlock()
}

// end takes what was published; what is published from now on belongs to no message.
func (c *FunctionContext) end() []host.Output {
	c.lock.Lock()
	defer c.lock.Unlock()
	outputs := c.outputs
	c.outputs, c.active = nil, false
	return outputs
}

// publish adds an output to the message in hand, or sends it by itself when there is none.
func (c *FunctionContext) publish(pairs []host.Pair, payload []byte) error {
	if c.wire == nil {
		return errNotRunning
	}
	c.lock.Lock()
	if c.active {
		var block []byte
		for _, pair := range pairs {
			block = host.AppendPair(block, pair.Name, pair.Value)
		}
		payload = append([]byte(nil), payload...)
		c.outputs = append(c.outputs, host.Output{Block: block, Payload: payload})
		c.lock.Unlock()
		return nil
	}
	c.lock.Unlock()
	return c.wire.Request("publish", payload, pairs...)
}
