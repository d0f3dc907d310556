package conformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"github.com/sirupsen/logrus"
)

func (s *server) transactional(t *testing.T) pulsar.Client {
	t.Helper()
	quiet := logrus.New()
	quiet.SetLevel(logrus.PanicLevel)
	client, err := pulsar.NewClient(pulsar.ClientOptions{
		URL:               s.ServiceURL,
		OperationTimeout:  patience,
		EnableTransaction: true,
		Logger:            log.NewLoggerWithLogrus(quiet),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func begin(t *testing.T, client pulsar.Client, timeout time.Duration) pulsar.Transaction {
	t.Helper()
	txn, err := client.NewTransaction(timeout)
	if err != nil {
		t.Fatal(err)
	}
	return txn
}

func sendIn(t *testing.T, txn pulsar.Transaction, to pulsar.Producer, text string) {
	t.Helper()
	_, err := to.Send(context.Background(), &pulsar.ProducerMessage{Payload: []byte(text), Transaction: txn})
	if err != nil {
		t.Fatal(err)
	}
}

func commit(t *testing.T, txn pulsar.Transaction) {
	t.Helper()
	if err := txn.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func abort(t *testing.T, txn pulsar.Transaction) {
	t.Helper()
	if err := txn.Abort(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// nothing fails the test when a message comes.
func nothing(t *testing.T, consumer pulsar.Consumer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if message, err := consumer.Receive(ctx); err == nil {
		t.Fatalf("%q came", message.Payload())
	}
}

func expect(t *testing.T, consumer pulsar.Consumer, texts ...string) []pulsar.Message {
	t.Helper()
	var messages []pulsar.Message
	for _, text := range texts {
		message := next(t, consumer)
		if string(message.Payload()) != text {
			t.Fatalf("%q came, %q was due", message.Payload(), text)
		}
		messages = append(messages, message)
	}
	return messages
}

func TestTransactionOverTopicsAndAcks(t *testing.T) {
	client, topic := shared.transactional(t), topicOf(t)
	input := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic + "-in", Type: pulsar.Shared})
	plain := producer(t, client, pulsar.ProducerOptions{Topic: topic + "-in"})
	var outputs []pulsar.Consumer
	var producers []pulsar.Producer
	for n := range 4 {
		name := fmt.Sprintf("%s-%d", topic, n)
		outputs = append(outputs, subscribe(t, client, pulsar.ConsumerOptions{Topic: name}))
		producers = append(producers, producer(t, client, pulsar.ProducerOptions{Topic: name, DisableBatching: n%2 == 0}))
	}
	for _, commits := range []bool{false, true} {
		if !commits {
			sendNumbers(t, plain, 0, 1, 0)
		}
		message := expect(t, input, "0")[0]
		txn := begin(t, client, time.Minute)
		for n, to := range producers {
			sendIn(t, txn, to, fmt.Sprintf("%v-%d", commits, n))
		}
		if err := input.AckWithTxn(message, txn); err != nil {
			t.Fatal(err)
		}
		for _, output := range outputs {
			nothing(t, output)
		}
		if got := shared.backlog(t, topic+"-in", "s"); got != 1 {
			t.Fatalf("a backlog of %d before the end", got)
		}
		if !commits {
			abort(t, txn)
			for _, output := range outputs {
				nothing(t, output)
			}
			continue // the message comes again
		}
		commit(t, txn)
		for n, output := range outputs {
			expect(t, output, fmt.Sprintf("true-%d", n))
		}
	}
	nothing(t, input)
	eventually(t, "the input is acked", func() bool { return shared.backlog(t, topic+"-in", "s") == 0 })
}

func TestOpenTransactionHoldsBackWhatFollows(t *testing.T) {
	client, topic := shared.transactional(t), topicOf(t)
	consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true})
	sendNumbers(t, to, 0, 1, 0)
	first, second := begin(t, client, time.Minute), begin(t, client, time.Minute)
	sendIn(t, first, to, "1")
	sendIn(t, second, to, "2")
	sendNumbers(t, to, 3, 1, 0)
	expect(t, consumer, "0")
	commit(t, second)
	nothing(t, consumer)
	abort(t, first)
	expect(t, consumer, "2", "3")
	nothing(t, consumer)
	// A reader's end is what it can read.
	reader, err := client.CreateReader(pulsar.ReaderOptions{Topic: topic, StartMessageID: pulsar.EarliestMessageID()})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var seen []string
	for reader.HasNext() {
		message, err := reader.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, string(message.Payload()))
	}
	if fmt.Sprint(seen) != "[0 2 3]" {
		t.Fatal(seen)
	}
}

func TestTransactionTimesOut(t *testing.T) {
	client, topic := shared.transactional(t), topicOf(t)
	consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Shared})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true})
	sendNumbers(t, to, 0, 1, 0)
	message := expect(t, consumer, "0")[0]
	txn := begin(t, client, 500*time.Millisecond)
	sendIn(t, txn, to, "1")
	if err := consumer.AckWithTxn(message, txn); err != nil {
		t.Fatal(err)
	}
	sendNumbers(t, to, 2, 1, 0)
	got := map[string]bool{}
	for range 2 {
		got[string(next(t, consumer).Payload())] = true
	}
	if !got["0"] || !got["2"] {
		t.Fatal(got)
	}
	if err := txn.Commit(context.Background()); err == nil {
		t.Fatal("it was committed after its time")
	}
}

