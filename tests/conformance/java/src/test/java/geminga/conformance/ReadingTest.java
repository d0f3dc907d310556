package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.admin.LongRunningProcessStatus;
import org.apache.pulsar.client.admin.PulsarAdminException;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.MessageIdAdv;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Reader;
import org.apache.pulsar.client.api.Range;
import org.apache.pulsar.client.api.ReaderBuilder;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.client.api.TableView;
import org.apache.pulsar.client.api.TopicMessageId;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;

/** Readers, seeks, table views, compaction, and the end of a topic. */
class ReadingTest extends Judge {
    private ReaderBuilder<String> reader() {
        return client.newReader(Schema.STRING).topic(topic);
    }

    private static List<String> read(Reader<String> reader, int count) throws PulsarClientException {
        List<String> values = new ArrayList<>();
        for (int number = 0; number < count; number++) {
            Message<String> message = reader.readNext(PATIENCE_SECONDS, TimeUnit.SECONDS);
            assertTrue(message != null, values.size() + " of " + count + " came: " + values);
            values.add(message.getValue());
        }
        return values;
    }

    private static List<String> readAll(Reader<String> reader) throws PulsarClientException {
        List<String> values = new ArrayList<>();
        while (reader.hasMessageAvailable()) {
            values.addAll(read(reader, 1));
        }
        return values;
    }

    @Test
    void readersStartWithOrAfterAnId() throws Exception {
        List<MessageId> ids = send(producer(), 0, 5);
        List<MessageId> batch = send(batching(), 5, 10);
        assertEquals(numbers(3, 10), readAll(reader().startMessageId(ids.get(2)).create()));
        assertEquals(numbers(2, 10), readAll(reader().startMessageId(ids.get(2)).startMessageIdInclusive().create()));
        assertEquals(numbers(8, 10), readAll(reader().startMessageId(batch.get(2)).create()));
        assertEquals(numbers(7, 10), readAll(reader().startMessageId(batch.get(2)).startMessageIdInclusive().create()));
        assertEquals(numbers(0, 10), readAll(reader().startMessageId(MessageId.earliest).create()));
        assertEquals(numbers(9, 10), readAll(reader().startMessageId(MessageId.latest).startMessageIdInclusive().create()));
        assertEquals(List.of(), readAll(reader().startMessageId(MessageId.latest).create()));
    }

    @Test
    void readersSeekByIdAndTime() throws Exception {
        List<Long> times = new ArrayList<>();
        List<MessageId> ids = sendAtDistinctTimes(10, times);
        Reader<String> reader = reader().startMessageId(MessageId.earliest).create();
        assertEquals(numbers(0, 10), readAll(reader));
        reader.seek(ids.get(6));
        assertEquals(numbers(7, 10), read(reader, 3));
        reader.seek(times.get(4));
        assertEquals(numbers(4, 10), read(reader, 6));
        reader.seek(MessageId.latest);
        assertFalse(reader.hasMessageAvailable());
    }

    /** Messages with publish times that differ, which it adds to `times`. */
    private List<MessageId> sendAtDistinctTimes(int count, List<Long> times) throws Exception {
        Producer<String> producer = producer();
        List<MessageId> ids = new ArrayList<>();
        for (int number = 0; number < count; number++) {
            long before = System.currentTimeMillis();
            eventually("the clock goes on", () -> System.currentTimeMillis() > before);
            ids.add(producer.send("" + number));
        }
        Reader<String> reader = reader().startMessageId(MessageId.earliest).create();
        for (int number = 0; number < count; number++) {
            times.add(reader.readNext(PATIENCE_SECONDS, TimeUnit.SECONDS).getPublishTime());
        }
        reader.close();
        return ids;
    }

    @Test
    void consumersSeekByIdTimeAndStartInclusive() throws Exception {
        List<Long> times = new ArrayList<>();
        List<MessageId> ids = sendAtDistinctTimes(8, times);
        for (boolean inclusive : List.of(false, true)) {
            var builder = from(SubscriptionType.Exclusive).subscriptionName("s" + inclusive);
            Consumer<String> consumer = (inclusive ? builder.startMessageIdInclusive() : builder).subscribe();
            take(consumer, 8);
            consumer.seek(ids.get(5));
            assertEquals(numbers(inclusive ? 5 : 6, 8), values(take(consumer, inclusive ? 3 : 2)));
            consumer.seek(times.get(3));
            assertEquals(numbers(3, 8), values(take(consumer, 5)));
            consumer.seek(MessageId.earliest);
            assertEquals(numbers(0, 8), values(take(consumer, 8)));
        }
    }

