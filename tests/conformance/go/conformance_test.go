package conformance

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
)

func producer(t *testing.T, client pulsar.Client, options pulsar.ProducerOptions) pulsar.Producer {
	t.Helper()
	made, err := client.CreateProducer(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(made.Close)
	return made
}

func subscribe(t *testing.T, client pulsar.Client, options pulsar.ConsumerOptions) pulsar.Consumer {
	t.Helper()
	if options.SubscriptionName == "" {
		options.SubscriptionName = "s"
	}
	made, err := client.Subscribe(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(made.Close)
	return made
}

// sendNumbers sends 0..count as text and returns when each is acknowledged; keys go round.
func sendNumbers(t *testing.T, to pulsar.Producer, first, count, keys int) {
	t.Helper()
	var mutex sync.Mutex
	var problems []error
	for number := first; number < first+count; number++ {
		message := &pulsar.ProducerMessage{Payload: []byte(strconv.Itoa(number))}
		if keys > 0 {
			message.Key = fmt.Sprintf("key-%d", number%keys)
		}
		to.SendAsync(context.Background(), message, func(_ pulsar.MessageID, _ *pulsar.ProducerMessage, err error) {
			if err != nil {
				mutex.Lock()
				problems = append(problems, err)
				mutex.Unlock()
			}
		})
	}
	if err := to.Flush(); err != nil {
		t.Fatal(err)
	}
	mutex.Lock()
	defer mutex.Unlock()
	if len(problems) > 0 {
		t.Fatalf("%d sends failed: %v", len(problems), problems[0])
	}
}

func next(t *testing.T, consumer pulsar.Consumer) pulsar.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	message, err := consumer.Receive(ctx)
	if err != nil {
		t.Fatalf("nothing came within %s: %v", patience, err)
	}
	return message
}

func number(t *testing.T, message pulsar.Message) int {
	t.Helper()
	value, err := strconv.Atoi(string(message.Payload()))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestProduceAndConsume(t *testing.T) {
	client, topic := shared.client(t), topicOf(t)
	consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic, AckWithResponse: true})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true})
	for index := range 50 {
		_, err := to.Send(context.Background(), &pulsar.ProducerMessage{
			Payload: []byte(strconv.Itoa(index)), Key: "k", OrderingKey: "o",
			Properties: map[string]string{"index": strconv.Itoa(index)}, EventTime: time.UnixMilli(1_700_000_000_000),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for index := range 50 {
		message := next(t, consumer)
		if number(t, message) != index || message.Key() != "k" || message.OrderingKey() != "o" ||
			message.Properties()["index"] != strconv.Itoa(index) || message.EventTime().UnixMilli() != 1_700_000_000_000 {
			t.Fatalf("message %d: %q %q %q %v %v", index, message.Payload(), message.Key(), message.OrderingKey(),
				message.Properties(), message.EventTime())
		}
		if err := consumer.Ack(message); err != nil { // answered by the broker: AckWithResponse
			t.Fatal(err)
		}
	}
	if left := shared.backlog(t, topic, "s"); left != 0 {
		t.Fatalf("%d messages left after every acknowledgement was confirmed", left)
	}
}

func TestCompressedBatches(t *testing.T) {
	for name, compression := range map[string]pulsar.CompressionType{
		"none": pulsar.NoCompression, "lz4": pulsar.LZ4, "zlib": pulsar.ZLib, "zstd": pulsar.ZSTD, "snappy": pulsar.SNAPPY,
	} {
		t.Run(name, func(t *testing.T) {
			client, topic := shared.client(t), topicOf(t)
			consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic})
			to := producer(t, client, pulsar.ProducerOptions{Topic: topic, CompressionType: compression})
			sendNumbers(t, to, 0, 500, 0)
			for wanted := range 500 {
				if got := number(t, next(t, consumer)); got != wanted {
					t.Fatalf("%d came, %d was due", got, wanted)
				}
			}
		})
	}
}

func TestExclusiveIsRefusedTwice(t *testing.T) {
	client, topic := shared.client(t), topicOf(t)
	subscribe(t, client, pulsar.ConsumerOptions{Topic: topic})
	if second, err := client.Subscribe(pulsar.ConsumerOptions{Topic: topic, SubscriptionName: "s"}); err == nil {
		second.Close()
		t.Fatal("a second exclusive consumer was let in")
	}
}

