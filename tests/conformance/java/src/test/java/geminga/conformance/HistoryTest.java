package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.api.BatcherBuilder;
import org.apache.pulsar.client.api.ClientBuilder;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.ProducerBuilder;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Reader;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.client.api.transaction.Transaction;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/**
 * Random concurrent histories: producers, consumers of every subscription type that acknowledge, refuse, leave and come
 * back, transactions, and {@code kill -9} in between. Afterwards nothing acknowledged may be missing, no key out of order,
 * and nothing twice where deduplication or transactions promise that. HISTORY_SECONDS says how long (20),
 * CONFORMANCE_SEED repeats the choices.
 */
class HistoryTest extends Judge {
    private static final int SECONDS = Integer.parseInt(System.getenv().getOrDefault("HISTORY_SECONDS", "20"));
    private static final int KEYS = 8;
    /** Messages a second of one producer: what one slow consumer can follow, so that queues do not only grow. */
    private static final int RATE = 150;

    private final long seed = Long.parseLong(
            System.getenv().getOrDefault("CONFORMANCE_SEED", "" + new Random().nextInt(Integer.MAX_VALUE)));
    private final List<String> problems = Collections.synchronizedList(new ArrayList<>());
    private final List<Thread> producers = new ArrayList<>();
    private final List<Thread> others = new ArrayList<>();
    private final List<Runnable> checks = new ArrayList<>();
    private volatile boolean producing = true;
    private volatile boolean working = true;
    private int actors;

    @Override
    void options(ClientBuilder builder) {
        builder.enableTransaction(true).maxBackoffInterval(500, TimeUnit.MILLISECONDS)
                .operationTimeout(60, TimeUnit.SECONDS);
    }

    private interface Work {
        void run(Random source) throws Exception;
    }

    private void actor(List<Thread> group, String name, Work work) {
        Random source = new Random(seed * 31 + actors++);
        Thread thread = new Thread(() -> {
            try {
                work.run(source);
            } catch (Throwable error) {
                problems.add(name + " ended with " + error);
            }
        }, name);
        thread.setDaemon(true);
        group.add(thread);
    }

    @Test
    @Timeout(900)
    void nothingIsLostReorderedOrDoubled() throws Exception {
        takeOwnServer();
        System.out.println("history: CONFORMANCE_SEED=" + seed + ", HISTORY_SECONDS=" + SECONDS);
        String deduplicated = newNamespace();
        admin().namespaces().setDeduplicationStatus(deduplicated, true);

        String plain = "persistent://public/default/plain";
        admin().topics().createPartitionedTopic(plain, 3);
        History onPlain = new History();
        produce(plain, onPlain, "single", builder -> builder.enableBatching(false));
        produce(plain, onPlain, "batches", builder -> builder.batcherBuilder(BatcherBuilder.KEY_BASED));
        subscribe(plain, onPlain, SubscriptionType.Exclusive, 1);
        subscribe(plain, onPlain, SubscriptionType.Failover, 2);
        subscribe(plain, onPlain, SubscriptionType.Shared, 2);
        subscribe(plain, onPlain, SubscriptionType.Key_Shared, 3);

        String once = "persistent://" + deduplicated + "/once";
        admin().topics().createPartitionedTopic(once, 2);
        History onOnce = new History();
        produce(once, onOnce, "single", builder -> builder.enableBatching(false));
        produce(once, onOnce, "batches", builder -> builder.batchingMaxMessages(20));
        subscribe(once, onOnce, SubscriptionType.Failover, 2);
        subscribe(once, onOnce, SubscriptionType.Shared, 2);
        checkLog(once, onOnce, true);

        String in = "persistent://" + deduplicated + "/in";
        String out = "persistent://" + deduplicated + "/out";
        History moved = new History();
        Consumer<String> kept = client.newConsumer(Schema.STRING).topic(in).subscriptionName("move")
                .subscriptionType(SubscriptionType.Shared).subscribe();
        kept.close();
        produce(in, moved, "single", builder -> builder.enableBatching(false));
        for (int number = 0; number < 2; number++) {
            move(in, out, "mover-" + number);
        }
        checkLog(out, moved, false);

        producers.forEach(Thread::start);
        others.forEach(Thread::start);
        int kills = killUntil(System.nanoTime() + TimeUnit.SECONDS.toNanos(SECONDS));
        producing = false;
        for (Thread thread : producers) {
            thread.join(TimeUnit.SECONDS.toMillis(60));
            if (thread.isAlive()) {
                problems.add(thread.getName() + " still waits for its receipts");
            }
        }
        checks.forEach(Runnable::run);
        working = false;
        for (Thread thread : others) {
            thread.join(TimeUnit.SECONDS.toMillis(30));
        }
        System.out.println("history: " + kills + " kills, " + (onPlain.promisedCount() + onOnce.promisedCount()
                + moved.promisedCount()) + " messages, problems: " + problems.size());
        assertEquals(List.of(), List.copyOf(problems), "CONFORMANCE_SEED=" + seed);
    }

