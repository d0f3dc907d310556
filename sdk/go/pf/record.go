package pf

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar/pulsar-function-go/internal/host"
)

// record is the message in hand. Its headers are read when somebody asks for them.
type record struct {
	// For methods of later versions of the client.
	pulsar.Message
	block   []byte
	payload []byte
	once    sync.Once
	headers map[string]string
}

func (r *record) header(name string) string {
	r.once.Do(func() {
		r.headers = map[string]string{}
		for _, pair := range host.ParseBlock(r.block) {
			r.headers[pair.Name] = pair.Value
		}
	})
	return r.headers[name]
}

func (r *record) time(name string) time.Time {
	ms, err := strconv.ParseInt(r.header(name), 10, 64)
	if err != nil || ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func (r *record) Topic() string          { return r.header("topic") }
func (r *record) ProducerName() string   { return r.header("producer") }
func (r *record) Payload() []byte        { return r.payload }
func (r *record) PublishTime() time.Time { return r.time("publishTime") }
func (r *record) EventTime() time.Time   { return r.time("eventTime") }
func (r *record) OrderingKey() string    { return r.header("orderingKey") }
func (r *record) ID() pulsar.MessageID   { return newMessageID(r.header("id"), r.header("partition")) }

func (r *record) Key() string {
	if encoded := r.header("key64"); encoded != "" {
		if key, err := base64.StdEncoding.DecodeString(encoded); err == nil {
			return string(key)
		}
	}
	return r.header("key")
}

func (r *record) Properties() map[string]string {
	r.header("")
	properties := map[string]string{}
	for name, value := range r.headers {
		if own, found := strings.CutPrefix(name, "prop."); found {
			properties[own] = value
		}
	}
	return properties
}

func (r *record) RedeliveryCount() uint32 {
	count, _ := strconv.ParseUint(r.header("redelivery"), 10, 32)
	return uint32(count)
}

func (r *record) IsReplicated() bool                              { return false }
func (r *record) GetReplicatedFrom() string                       { return "" }
func (r *record) SchemaVersion() []byte                           { return nil }
func (r *record) GetEncryptionContext() *pulsar.EncryptionContext { return nil }
func (r *record) Index() *uint64                                  { return nil }
func (r *record) BrokerPublishTime() *time.Time                   { return nil }
func (r *record) GetSchemaValue(v interface{}) error              { return json.Unmarshal(r.payload, v) }

// messageID is an id as the worker writes it: ledger:entry:partition[:batch index].
type messageID struct {
	pulsar.MessageID
	text string
}

func newMessageID(text, partition string) pulsar.MessageID {
	parts := strings.Split(text, ":")
	at := func(index int, otherwise int64) int64 {
		if index < len(parts) {
			if number, err := strconv.ParseInt(parts[index], 10, 64); err == nil {
				return number
			}
		}
		return otherwise
	}
	number, err := strconv.ParseInt(partition, 10, 32)
	if err != nil {
		number = at(2, -1)
	}
	id := pulsar.NewMessageID(at(0, -1), at(1, -1), int32(at(3, -1)), int32(number))
	return messageID{id, text}
}

func (m messageID) String() string { return m.text }