// Per key, order is kept and one consumer has it, while several consumers share the work.
func TestKeySharedKeepsOrderPerKey(t *testing.T) {
	const keys, messages, consumers = 50, 5000, 4
	client, topic := shared.client(t), topicOf(t)
	made := make([]pulsar.Consumer, consumers)
	for index := range made {
		made[index] = subscribe(t, client, pulsar.ConsumerOptions{
			Topic: topic, Type: pulsar.KeyShared, Name: fmt.Sprintf("c%d", index), AckWithResponse: true})
	}
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic, BatcherBuilderType: pulsar.KeyBasedBatchBuilder,
		BatchingMaxMessages: 100, BatchingMaxPublishDelay: time.Millisecond})
	type receipt struct {
		consumer, number int
	}
	seen := make(map[string][]receipt)
	var mutex sync.Mutex
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	total := 0
	var working sync.WaitGroup
	for index, consumer := range made {
		working.Go(func() {
			for {
				message, err := consumer.Receive(ctx)
				if err != nil {
					return
				}
				value, _ := strconv.Atoi(string(message.Payload()))
				mutex.Lock()
				seen[message.Key()] = append(seen[message.Key()], receipt{index, value})
				total++
				if total == messages {
					cancel()
				}
				mutex.Unlock()
				if err := consumer.Ack(message); err != nil {
					t.Error(err)
				}
			}
		})
	}
	sendNumbers(t, to, 0, messages, keys)
	working.Wait()
	if total != messages {
		t.Fatalf("%d of %d messages came", total, messages)
	}
	busy := make(map[int]bool)
	for key, receipts := range seen {
		if len(receipts) != messages/keys {
			t.Fatalf("%s: %d messages", key, len(receipts))
		}
		for index, got := range receipts {
			if got.consumer != receipts[0].consumer {
				t.Fatalf("%s went to two consumers", key)
			}
			if index > 0 && got.number != receipts[index-1].number+keys {
				t.Fatalf("%s: %d came after %d", key, got.number, receipts[index-1].number)
			}
		}
		busy[receipts[0].consumer] = true
	}
	if len(busy) != consumers {
		t.Fatalf("only consumers %v had work", busy)
	}
}

// A consumer leaves with messages it did not acknowledge: its keys go on in order elsewhere.
func TestKeySharedWhenAConsumerLeaves(t *testing.T) {
	const keys, messages = 20, 400
	client, topic := shared.client(t), topicOf(t)
	leaving := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.KeyShared, Name: "leaving", ReceiverQueueSize: 50})
	staying := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.KeyShared, Name: "staying", AckWithResponse: true})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true})
	sendNumbers(t, to, 0, messages, keys)
	for range 10 {
		next(t, leaving)
	}
	leaving.Close()
	last := make(map[string]int)
	for range messages {
		message := next(t, staying)
		value := number(t, message)
		if before, ok := last[message.Key()]; ok && value != before+keys {
			t.Fatalf("%s: %d came after %d", message.Key(), value, before)
		} else if !ok && value >= keys {
			t.Fatalf("%s began with %d", message.Key(), value)
		}
		last[message.Key()] = value
		if err := staying.Ack(message); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSharedDeliversOnce(t *testing.T) {
	const messages = 2000
	client, topic := shared.client(t), topicOf(t)
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic})
	channel := make(chan pulsar.ConsumerMessage, messages)
	for range 3 {
		subscribe(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Shared, MessageChannel: channel, ReceiverQueueSize: 100})
	}
	sendNumbers(t, to, 0, messages, 0)
	var got []int
	deadline := time.After(patience)
	for len(got) < messages {
		select {
		case message := <-channel:
			got = append(got, number(t, message.Message))
			if err := message.Consumer.Ack(message.Message); err != nil {
				t.Fatal(err)
			}
		case <-deadline:
			t.Fatalf("%d of %d messages came", len(got), messages)
		}
	}
	slices.Sort(got)
	for index, value := range got {
		if index != value {
			t.Fatalf("%d is missing or came twice", index)
		}
	}
	eventually(t, "everything is acknowledged", func() bool { return shared.backlog(t, topic, "s") == 0 })
}

func TestNegativeAckRetryAndDeadLetter(t *testing.T) {
	client, topic := shared.client(t), topicOf(t)
	letters := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic + "-dead", SubscriptionName: "watch"})
	consumer := subscribe(t, client, pulsar.ConsumerOptions{
		Topic: topic, Type: pulsar.Shared, NackRedeliveryDelay: 50 * time.Millisecond,
		DLQ: &pulsar.DLQPolicy{MaxDeliveries: 3, DeadLetterTopic: topic + "-dead"}})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic})
	sendNumbers(t, to, 0, 1, 0)
	for attempt := range 3 {
		message := next(t, consumer)
		if int(message.RedeliveryCount()) != attempt {
			t.Fatalf("attempt %d has redelivery count %d", attempt, message.RedeliveryCount())
		}
		consumer.Nack(message)
	}
	// the client writes the dead letter when the message comes once too often
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var beside sync.WaitGroup
	beside.Go(func() {
		if message, err := consumer.Receive(ctx); err == nil {
			t.Errorf("%q came more often than allowed", message.Payload())
		}
	})
	if got := number(t, next(t, letters)); got != 0 {
		t.Fatal(got)
	}
	cancel()
	beside.Wait()
	eventually(t, "the original is acknowledged", func() bool { return shared.backlog(t, topic, "s") == 0 })
}