    private int killUntil(long end) throws Exception {
        Random source = new Random(seed);
        int kills = 0;
        while (System.nanoTime() < end && problems.isEmpty()) {
            Thread.sleep(500 + source.nextInt(3_000)); // a random moment is the point
            server.killAndRestart();
            kills++;
        }
        return kills;
    }

    private interface Settings {
        ProducerBuilder<String> on(ProducerBuilder<String> builder);
    }

    /** Send time-outs are off: a message waits until the server is back, and the client sends it again. */
    private void produce(String topic, History history, String name, Settings settings) throws Exception {
        Producer<String> producer = settings.on(client.newProducer(Schema.STRING).topic(topic).producerName(name)
                .sendTimeout(0, TimeUnit.SECONDS).maxPendingMessages(300).blockIfQueueFull(true)
                .batchingMaxPublishDelay(5, TimeUnit.MILLISECONDS)).create();
        actor(producers, "producer " + name + " of " + topic, source -> {
            List<CompletableFuture<?>> sent = new ArrayList<>();
            while (producing) {
                String key = "k" + source.nextInt(KEYS);
                String value = history.next(name + "/" + key);
                sent.add(producer.newMessage().key(key).value(value).sendAsync().thenAccept(id -> history.promised(value)));
                Thread.sleep(source.nextInt(2_000 / RATE)); // the pace of the load
            }
            for (CompletableFuture<?> each : sent) {
                each.get(60, TimeUnit.SECONDS);
            }
        });
    }

    private void subscribe(String topic, History history, SubscriptionType type, int consumers) throws Exception {
        boolean ordered = type != SubscriptionType.Shared;
        History.View view = new History.View(topic + " " + type, ordered);
        for (int number = 0; number < consumers; number++) {
            String name = "consumer-" + number;
            Consumer<String> first = open(topic, type, name);
            actor(others, name + " of " + view, source -> consume(topic, type, name, first, view, source));
        }
        checks.add(() -> complete(history, view, false));
    }

    private Consumer<String> open(String topic, SubscriptionType type, String name) throws PulsarClientException {
        return client.newConsumer(Schema.STRING).topic(topic).subscriptionName(type.name()).subscriptionType(type)
                .consumerName(name).receiverQueueSize(50).negativeAckRedeliveryDelay(200, TimeUnit.MILLISECONDS)
                .subscriptionInitialPosition(org.apache.pulsar.client.api.SubscriptionInitialPosition.Earliest).subscribe();
    }

    private void consume(String topic, SubscriptionType type, String name, Consumer<String> consumer, History.View view,
                         Random source) throws Exception {
        boolean single = type == SubscriptionType.Exclusive || type == SubscriptionType.Failover;
        while (working) {
            Message<String> message = consumer.receive(100, TimeUnit.MILLISECONDS);
            if (message == null) {
                continue;
            }
            view.take(message.getValue());
            int choice = source.nextInt(1_000);
            if (choice < 10) {
                consumer.negativeAcknowledge(message);
            } else if (choice < 200 && single) {
                consumer.acknowledgeCumulativeAsync(message);
            } else {
                consumer.acknowledgeAsync(message);
            }
            if (choice >= 997) {
                consumer.close();
                consumer = open(topic, type, name);
            }
        }
        consumer.close();
    }