    @Test
    void seekByAFunctionOfThePartition() throws Exception {
        admin().topics().createPartitionedTopic(topic, 2);
        Consumer<String> consumer = from(SubscriptionType.Exclusive).subscribe();
        Producer<String> producer = producer();
        for (int number = 0; number < 10; number++) {
            producer.send("" + number);
        }
        Map<String, Long> time = new HashMap<>();
        for (Message<String> message : take(consumer, 10)) {
            time.put(message.getTopicName(), message.getPublishTime());
        }
        consumer.seek(partition -> partition.endsWith("-0") ? MessageId.earliest : (Object) (time.get(partition) + 1_000));
        List<Message<String>> again = take(consumer, 5);
        assertTrue(again.stream().allMatch(message -> message.getTopicName().endsWith("-partition-0")));
        nothing(consumer);
    }

    @Test
    void everyConsumerIsBackAfterASeek() throws Exception {
        Consumer<String> first = from(SubscriptionType.Shared).subscribe();
        Consumer<String> second = from(SubscriptionType.Shared).subscribe();
        send(producer(), 0, 20);
        eventually("all are out", () -> {
            first.receive(10, TimeUnit.MILLISECONDS);
            second.receive(10, TimeUnit.MILLISECONDS);
            return admin().topics().getStats(topic).getSubscriptions().get("s").getUnackedMessages() == 20;
        });
        first.seek(MessageId.earliest);
        eventually("both are attached", () ->
                admin().topics().getStats(topic).getSubscriptions().get("s").getConsumers().size() == 2);
        send(producer(), 20, 21);
        java.util.Set<String> got = new java.util.HashSet<>();
        eventually("all come again", () -> {
            for (Consumer<String> consumer : List.of(first, second)) {
                Message<String> message = consumer.receive(10, TimeUnit.MILLISECONDS);
                if (message != null) {
                    got.add(message.getValue());
                }
            }
            return got.size() == 21;
        });
    }

    @Test
    void hasMessageAvailableAtEveryTurn() throws Exception {
        Producer<String> producer = producer();
        Reader<String> reader = reader().startMessageId(MessageId.earliest).create();
        assertFalse(reader.hasMessageAvailable(), "an empty topic");
        producer.send("1");
        assertTrue(reader.hasMessageAvailable());
        read(reader, 1);
        assertFalse(reader.hasMessageAvailable());
        send(batching(), 0, 2);
        read(reader, 1);
        assertTrue(reader.hasMessageAvailable(), "in the middle of a batch");
        read(reader, 1);
        assertFalse(reader.hasMessageAvailable());
    }

    @Test
    void lastMessageIdsOfEachPartition() throws Exception {
        admin().topics().createPartitionedTopic(topic, 3);
        Consumer<String> consumer = from(SubscriptionType.Exclusive).subscribe();
        Producer<String> producer = producer();
        Map<String, MessageIdAdv> last = new HashMap<>();
        for (int number = 0; number < 9; number++) {
            MessageIdAdv id = (MessageIdAdv) producer.send("" + number);
            last.put("persistent://public/default/" + topic + "-partition-" + id.getPartitionIndex(), id);
        }
        List<TopicMessageId> told = consumer.getLastMessageIds();
        assertEquals(3, told.size());
        for (TopicMessageId id : told) {
            MessageIdAdv wanted = last.get(id.getOwnerTopic());
            assertEquals(wanted.getLedgerId() + ":" + wanted.getEntryId(),
                    ((MessageIdAdv) id).getLedgerId() + ":" + ((MessageIdAdv) id).getEntryId());
        }
    }

    @Test
    void readersOfAHashRange() throws Exception {
        Producer<String> producer = producer();
        for (int number = 0; number < 40; number++) {
            producer.newMessage().key("k" + number).value("" + number).send();
        }
        int found = 0;
        for (Range range : List.of(Range.of(0, 32_767), Range.of(32_768, 65_535))) {
            Reader<String> reader = reader().startMessageId(MessageId.earliest).keyHashRange(range).create();
            Message<String> message;
            int here = 0;
            while ((message = reader.readNext(1, TimeUnit.SECONDS)) != null) {
                here++;
            }
            assertTrue(here > 0 && here < 40, "each half has some: " + here);
            found += here;
        }
        assertEquals(40, found);
    }