func TestReconsumeLater(t *testing.T) {
	client, topic := shared.client(t), topicOf(t)
	consumer := subscribe(t, client, pulsar.ConsumerOptions{
		Topic: topic, Type: pulsar.Shared, RetryEnable: true,
		DLQ: &pulsar.DLQPolicy{MaxDeliveries: 5, RetryLetterTopic: topic + "-s-RETRY", DeadLetterTopic: topic + "-s-DLQ"}})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic})
	sendNumbers(t, to, 0, 1, 0)
	message := next(t, consumer)
	consumer.ReconsumeLater(message, time.Second)
	again := next(t, consumer)
	if number(t, again) != 0 || again.Properties()["RECONSUMETIMES"] != "1" {
		t.Fatalf("%q %v", again.Payload(), again.Properties())
	}
	if err := consumer.Ack(again); err != nil {
		t.Fatal(err)
	}
}

func TestChunkedMessage(t *testing.T) {
	client, topic := shared.client(t), topicOf(t)
	consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true, EnableChunking: true})
	payload := bytes.Repeat([]byte("0123456789abcdef"), 700_000)
	if _, err := to.Send(context.Background(), &pulsar.ProducerMessage{Payload: payload}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(next(t, consumer).Payload(), payload) {
		t.Fatal("the chunks were not put together")
	}
}

func TestReaderAndSeek(t *testing.T) {
	client, topic := shared.client(t), topicOf(t)
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic})
	sendNumbers(t, to, 0, 100, 0)
	reader, err := client.CreateReader(pulsar.ReaderOptions{Topic: topic, StartMessageID: pulsar.EarliestMessageID()})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var ids []pulsar.MessageID
	for reader.HasNext() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		message, err := reader.Next(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if number(t, message) != len(ids) {
			t.Fatalf("%q came, %d was due", message.Payload(), len(ids))
		}
		ids = append(ids, message.ID())
	}
	if len(ids) != 100 {
		t.Fatalf("%d messages", len(ids))
	}
	consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic, StartMessageIDInclusive: true})
	if err := consumer.Seek(ids[40]); err != nil {
		t.Fatal(err)
	}
	for wanted := 40; wanted < 100; wanted++ {
		if got := number(t, next(t, consumer)); got != wanted {
			t.Fatalf("%d came, %d was due", got, wanted)
		}
	}
}

func TestPartitionedTopic(t *testing.T) {
	client, topic := shared.client(t), topicOf(t)
	shared.rest(t, http.MethodPut, "/admin/v2/persistent/public/default/"+topic+"/partitions", 3)
	partitions, err := client.TopicPartitions(topic)
	if err != nil || len(partitions) != 3 {
		t.Fatal(partitions, err)
	}
	consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Failover})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic})
	sendNumbers(t, to, 0, 600, 30)
	last := make(map[string]int)
	for range 600 {
		message := next(t, consumer)
		value := number(t, message)
		if before, ok := last[message.Key()]; ok && value != before+30 {
			t.Fatalf("%s: %d came after %d", message.Key(), value, before)
		}
		last[message.Key()] = value
	}
}

func TestPatternFindsLaterTopics(t *testing.T) {
	client, topic := shared.client(t), topicOf(t)
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic + "-1-in"})
	consumer := subscribe(t, client, pulsar.ConsumerOptions{
		TopicsPattern: "persistent://public/default/" + topic + "-.*-in", AutoDiscoveryPeriod: 200 * time.Millisecond,
		SubscriptionInitialPosition: pulsar.SubscriptionPositionEarliest})
	sendNumbers(t, to, 0, 1, 0)
	if got := number(t, next(t, consumer)); got != 0 {
		t.Fatal(got)
	}
	sendNumbers(t, producer(t, client, pulsar.ProducerOptions{Topic: topic + "-other"}), 9, 1, 0)
	sendNumbers(t, producer(t, client, pulsar.ProducerOptions{Topic: topic + "-2-in"}), 1, 1, 0)
	if got := number(t, next(t, consumer)); got != 1 {
		t.Fatal(got)
	}
}

// The objects of before the crash go on after it; every acknowledged message comes, in order.
func TestReconnectAfterKill(t *testing.T) {
	own := ownServer(t)
	client, topic := own.client(t), topicOf(t)
	consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic, AckWithResponse: true})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic})
	const messages = 3000
	half := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		sendNumbers(t, to, 0, messages/2, 0)
		close(half)
		sendNumbers(t, to, messages/2, messages/2, 0)
	})
	<-half
	own.restartAfterKill(t)
	sending.Wait()
	for top := -1; top < messages-1; {
		message := next(t, consumer)
		value := number(t, message)
		if value > top+1 {
			t.Fatalf("%d came, %d was due", value, top+1)
		}
		top = max(top, value)
		_ = consumer.Ack(message) // it can fall into the crash: then the message comes again
	}
}