    /** Takes from one topic and puts into another, each time in a transaction that ends one way or the other. */
    private void move(String in, String out, String name) throws Exception {
        Consumer<String> consumer = client.newConsumer(Schema.STRING).topic(in).subscriptionName("move").consumerName(name)
                .subscriptionType(SubscriptionType.Shared).receiverQueueSize(20)
                .negativeAckRedeliveryDelay(200, TimeUnit.MILLISECONDS).subscribe();
        Producer<String> producer = client.newProducer(Schema.STRING).topic(out).producerName(name).enableBatching(false)
                .sendTimeout(0, TimeUnit.SECONDS).create();
        actor(others, name, source -> {
            while (working) {
                List<Message<String>> taken = new ArrayList<>();
                for (int wanted = 1 + source.nextInt(10); wanted > 0; wanted--) {
                    Message<String> message = consumer.receive(50, TimeUnit.MILLISECONDS);
                    if (message != null) {
                        taken.add(message);
                    }
                }
                if (!taken.isEmpty()) {
                    moveOnce(consumer, producer, taken, source.nextInt(10) == 0);
                }
            }
        });
    }

    private void moveOnce(Consumer<String> consumer, Producer<String> producer, List<Message<String>> taken, boolean abort)
            throws Exception {
        Transaction txn = null;
        try {
            txn = client.newTransaction().withTransactionTimeout(5, TimeUnit.SECONDS).build().get(10, TimeUnit.SECONDS);
            List<CompletableFuture<?>> parts = new ArrayList<>();
            for (Message<String> message : taken) {
                parts.add(producer.newMessage(txn).value(message.getValue()).sendAsync());
                parts.add(consumer.acknowledgeAsync(message.getMessageId(), txn));
            }
            for (CompletableFuture<?> part : parts) {
                part.get(10, TimeUnit.SECONDS);
            }
            (abort ? txn.abort() : txn.commit()).get(10, TimeUnit.SECONDS);
            return;
        } catch (java.util.concurrent.ExecutionException | java.util.concurrent.TimeoutException error) {
            // the server died, or it found a conflict: whether this one was committed is for the server to know
            if (txn != null && txn.getState() == Transaction.State.OPEN) {
                try {
                    txn.abort().get(10, TimeUnit.SECONDS);
                } catch (java.util.concurrent.ExecutionException | java.util.concurrent.TimeoutException unknown) {
                    // its time-out ends it
                }
            }
        }
        taken.forEach(consumer::negativeAcknowledge);
    }

    /** Reads the whole topic at the end; `ordered` where one producer's messages stay in order. */
    private void checkLog(String topic, History history, boolean ordered) {
        History.View view = new History.View(topic + " as a log", ordered);
        checks.add(() -> {
            try {
                if (topic.endsWith("/out")) {
                    eventually("everything was moved", () -> admin().topics().getStats(topic.replace("/out", "/in"))
                            .getSubscriptions().get("move").getMsgBacklog() == 0);
                }
                try (Reader<String> reader = client.newReader(Schema.STRING).topic(topic).startMessageId(MessageId.earliest).create()) {
                    while (reader.hasMessageAvailable()) {
                        Message<String> message = reader.readNext(PATIENCE_SECONDS, TimeUnit.SECONDS);
                        if (message == null) {
                            break;
                        }
                        view.take(message.getValue());
                    }
                }
                complete(history, view, true);
            } catch (Throwable error) {
                problems.add(topic + ": " + error);
            }
        });
    }

    private void complete(History history, History.View view, boolean once) {
        try {
            eventually("all is seen", () -> view.count() >= history.promisedCount());
        } catch (Throwable late) {
            // what is missing is said below
        }
        problems.addAll(once ? history.problemsOfOnce(view) : history.problems(view));
        System.out.println("history: " + view + ": " + view.count() + " of " + history.promisedCount() + ", " + view.again() + " again");
    }
}
