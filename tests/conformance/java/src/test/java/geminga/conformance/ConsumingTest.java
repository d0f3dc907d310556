package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.ConsumerEventListener;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.RegexSubscriptionMode;
import org.apache.pulsar.client.api.SubscriptionInitialPosition;
import org.apache.pulsar.client.api.SubscriptionMode;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.common.policies.data.ConsumerStats;
import org.apache.pulsar.common.policies.data.SubscriptionStats;
import org.junit.jupiter.api.Test;

class ConsumingTest extends Judge {
    /** Remembers the active-consumer changes that the server sends. */
    private static final class Changes implements ConsumerEventListener {
        final Queue<String> seen = new ConcurrentLinkedQueue<>();

        @Override
        public void becameActive(Consumer<?> consumer, int partition) {
            seen.add("active " + partition);
        }

        @Override
        public void becameInactive(Consumer<?> consumer, int partition) {
            seen.add("inactive " + partition);
        }

        boolean last(String wanted) {
            return seen.stream().reduce((first, second) -> second).orElse("").equals(wanted);
        }
    }

    @Test
    void failoverFollowsPriorityAndTellsWhoIsActive() throws Exception {
        Changes low = new Changes();
        Changes high = new Changes();
        Consumer<String> second = from(SubscriptionType.Failover).consumerName("a").priorityLevel(1)
                .consumerEventListener(low).subscribe();
        Producer<String> producer = producer();
        eventually("the only one is active", () -> low.last("active -1"));
        send(producer, 0, 5);
        assertEquals(numbers(0, 5), values(take(second, 5)));
        Consumer<String> first = from(SubscriptionType.Failover).consumerName("b").priorityLevel(0)
                .consumerEventListener(high).subscribe();
        eventually("the more important one takes over", () -> high.last("active -1") && low.last("inactive -1"));
        send(producer, 5, 10);
        assertEquals(numbers(5, 10), values(take(first, 5)));
        nothing(second);
        first.close();
        eventually("and hands back", () -> low.last("active -1"));
        send(producer, 10, 12);
        assertEquals(numbers(10, 12), values(take(second, 2)));
    }

    @Test
    void failoverOfPartitionsTellsEachPartition() throws Exception {
        admin().topics().createPartitionedTopic(topic, 4);
        Changes ofA = new Changes();
        Changes ofB = new Changes();
        Consumer<String> a = from(SubscriptionType.Failover).consumerName("a").consumerEventListener(ofA).subscribe();
        eventually("all are of the only one", () -> List.of(0, 1, 2, 3).stream().allMatch(n -> ofA.seen.contains("active " + n)));
        from(SubscriptionType.Failover).consumerName("b").consumerEventListener(ofB).subscribe();
        eventually("each has half, by the order of names", () -> ofA.seen.contains("inactive 1") && ofA.seen.contains("inactive 3")
                && ofB.seen.contains("active 1") && ofB.seen.contains("active 3"));
        assertFalse(ofA.seen.contains("inactive 0") || ofB.seen.contains("active 2"));
        a.close();
        eventually("the rest is left with the others", () -> ofB.seen.contains("active 0") && ofB.seen.contains("active 2"));
    }

    @Test
    void sharedFillsTheMoreImportantFirst() throws Exception {
        Consumer<String> spare = from(SubscriptionType.Shared).priorityLevel(1).subscribe();
        Consumer<String> preferred = from(SubscriptionType.Shared).priorityLevel(0).receiverQueueSize(5).subscribe();
        send(producer(), 0, 20);
        assertEquals(15, receive(spare, 15).size());
        assertEquals(5, receive(preferred, 5).size());
    }

