// Package pulsar has the types of Pulsar's Go client that the interface of functions names, and no client:
// a function in WebAssembly has no network.
package pulsar

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"
)

// ProducerMessage is a message to publish.
type ProducerMessage struct {
	Payload             []byte
	Value               interface{}
	Key                 string
	OrderingKey         string
	Properties          map[string]string
	EventTime           time.Time
	ReplicationClusters []string
	DisableReplication  bool
	SequenceID          *int64
	DeliverAfter        time.Duration
	DeliverAt           time.Time
	Schema              Schema
	Transaction         Transaction
}

// Message is a message that was received.
type Message interface {
	Topic() string
	ProducerName() string
	Properties() map[string]string
	Payload() []byte
	ID() MessageID
	PublishTime() time.Time
	EventTime() time.Time
	Key() string
	OrderingKey() string
	RedeliveryCount() uint32
	IsReplicated() bool
	GetReplicatedFrom() string
	GetSchemaValue(v interface{}) error
	SchemaVersion() []byte
	GetEncryptionContext() *EncryptionContext
	Index() *uint64
	BrokerPublishTime() *time.Time
}

// MessageID names a message.
type MessageID interface {
	Serialize() []byte
	LedgerID() int64
	EntryID() int64
	BatchIdx() int32
	PartitionIdx() int32
	BatchSize() int32
	String() string
}

// Producer publishes on one topic.
type Producer interface {
	Topic() string
	Name() string
	Send(context.Context, *ProducerMessage) (MessageID, error)
	SendAsync(context.Context, *ProducerMessage, func(MessageID, *ProducerMessage, error))
	LastSequenceID() int64
	Flush() error
	FlushWithCtx(ctx context.Context) error
	Close()
}

// Schema and Transaction are set per function here; these exist so that code which names them builds.
type Schema interface {
	Encode(v interface{}) ([]byte, error)
	Decode(data []byte, v interface{}) error
}

// Transaction is never given.
type Transaction interface {
	Commit(context.Context) error
	Abort(context.Context) error
}

// EncryptionContext is never given: the worker decrypts.
type EncryptionContext struct{}

type messageID struct {
	ledger, entry    int64
	batch, partition int32
}

// NewMessageID makes an id of its parts.
func NewMessageID(ledgerID int64, entryID int64, batchIdx int32, partitionIdx int32) MessageID {
	return messageID{ledgerID, entryID, batchIdx, partitionIdx}
}

// EarliestMessageID stands before every message.
func EarliestMessageID() MessageID { return messageID{-1, -1, -1, -1} }

// LatestMessageID stands after every message.
func LatestMessageID() MessageID {
	const most = 1<<63 - 1
	return messageID{most, most, -1, -1}
}

func (m messageID) LedgerID() int64     { return m.ledger }
func (m messageID) EntryID() int64      { return m.entry }
func (m messageID) BatchIdx() int32     { return m.batch }
func (m messageID) PartitionIdx() int32 { return m.partition }
func (m messageID) BatchSize() int32    { return 0 }
func (m messageID) String() string {
	return fmt.Sprintf("%d:%d:%d", m.ledger, m.entry, m.partition)
}

// Serialize writes the id as Pulsar's MessageIdData.
func (m messageID) Serialize() []byte {
	var out []byte
	field := func(number byte, value uint64) {
		out = binary.AppendUvarint(append(out, number<<3), value)
	}
	field(1, uint64(m.ledger))
	field(2, uint64(m.entry))
	if m.partition >= 0 {
		field(3, uint64(m.partition))
	}
	if m.batch >= 0 {
		field(4, uint64(m.batch))
	}
	return out
}
