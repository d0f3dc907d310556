package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.DeadLetterPolicy;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.client.impl.MultiplierRedeliveryBackoff;
import org.junit.jupiter.api.Test;

class RedeliveryTest extends Judge {
    @Test
    void negativeAcksAreCounted() throws Exception {
        String base = topic;
        for (SubscriptionType type : List.of(SubscriptionType.Shared, SubscriptionType.Key_Shared)) {
            topic = base + "-" + type;
            Consumer<String> consumer = from(type)
                    .negativeAckRedeliveryDelay(100, TimeUnit.MILLISECONDS).subscribe();
            producer().send(type.name());
            for (int count = 0; count < 3; count++) {
                Message<String> message = next(consumer);
                assertEquals(count, message.getRedeliveryCount(), type.name());
                consumer.negativeAcknowledge(message);
            }
            consumer.acknowledge(next(consumer));
            consumer.close();
        }
    }

    @Test
    void exclusiveNeverCounts() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Exclusive).negativeAckRedeliveryDelay(100, TimeUnit.MILLISECONDS)
                .subscribe();
        send(producer(), 0, 3);
        List<Message<String>> messages = receive(consumer, 3);
        consumer.negativeAcknowledge(messages.get(1));
        List<Message<String>> again = receive(consumer, 3);
        assertEquals(numbers(0, 3), values(again), "all that is not acknowledged, in order");
        assertTrue(again.stream().allMatch(message -> message.getRedeliveryCount() == 0));
    }

    @Test
    void backoffOfNegativeAcks() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Shared).negativeAckRedeliveryBackoff(
                MultiplierRedeliveryBackoff.builder().minDelayMs(100).maxDelayMs(1_000).multiplier(2).build()).subscribe();
        producer().send("v");
        for (int count = 0; count < 3; count++) {
            Message<String> message = next(consumer);
            assertEquals(count, message.getRedeliveryCount());
            consumer.negativeAcknowledge(message);
        }
        next(consumer);
    }

    @Test
    void acknowledgementTimeout() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Shared).ackTimeout(1, TimeUnit.SECONDS)
                .ackTimeoutTickTime(200, TimeUnit.MILLISECONDS).subscribe();
        send(producer(), 0, 2);
        List<Message<String>> messages = receive(consumer, 2);
        consumer.acknowledge(messages.get(0));
        Message<String> again = next(consumer);
        assertEquals(messages.get(1).getMessageId(), again.getMessageId());
        assertTrue(again.getRedeliveryCount() >= 1);
        consumer.acknowledge(again);
        nothing(consumer);
    }

    @Test
    void leavingDoesNotCount() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Shared).subscribe();
        send(producer(), 0, 3);
        receive(consumer, 3);
        consumer.close();
        for (Message<String> message : take(from(SubscriptionType.Shared).subscribe(), 3)) {
            assertEquals(0, message.getRedeliveryCount());
        }
    }

    @Test
    void deadLettersByTheDefaultName() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Shared).negativeAckRedeliveryDelay(50, TimeUnit.MILLISECONDS)
                .deadLetterPolicy(DeadLetterPolicy.builder().maxRedeliverCount(2).initialSubscriptionName("kept").build()).subscribe();
        MessageId id = producer().newMessage().key("k").property("a", "b").value("poison").send();
        for (int count = 0; count < 3; count++) {
            consumer.negativeAcknowledge(next(consumer));
        }
        String name = topic + "-s-DLQ";
        eventually("the dead letter is kept for a subscription that nobody opened yet", () -> {
            try {
                return admin().topics().getStats(name).getSubscriptions().containsKey("kept");
            } catch (org.apache.pulsar.client.admin.PulsarAdminException.NotFoundException notYet) {
                return false;
            }
        });
        Message<String> dead = next(client.newConsumer(Schema.STRING).topic(name).subscriptionName("kept").subscribe());
        assertEquals("poison", dead.getValue());
        assertEquals("k", dead.getKey());
        assertEquals("b", dead.getProperty("a"));
        assertEquals("persistent://public/default/" + topic, dead.getProperty("REAL_TOPIC"));
        assertEquals(id.toString(), dead.getProperty("ORIGIN_MESSAGE_ID"));
        eventually("the original is acknowledged", () -> backlog("s") == 0);
    }

    @Test
    void retryTopicsThenDeadLetters() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Shared).enableRetry(true)
                .deadLetterPolicy(DeadLetterPolicy.builder().maxRedeliverCount(2).build()).subscribe();
        Consumer<String> dead = client.newConsumer(Schema.STRING).topic(topic + "-s-DLQ").subscriptionName("d").subscribe();
        producer().send("again");
        for (int times = 0; times < 3; times++) {
            Message<String> message = next(consumer);
            assertEquals(times == 0 ? null : "" + times, message.getProperty("RECONSUMETIMES"));
            consumer.reconsumeLater(message, Map.of("round", "" + times), 100, TimeUnit.MILLISECONDS);
        }
        Message<String> last = next(dead);
        assertEquals("again", last.getValue());
        assertNotNull(last.getProperty("ORIGIN_MESSAGE_ID"));
        eventually("the original is acknowledged", () -> backlog("s") == 0);
    }

    @Test
    void delayedOnSharedOnly() throws Exception {
        Consumer<String> shared = from(SubscriptionType.Shared).subscriptionName("shared").subscribe();
        Consumer<String> exclusive = from(SubscriptionType.Exclusive).subscriptionName("exclusive").subscribe();
        Producer<String> producer = producer();
        long began = System.currentTimeMillis();
        producer.newMessage().value("after").deliverAfter(2_500, TimeUnit.MILLISECONDS).send();
        producer.newMessage().value("at").deliverAt(began + 3_000).send();
        producer.send("now");
        producer.newMessage().value("past").deliverAt(began - 1).send();
        assertEquals(List.of("after", "at", "now", "past"), values(take(exclusive, 4)));
        assertEquals(List.of("now", "past"), values(take(shared, 2)));
        eventually("they are counted", () ->
                admin().topics().getStats(topic).getSubscriptions().get("shared").getMsgDelayed() == 2);
        assertEquals(List.of("after", "at"), values(take(shared, 2)));
        // by at most a tick of 1 s too early
        assertTrue(System.currentTimeMillis() >= began + 2_000, "came after " + (System.currentTimeMillis() - began) + " ms");
    }

    @Test
    void delayedOnKeyShared() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Key_Shared).subscribe();
        Producer<String> producer = producer();
        producer.newMessage().key("k").value("late").deliverAfter(1_500, TimeUnit.MILLISECONDS).send();
        producer.newMessage().key("k").value("now").send();
        assertEquals(List.of("now", "late"), values(take(consumer, 2)));
    }
}