    @Test
    void tableViews() throws Exception {
        admin().topics().createPartitionedTopic(topic, 2);
        Producer<String> producer = producer();
        for (int number = 0; number < 10; number++) {
            producer.newMessage().key("k" + number % 4).value("" + number).send();
        }
        TableView<String> view = client.newTableView(Schema.STRING).topic(topic).create();
        eventually("the last of each key is shown", () -> {
            Map<String, String> shown = new HashMap<>();
            view.forEach(shown::put);
            return shown.equals(Map.of("k0", "8", "k1", "9", "k2", "6", "k3", "7"));
        });
        Map<String, String> heard = new ConcurrentHashMap<>();
        view.forEachAndListen((key, value) -> heard.put(key, value == null ? "gone" : value));
        producer.newMessage().key("k0").value("new").send();
        producer.newMessage().key("k1").value(null).send();
        eventually("changes arrive", () -> "new".equals(view.get("k0")) && !view.containsKey("k1")
                && "new".equals(heard.get("k0")) && "gone".equals(heard.get("k1")));
    }

    @Test
    void compactedReadsShowTheLastOfEachKey() throws Exception {
        Producer<String> producer = producer();
        for (int number = 0; number < 30; number++) {
            producer.newMessage().key("k" + number % 3).value("" + number).send();
        }
        producer.newMessage().key("k0").value(null).send();
        try {
            admin().topics().triggerCompaction(topic);
        } catch (PulsarAdminException error) {
            Assumptions.assumeFalse(("" + error.getMessage()).contains("not implemented"), "compaction is pending: " + error.getMessage());
            throw error;
        }
        eventually("compaction is done", () ->
                admin().topics().compactionStatus(topic).status == LongRunningProcessStatus.Status.SUCCESS);
        producer.newMessage().key("k1").value("later").send();
        Consumer<String> compacted = from(SubscriptionType.Exclusive).readCompacted(true).subscribe();
        assertEquals(List.of("28", "29", "later"), values(take(compacted, 3)));
        nothing(compacted);
        assertEquals(32, take(from(SubscriptionType.Exclusive).subscriptionName("all").subscribe(), 32).size());
        assertEquals(List.of("28", "29", "later"), read(reader().startMessageId(MessageId.earliest).readCompacted(true).create(), 3));
    }

    @Test
    void readCompactedWithoutCompactionShowsAll() throws Exception {
        Producer<String> producer = producer();
        for (int number = 0; number < 6; number++) {
            producer.newMessage().key("k" + number % 2).value("" + number).send();
        }
        assertEquals(numbers(0, 6), values(take(from(SubscriptionType.Exclusive).readCompacted(true).subscribe(), 6)));
    }

    @Test
    void aTerminatedTopicEnds() throws Exception {
        Producer<String> producer = producer();
        Consumer<String> consumer = from(SubscriptionType.Exclusive).subscribe();
        Reader<String> reader = reader().startMessageId(MessageId.earliest).create();
        List<MessageId> ids = send(producer, 0, 5);
        assertFalse(consumer.hasReachedEndOfTopic());
        MessageIdAdv last = (MessageIdAdv) soon(admin().topics().terminateTopicAsync(topic));
        MessageIdAdv sent = (MessageIdAdv) ids.get(4);
        assertEquals(sent.getLedgerId() + ":" + sent.getEntryId(), last.getLedgerId() + ":" + last.getEntryId());
        assertThrows(PulsarClientException.class, () -> producer.send("late"));
        assertThrows(PulsarClientException.TopicTerminatedException.class, this::producer);
        assertEquals(numbers(0, 5), values(take(consumer, 5)));
        assertEquals(numbers(0, 5), read(reader, 5));
        eventually("both are told", () -> consumer.hasReachedEndOfTopic() && reader.hasReachedEndOfTopic());
        Consumer<String> late = from(SubscriptionType.Exclusive).subscriptionName("late").subscribe();
        assertEquals(numbers(0, 5), values(take(late, 5)));
        eventually("who comes later too", late::hasReachedEndOfTopic);
    }

    @Test
    void nonPersistentReachesWhoListens() throws Exception {
        topic = "non-persistent://public/default/" + topic;
        Producer<String> producer = producer();
        send(producer, 0, 3);
        Consumer<String> consumer = from(SubscriptionType.Shared).subscribe();
        Consumer<String> other = from(SubscriptionType.Exclusive).subscriptionName("other").subscribe();
        send(producer, 3, 6);
        assertEquals(numbers(3, 6), values(take(consumer, 3)));
        assertEquals(numbers(3, 6), values(take(other, 3)));
        consumer.seek(MessageId.earliest);
        send(producer, 6, 7);
        assertEquals(numbers(6, 7), values(take(consumer, 1)), "there is nothing to go back to");
    }
}