func TestTransactionConflict(t *testing.T) {
	client, topic := shared.transactional(t), topicOf(t)
	consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic, Type: pulsar.Shared})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true})
	sendNumbers(t, to, 0, 2, 0)
	messages := expect(t, consumer, "0", "1")
	first, second := begin(t, client, time.Minute), begin(t, client, time.Minute)
	if err := consumer.AckWithTxn(messages[0], first); err != nil {
		t.Fatal(err)
	}
	if err := consumer.AckWithTxn(messages[0], second); err == nil {
		t.Fatal("two transactions ack one message")
	}
	commit(t, first)
	eventually(t, "one is acked", func() bool { return shared.backlog(t, topic, "s") == 1 })
	third := begin(t, client, time.Minute)
	if err := consumer.AckWithTxn(messages[0], third); err == nil {
		t.Fatal("what is acked was acked again")
	}
}

func TestManyTransactionsAtOnce(t *testing.T) {
	client, topic := shared.transactional(t), topicOf(t)
	const workers, each = 20, 10
	consumer := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic})
	to := producer(t, client, pulsar.ProducerOptions{Topic: topic, DisableBatching: true})
	var work sync.WaitGroup
	problems := make(chan error, workers*each)
	for worker := range workers {
		work.Go(func() {
			for n := range each {
				txn, err := client.NewTransaction(time.Minute)
				if err == nil {
					text := []byte(fmt.Sprintf("%d-%d", worker, n))
					_, err = to.Send(context.Background(), &pulsar.ProducerMessage{Payload: text, Transaction: txn})
				}
				if err == nil && n%3 == 2 {
					err = txn.Abort(context.Background())
				} else if err == nil {
					err = txn.Commit(context.Background())
				}
				if err != nil {
					problems <- err
				}
			}
		})
	}
	work.Wait()
	close(problems)
	for err := range problems {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range workers * 7 {
		text := string(next(t, consumer).Payload())
		if seen[text] {
			t.Fatalf("%s came twice", text)
		}
		seen[text] = true
	}
	nothing(t, consumer)
	for worker := range workers {
		for n := range each {
			if seen[fmt.Sprintf("%d-%d", worker, n)] == (n%3 == 2) {
				t.Fatalf("%d-%d came, or did not, against its end", worker, n)
			}
		}
	}
}

// Input to two outputs, each message in a transaction of its own, while the server is killed again and
// again: every input is on each output exactly once.
func TestTransactionsOverKills(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CONFORMANCE_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("CONFORMANCE_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	own := ownServer(t)
	client, topic := own.transactional(t), topicOf(t)
	const messages, kills, workers = 200, 4, 4
	sendNumbers(t, producer(t, client, pulsar.ProducerOptions{Topic: topic + "-in"}), 0, 0, 0)
	names := []string{topic + "-a", topic + "-b"}
	var producers []pulsar.Producer
	for _, name := range names {
		producers = append(producers, producer(t, client, pulsar.ProducerOptions{Topic: name, DisableBatching: true, SendTimeout: -1}))
	}
	input := subscribe(t, client, pulsar.ConsumerOptions{Topic: topic + "-in", Type: pulsar.Shared})
	sendNumbers(t, producer(t, client, pulsar.ProducerOptions{Topic: topic + "-in", DisableBatching: true}), 0, messages, 0)

	// Rises before each kill. What is sent again after a reconnect may be there twice, so a
	// transaction that was open at a kill is given up.
	var lives, done atomic.Int64
	ctx, stop := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for range workers {
		work.Go(func() {
			for ctx.Err() == nil {
				message, err := input.Receive(ctx)
				if err != nil {
					return
				}
				life := lives.Load()
				txn, err := client.NewTransaction(5 * time.Second)
				if err != nil {
					input.Nack(message)
					continue
				}
				for _, to := range producers {
					if err == nil {
						_, err = to.Send(ctx, &pulsar.ProducerMessage{Payload: message.Payload(), Transaction: txn})
					}
				}
				if err == nil {
					err = input.AckWithTxn(message, txn)
				}
				if err != nil || lives.Load() != life {
					_ = txn.Abort(ctx)
					input.Nack(message)
					continue
				}
				if txn.Commit(ctx) == nil {
					done.Add(1)
				}
			}
		})
	}
	for range kills {
		before := done.Load()
		wanted := before + 5 + random.Int64N(20)
		eventually(t, "transactions are committed", func() bool {
			// Not all that happens is confirmed to the client: the backlog says it too.
			return done.Load() >= wanted || own.backlog(t, topic+"-in", "s") < 10
		})
		time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond)
		lives.Add(1)
		own.restartAfterKill(t)
	}
	until := time.Now().Add(60 * time.Second)
	for own.backlog(t, topic+"-in", "s") > 0 && time.Now().Before(until) {
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	work.Wait()
	for _, name := range names {
		check := subscribe(t, client, pulsar.ConsumerOptions{
			Topic: name, SubscriptionName: "check", SubscriptionInitialPosition: pulsar.SubscriptionPositionEarliest,
		})
		seen := map[int]int{}
		for range messages {
			seen[number(t, next(t, check))]++
		}
		nothing(t, check)
		for n := range messages {
			if seen[n] != 1 {
				t.Fatalf("%s: %d came %d times", name, n, seen[n])
			}
		}
	}
}
