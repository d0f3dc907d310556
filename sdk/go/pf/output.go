package pf

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar/pulsar-function-go/internal/host"
)

// NewOutputMessage gives a producer for a topic. What is sent while a message is in hand becomes part
// of that message: it is published when the function succeeds, before the message is acknowledged.
func (c *FunctionContext) NewOutputMessage(topicName string) pulsar.Producer {
	return &outputs{context: c, topic: topicName}
}

// outputs is the producer of one topic. The interface is embedded so that methods of later versions
// of the client do not keep a function from building.
type outputs struct {
	pulsar.Producer
	context *FunctionContext
	topic   string
}

func (o *outputs) Topic() string                      { return o.topic }
func (o *outputs) Name() string                       { return o.context.GetTenantAndNamespaceAndName() }
func (o *outputs) LastSequenceID() int64              { return -1 }
func (o *outputs) Flush() error                       { return nil }
func (o *outputs) FlushWithCtx(context.Context) error { return nil }
func (o *outputs) Close()                             {}

// Send publishes a message. Its id is not known before the message in hand is done: it is
// pulsar.EarliestMessageID.
func (o *outputs) Send(_ context.Context, message *pulsar.ProducerMessage) (pulsar.MessageID, error) {
	pairs, payload, err := o.wanted(message)
	if err == nil {
		err = o.context.publish(pairs, payload)
	}
	if err != nil {
		return nil, err
	}
	return pulsar.EarliestMessageID(), nil
}

func (o *outputs) SendAsync(ctx context.Context, message *pulsar.ProducerMessage,
	done func(pulsar.MessageID, *pulsar.ProducerMessage, error)) {
	id, err := o.Send(ctx, message)
	if done != nil {
		done(id, message, err)
	}
}

func (o *outputs) wanted(message *pulsar.ProducerMessage) ([]host.Pair, []byte, error) {
	switch {
	case message == nil:
		return nil, nil, errors.New("no message")
	case message.Schema != nil:
		return nil, nil, errors.New("a schema is set per function, not per message")
	case message.Transaction != nil:
		return nil, nil, errors.New("a message of a function can not be in a transaction of its own")
	case len(message.ReplicationClusters) > 0 || message.DisableReplication:
		return nil, nil, errors.New("replication is not supported per message")
	}
	payload := message.Payload
	if message.Value != nil {
		text, err := json.Marshal(message.Value)
		if err != nil {
			return nil, nil, err
		}
		payload = text
	}
	pairs := []host.Pair{{Name: "topic", Value: o.topic}}
	add := func(name, value string) { pairs = append(pairs, host.Pair{Name: name, Value: value}) }
	if message.Key != "" {
		add("key", message.Key)
	}
	if message.OrderingKey != "" {
		add("orderingKey", message.OrderingKey)
	}
	if !message.EventTime.IsZero() {
		add("eventTime", strconv.FormatInt(message.EventTime.UnixMilli(), 10))
	}
	if message.SequenceID != nil {
		add("sequence", strconv.FormatInt(*message.SequenceID, 10))
	}
	delay := message.DeliverAfter
	if !message.DeliverAt.IsZero() {
		delay = time.Until(message.DeliverAt)
	}
	if delay > 0 {
		add("delayMs", strconv.FormatInt(delay.Milliseconds(), 10))
	}
	for name, value := range message.Properties {
		add("prop."+name, value)
	}
	return pairs, payload, nil
}
