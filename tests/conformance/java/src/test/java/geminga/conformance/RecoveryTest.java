package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeSet;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.ProducerAccessMode;
import org.apache.pulsar.client.api.Reader;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.client.api.TableView;
import org.junit.jupiter.api.Test;

/** kill -9 of the server while the client is at work: it reconnects by itself, and nothing that was promised is gone. */
class RecoveryTest extends Judge {
    @Test
    void producersAndConsumersGoOn() throws Exception {
        takeOwnServer();
        Producer<String> producer = unbatched().sendTimeout(0, TimeUnit.SECONDS).create();
        Consumer<String> exclusive = from(SubscriptionType.Exclusive).subscriptionName("exclusive").subscribe();
        Consumer<String> shared = from(SubscriptionType.Shared).subscriptionName("shared").subscribe();
        Reader<String> reader = client.newReader(Schema.STRING).topic(topic).startMessageId(MessageId.earliest).create();
        List<CompletableFuture<MessageId>> sent = new ArrayList<>();
        for (int number = 0; number < 300; number++) {
            sent.add(producer.sendAsync("" + number));
            if (number == 100 || number == 200) {
                server.killAndRestart();
            }
        }
        for (CompletableFuture<MessageId> each : sent) {
            soon(each);
        }
        int top = -1;
        while (top < 299) {
            int number = Integer.parseInt(take(exclusive, 1).get(0).getValue());
            assertTrue(number <= top + 1, number + " after " + top);
            top = Math.max(top, number);
        }
        TreeSet<Integer> all = new TreeSet<>();
        while (all.size() < 300) {
            all.add(Integer.parseInt(take(shared, 1).get(0).getValue()));
        }
        int read = -1;
        while (read < 299) {
            Message<String> message = reader.readNext(PATIENCE_SECONDS, TimeUnit.SECONDS);
            assertTrue(message != null, "the reader stopped after " + read);
            int number = Integer.parseInt(message.getValue());
            assertTrue(number <= read + 1, number + " after " + read);
            read = Math.max(read, number);
        }
    }

    @Test
    void anExclusiveProducerKeepsItsPlace() throws Exception {
        takeOwnServer();
        Producer<String> owner = unbatched().accessMode(ProducerAccessMode.Exclusive).sendTimeout(0, TimeUnit.SECONDS).create();
        owner.send("before");
        server.killAndRestart();
        owner.send("after");
        assertEquals(List.of("before", "after"), values(receive(from(SubscriptionType.Exclusive).subscribe(), 2)));
    }

    @Test
    void delayedMessagesAreStillDue() throws Exception {
        takeOwnServer();
        Producer<String> producer = producer();
        long due = System.currentTimeMillis() + 3_000;
        producer.newMessage().value("late").deliverAt(due).send();
        producer.send("now");
        Consumer<String> consumer = from(SubscriptionType.Shared).isAckReceiptEnabled(true).subscribe();
        assertEquals("now", take(consumer, 1).get(0).getValue());
        server.killAndRestart();
        Message<String> late = next(consumer);
        if (late.getValue().equals("now")) {
            late = next(consumer); // its acknowledgement was not durable yet
        }
        assertEquals("late", late.getValue());
        assertTrue(System.currentTimeMillis() >= due - 1_000, "not before its time");
    }

    @Test
    void tableViewsAndSchemasGoOn() throws Exception {
        takeOwnServer();
        Producer<String> producer = unbatched().sendTimeout(0, TimeUnit.SECONDS).create();
        producer.newMessage().key("a").value("1").send();
        TableView<String> view = client.newTableView(Schema.STRING).topic(topic).create();
        eventually("what was there is shown", () -> "1".equals(view.get("a")));
        server.killAndRestart();
        producer.newMessage().key("b").value("2").send();
        eventually("what was sent later arrives", () -> "1".equals(view.get("a")) && "2".equals(view.get("b")));
    }

    @Test
    void subscriptionPropertiesAndPositionsStay() throws Exception {
        takeOwnServer();
        send(producer(), 0, 10);
        Consumer<String> consumer = from(SubscriptionType.Exclusive).subscriptionProperties(Map.of("a", "b")).subscribe();
        consumer.acknowledgeCumulative(receive(consumer, 5).get(4));
        consumer.close();
        admin().topics().createSubscription(topic, "by-rest", MessageId.latest);
        server.killAndRestart();
        assertEquals(Map.of("a", "b"), admin().topics().getStats(topic).getSubscriptions().get("s").getSubscriptionProperties());
        assertEquals(0, backlog("by-rest"));
        List<String> rest = new ArrayList<>();
        Consumer<String> again = from(SubscriptionType.Exclusive).subscribe();
        while (!rest.contains("9")) {
            rest.add(next(again).getValue());
        }
        assertTrue(rest.containsAll(numbers(5, 10)), "what was not acknowledged comes: " + rest);
    }
}