    @Test
    void batchIndexesAreAcknowledgedOneByOne() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Shared).enableBatchIndexAcknowledgment(true)
                .isAckReceiptEnabled(true).subscribe();
        send(batching(), 0, 10);
        for (Message<String> message : receive(consumer, 10)) {
            if (Integer.parseInt(message.getValue()) % 3 != 0) {
                consumer.acknowledge(message);
            }
        }
        consumer.close();
        consumer = from(SubscriptionType.Shared).enableBatchIndexAcknowledgment(true).subscribe();
        assertEquals(List.of("0", "3", "6", "9"), values(take(consumer, 4)));
        eventually("the entry is done", () -> backlog("s") == 0);
    }

    @Test
    void receiptsOfAcknowledgementsCount() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Exclusive).isAckReceiptEnabled(true)
                .acknowledgmentGroupTime(0, TimeUnit.MILLISECONDS).subscribe();
        send(producer(), 0, 10);
        List<Message<String>> messages = receive(consumer, 10);
        soon(consumer.acknowledgeAsync(messages.get(7)));
        assertEquals(9, backlog("s"), "after the receipt nobody has to wait");
        soon(consumer.acknowledgeCumulativeAsync(messages.get(4)));
        assertEquals(4, backlog("s"));
        soon(consumer.acknowledgeAsync(List.of(messages.get(5).getMessageId(), messages.get(6).getMessageId())));
        assertEquals(2, backlog("s"));
        consumer.close();
        assertEquals(List.of("8", "9"), values(take(from(SubscriptionType.Exclusive).subscribe(), 2)));
    }

    @Test
    void cumulativeWithinABatch() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Exclusive).enableBatchIndexAcknowledgment(true)
                .isAckReceiptEnabled(true).subscribe();
        send(batching(), 0, 10);
        consumer.acknowledgeCumulative(receive(consumer, 10).get(6));
        consumer.close();
        assertEquals(numbers(7, 10), values(take(from(SubscriptionType.Exclusive).enableBatchIndexAcknowledgment(true).subscribe(), 3)));
    }

    @Test
    void aConsumerBlockedOnUnackedMessagesGoesOnAtHalf() throws Exception {
        String namespace = newNamespace();
        admin().namespaces().setMaxUnackedMessagesPerConsumer(namespace, 10);
        topic = "persistent://" + namespace + "/t";
        Consumer<String> consumer = from(SubscriptionType.Shared).receiverQueueSize(1).isAckReceiptEnabled(true).subscribe();
        send(producer(), 0, 30);
        List<Message<String>> held = new java.util.ArrayList<>();
        eventually("the server stops", () -> {
            Message<String> message = consumer.receive(100, TimeUnit.MILLISECONDS);
            if (message != null) {
                held.add(message);
            }
            return message == null && consumerStats().isBlockedConsumerOnUnackedMsgs();
        });
        assertTrue(held.size() >= 10 && held.size() <= 12, "held " + held.size());
        for (Message<String> message : held.subList(0, 4)) {
            consumer.acknowledge(message);
        }
        nothing(consumer);
        for (Message<String> message : held.subList(4, held.size())) {
            consumer.acknowledge(message);
        }
        // permits that came while it was blocked were kept, not lost
        for (int number = held.size(); number < 30; number++) {
            take(consumer, 1);
        }
    }

    private ConsumerStats consumerStats() throws Exception {
        return admin().topics().getStats(topic).getSubscriptions().get("s").getConsumers().get(0);
    }

    @Test
    void statsShowConsumersAndSubscriptions() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Shared).consumerName("c").receiverQueueSize(10)
                .subscriptionProperties(Map.of("team", "a")).property("zone", "z").subscribe();
        send(producer(), 0, 6);
        List<Message<String>> messages = receive(consumer, 6);
        consumer.acknowledge(messages.get(0));
        eventually("the acknowledgement is seen", () -> consumerStats().getUnackedMessages() == 5);
        SubscriptionStats stats = admin().topics().getStats(topic).getSubscriptions().get("s");
        assertEquals("Shared", stats.getType());
        assertEquals(5, stats.getMsgBacklog());
        assertEquals(5, stats.getUnackedMessages());
        assertTrue(stats.isDurable());
        assertEquals(Map.of("team", "a"), stats.getSubscriptionProperties());
        ConsumerStats seen = consumerStats();
        assertEquals("c", seen.getConsumerName());
        assertEquals(6, seen.getMsgOutCounter());
        assertEquals(Map.of("zone", "z"), seen.getMetadata());
        assertTrue(seen.getConnectedSince() != null && !seen.getConnectedSince().isEmpty());
        assertTrue(seen.getClientVersion().contains("4.0.8"), seen.getClientVersion());
        assertTrue(seen.getAvailablePermits() >= 0 && seen.getAvailablePermits() <= 10, "permits " + seen.getAvailablePermits());
    }

    @Test
    void initialPositionAndMode() throws Exception {
        Producer<String> producer = producer();
        send(producer, 0, 3);
        Consumer<String> latest = from(SubscriptionType.Exclusive).subscriptionName("latest")
                .subscriptionInitialPosition(SubscriptionInitialPosition.Latest).subscribe();
        Consumer<String> passing = from(SubscriptionType.Exclusive).subscriptionName("passing")
                .subscriptionMode(SubscriptionMode.NonDurable).subscribe();
        send(producer, 3, 4);
        assertEquals(numbers(3, 4), values(take(latest, 1)));
        assertEquals(numbers(0, 4), values(take(passing, 4)));
        assertFalse(admin().topics().getStats(topic).getSubscriptions().get("passing").isDurable());
        passing.close();
        eventually("it is gone with its consumer",
                () -> !admin().topics().getStats(topic).getSubscriptions().containsKey("passing"));
        assertTrue(admin().topics().getSubscriptions(topic).contains("latest"));
    }

    @Test
    void oneOfExclusiveAndTheTypeOfTheConnected() throws Exception {
        from(SubscriptionType.Exclusive).subscribe();
        PulsarClientException busy = assertThrows(PulsarClientException.class,
                () -> from(newClient(), SubscriptionType.Exclusive).subscribe());
        assertTrue(busy instanceof PulsarClientException.ConsumerBusyException, busy.toString());
        PulsarClientException other = assertThrows(PulsarClientException.class,
                () -> from(newClient(), SubscriptionType.Shared).subscribe());
        assertTrue(other instanceof PulsarClientException.ConsumerBusyException, other.toString());
    }

    @Test
    void pausedConsumersGetNoMore() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Shared).receiverQueueSize(4).subscribe();
        Producer<String> producer = producer();
        consumer.pause();
        send(producer, 0, 20);
        // what was asked for before the pause still comes
        eventually("the rest stays at the server", () -> {
            while (consumer.receive(50, TimeUnit.MILLISECONDS) != null) { }
            return consumerStats().getMsgOutCounter() < 20;
        });
        long before = consumerStats().getMsgOutCounter();
        consumer.resume();
        assertEquals(20 - before, receive(consumer, (int) (20 - before)).size());
    }

    @Test
    void aPatternFindsTopicsByTheWatcherOfTheServer() throws Exception {
        // the server evaluates patterns of at most 50 characters
        String base = "w" + topic.substring(topic.length() - 9).replaceAll("\\D", "x");
        topic = base + "-one";
        send(producer(), 0, 2);
        // the client would look by itself only every ten minutes
        Consumer<String> consumer = client.newConsumer(org.apache.pulsar.client.api.Schema.STRING)
                .topicsPattern("persistent://public/default/" + base + "-.*").subscriptionName("s")
                .subscriptionTopicsMode(RegexSubscriptionMode.PersistentOnly)
                .patternAutoDiscoveryPeriod(10, TimeUnit.MINUTES)
                .subscriptionInitialPosition(SubscriptionInitialPosition.Earliest).subscribe();
        assertEquals(numbers(0, 2), values(take(consumer, 2)));
        topic = base + "-two";
        send(producer(), 2, 4);
        topic = "unrelated-" + base;
        send(producer(), 100, 101);
        assertEquals(numbers(2, 4), values(take(consumer, 2)));
        topic = base + "-parted";
        admin().topics().createPartitionedTopic(topic, 3);
        send(producer(), 4, 10);
        assertEquals(numbers(4, 10), values(take(consumer, 6)).stream().sorted().toList());
        nothing(consumer);
    }

    @Test
    void aListOfTopics() throws Exception {
        String first = topic + "-a";
        String second = topic + "-b";
        Consumer<String> consumer = client.newConsumer(org.apache.pulsar.client.api.Schema.STRING).topics(List.of(first, second))
                .subscriptionName("s").subscriptionType(SubscriptionType.Shared).subscribe();
        topic = first;
        send(producer(), 0, 5);
        topic = second;
        send(producer(), 5, 10);
        List<Message<String>> messages = take(consumer, 10);
        assertEquals(numbers(0, 10), values(messages).stream().sorted().toList());
        for (Message<String> message : messages) {
            assertTrue(message.getTopicName().endsWith(Integer.parseInt(message.getValue()) < 5 ? "-a" : "-b"));
        }
    }

    @Test
    void partitionsAddedLaterAreFound() throws Exception {
        admin().topics().createPartitionedTopic(topic, 2);
        Consumer<String> consumer = from(SubscriptionType.Shared).autoUpdatePartitionsInterval(1, TimeUnit.SECONDS).subscribe();
        Producer<String> producer = unbatched().autoUpdatePartitionsInterval(1, TimeUnit.SECONDS).create();
        admin().topics().updatePartitionedTopic(topic, 5);
        eventually("messages go to all five", () -> {
            java.util.Set<Integer> used = new java.util.HashSet<>();
            for (int number = 0; number < 10; number++) {
                used.add(((org.apache.pulsar.client.api.MessageIdAdv) producer.send("v")).getPartitionIndex());
            }
            take(consumer, 10);
            return used.size() == 5;
        });
    }
}
