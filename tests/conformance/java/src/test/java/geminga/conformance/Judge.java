package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.fail;

import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.pulsar.client.admin.PulsarAdmin;
import org.apache.pulsar.client.admin.PulsarAdminException;
import org.apache.pulsar.client.api.ClientBuilder;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.ConsumerBuilder;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.ProducerBuilder;
import org.apache.pulsar.client.api.PulsarClient;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionInitialPosition;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.common.policies.data.TenantInfo;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.TestInfo;

/** What the tests share: a client and a topic name for each, waiting on conditions, short forms for sending and receiving. */
abstract class Judge {
    /** How long anything may take before a test gives up. */
    static final int PATIENCE_SECONDS = 20;
    /** How long the absence of a message is watched where no later message can prove it. */
    private static final int NOTHING_MILLIS = 400;
    private static final AtomicInteger names = new AtomicInteger();
    private static final long run = ProcessHandle.current().pid();

    private final List<PulsarClient> clients = new ArrayList<>();
    private PulsarAdmin admin;
    private Server own;
    Server server;
    PulsarClient client;
    /** A name that nobody used before; readable in the server's log. */
    String topic;

    @BeforeEach
    void open(TestInfo test) throws Exception {
        String method = test.getTestMethod().orElseThrow().getName();
        topic = "java-" + method + "-" + run + "-" + names.incrementAndGet();
        server = Server.shared();
        client = newClient();
    }

    @AfterEach
    void close() throws Exception {
        for (PulsarClient each : clients) {
            each.shutdown();
        }
        if (admin != null) {
            admin.close();
        }
        if (own != null) {
            own.close();
        }
    }

    /** A server of its own for a test that kills it; the test is skipped where the server is not ours. */
    void takeOwnServer() throws Exception {
        org.junit.jupiter.api.Assumptions.assumeFalse(Server.isOutside(), "kills or restarts the server; this one is not ours");
        own = Server.own();
        server = own;
        client = newClient();
    }

    void options(ClientBuilder builder) {
    }

    PulsarClient newClient() throws PulsarClientException {
        ClientBuilder builder = PulsarClient.builder().serviceUrl(server.serviceUrl).ioThreads(1).listenerThreads(1)
                .operationTimeout(PATIENCE_SECONDS, TimeUnit.SECONDS);
        options(builder);
        PulsarClient made = builder.build();
        clients.add(made);
        return made;
    }

    PulsarAdmin admin() throws PulsarClientException {
        if (admin == null) {
            admin = PulsarAdmin.builder().serviceHttpUrl(server.adminUrl).build();
        }
        return admin;
    }

    /** A namespace for tests that change policies. */
    String newNamespace() throws Exception {
        try {
            admin().tenants().createTenant("judge", TenantInfo.builder()
                    .allowedClusters(java.util.Set.copyOf(admin().clusters().getClusters())).build());
        } catch (PulsarAdminException.ConflictException exists) {
            // another test made it
        }
        String namespace = "judge/java-" + run + "-" + names.incrementAndGet();
        admin().namespaces().createNamespace(namespace);
        return namespace;
    }

    Producer<String> producer() throws PulsarClientException {
        return unbatched().create();
    }

    ProducerBuilder<String> unbatched() {
        return client.newProducer(Schema.STRING).topic(topic).enableBatching(false);
    }

    /** All that is sent before `flush` is one batch. */
    Producer<String> batching() throws PulsarClientException {
        return batches().create();
    }

    ProducerBuilder<String> batches() {
        return client.newProducer(Schema.STRING).topic(topic).enableBatching(true).batchingMaxMessages(1000)
                .batchingMaxPublishDelay(1, TimeUnit.MINUTES);
    }

    ConsumerBuilder<String> from(SubscriptionType type) {
        return from(client, type);
    }

    ConsumerBuilder<String> from(PulsarClient client, SubscriptionType type) {
        return client.newConsumer(Schema.STRING).topic(topic).subscriptionName("s").subscriptionType(type)
                .subscriptionInitialPosition(SubscriptionInitialPosition.Earliest);
    }

    static List<MessageId> send(Producer<String> producer, int from, int to) throws Exception {
        List<CompletableFuture<MessageId>> sent = new ArrayList<>();
        for (int number = from; number < to; number++) {
            sent.add(producer.sendAsync("" + number));
        }
        producer.flush();
        List<MessageId> ids = new ArrayList<>();
        for (CompletableFuture<MessageId> each : sent) {
            ids.add(each.get(PATIENCE_SECONDS, TimeUnit.SECONDS));
        }
        return ids;
    }

    static List<String> numbers(int from, int to) {
        List<String> texts = new ArrayList<>();
        for (int number = from; number < to; number++) {
            texts.add("" + number);
        }
        return texts;
    }

    static <T> Message<T> next(Consumer<T> consumer) throws PulsarClientException {
        Message<T> message = consumer.receive(PATIENCE_SECONDS, TimeUnit.SECONDS);
        assertNotNull(message, "no message within " + PATIENCE_SECONDS + " s");
        return message;
    }

    static <T> List<Message<T>> receive(Consumer<T> consumer, int count) throws PulsarClientException {
        List<Message<T>> messages = new ArrayList<>();
        for (int number = 0; number < count; number++) {
            Message<T> message = consumer.receive(PATIENCE_SECONDS, TimeUnit.SECONDS);
            assertNotNull(message, messages.size() + " of " + count + " messages came: " + values(messages));
            messages.add(message);
        }
        return messages;
    }

    static <T> List<Message<T>> take(Consumer<T> consumer, int count) throws PulsarClientException {
        List<Message<T>> messages = receive(consumer, count);
        for (Message<T> message : messages) {
            consumer.acknowledge(message);
        }
        return messages;
    }

    static <T> List<T> values(Collection<Message<T>> messages) {
        List<T> values = new ArrayList<>();
        messages.forEach(message -> values.add(message.getValue()));
        return values;
    }

    static void nothing(Consumer<?> consumer) throws PulsarClientException {
        Message<?> message = consumer.receive(NOTHING_MILLIS, TimeUnit.MILLISECONDS);
        assertNull(message, () -> "unexpected message " + message.getValue());
    }

    /** Waits until the condition holds; an AssertionError inside it means not yet. */
    static void eventually(String what, Callable<Boolean> condition) throws Exception {
        long until = System.nanoTime() + TimeUnit.SECONDS.toNanos(PATIENCE_SECONDS);
        String problem = "";
        while (true) {
            try {
                if (condition.call()) {
                    return;
                }
            } catch (AssertionError error) {
                problem = ": " + error.getMessage();
            }
            if (System.nanoTime() > until) {
                fail("not within " + PATIENCE_SECONDS + " s: " + what + problem);
            }
            Thread.sleep(20);
        }
    }

    static <T> T soon(CompletableFuture<T> future) throws Exception {
        return future.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
    }

    /** The backlog in entries, from the server's statistics. */
    long backlog(String subscription) throws Exception {
        return admin().topics().getStats(topic).getSubscriptions().get(subscription).getMsgBacklog();
    }
}
