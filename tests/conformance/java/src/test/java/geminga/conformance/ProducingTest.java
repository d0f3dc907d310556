package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import org.apache.pulsar.client.api.BatcherBuilder;
import org.apache.pulsar.client.api.CompressionType;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.MessageIdAdv;
import org.apache.pulsar.client.api.MessageRouter;
import org.apache.pulsar.client.api.MessageRoutingMode;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.ProducerAccessMode;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Reader;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.client.api.TopicMetadata;
import org.junit.jupiter.api.Test;

class ProducingTest extends Judge {
    @Test
    void anExclusiveProducerKeepsOthersOut() throws Exception {
        Producer<String> owner = unbatched().accessMode(ProducerAccessMode.Exclusive).create();
        assertThrows(PulsarClientException.ProducerFencedException.class,
                () -> unbatched().accessMode(ProducerAccessMode.Exclusive).create());
        assertThrows(PulsarClientException.ProducerBusyException.class, this::producer);
        owner.send("mine");
        owner.close();
        producer().send("anybody's");
    }

    @Test
    void anExclusiveProducerIsRefusedWhereOthersAre() throws Exception {
        Producer<String> shared = producer();
        assertThrows(PulsarClientException.ProducerFencedException.class,
                () -> unbatched().accessMode(ProducerAccessMode.Exclusive).create());
        shared.send("still here");
    }

    @Test
    void waitingForExclusiveAccessIsServedInTheOrderOfAsking() throws Exception {
        Producer<String> owner = unbatched().accessMode(ProducerAccessMode.Exclusive).create();
        CompletableFuture<Producer<String>> second =
                unbatched().accessMode(ProducerAccessMode.WaitForExclusive).createAsync();
        eventually("the server knows of one that waits", () -> {
            assertThrows(PulsarClientException.class, this::producer);
            return !second.isDone();
        });
        owner.send("first");
        owner.close();
        Producer<String> heir = soon(second);
        heir.send("second");
        assertEquals(List.of("first", "second"), values(receive(from(SubscriptionType.Exclusive).subscribe(), 2)));
    }

    @Test
    void fencingTakesTheTopicOver() throws Exception {
        Producer<String> loser = unbatched().accessMode(ProducerAccessMode.Exclusive).create();
        loser.send("before");
        Producer<String> winner = unbatched().accessMode(ProducerAccessMode.ExclusiveWithFencing).create();
        assertThrows(PulsarClientException.class, () -> loser.send("after"));
        eventually("the fenced producer notices", () -> {
            PulsarClientException error = assertThrows(PulsarClientException.class, () -> loser.send("after"));
            return error instanceof PulsarClientException.ProducerFencedException
                    || error instanceof PulsarClientException.AlreadyClosedException;
        });
        winner.send("mine");
        assertEquals(List.of("before", "mine"), values(receive(from(SubscriptionType.Exclusive).subscribe(), 2)));
    }

    @Test
    void keyBasedBatchesHoldOneKeyEach() throws Exception {
        Producer<String> producer = batches().batcherBuilder(BatcherBuilder.KEY_BASED).create();
        for (int number = 0; number < 30; number++) {
            producer.newMessage().key("k" + number % 3).value("" + number).sendAsync();
        }
        producer.flush();
        Map<String, Set<String>> keysByEntry = new HashMap<>();
        Map<String, Integer> last = new HashMap<>();
        for (Message<String> message : receive(from(SubscriptionType.Exclusive).subscribe(), 30)) {
            MessageIdAdv id = (MessageIdAdv) message.getMessageId();
            keysByEntry.computeIfAbsent(id.getLedgerId() + ":" + id.getEntryId(), entry -> new HashSet<>()).add(message.getKey());
            int number = Integer.parseInt(message.getValue());
            assertTrue(last.getOrDefault(message.getKey(), -1) < number, "order within " + message.getKey());
            last.put(message.getKey(), number);
        }
        assertEquals(3, keysByEntry.size());
        assertTrue(keysByEntry.values().stream().allMatch(keys -> keys.size() == 1), keysByEntry.toString());
    }

    @Test
    void everyCompressionBatchedAndSingle() throws Exception {
        Consumer<String> consumer = from(SubscriptionType.Exclusive).subscribe();
        for (CompressionType compression : CompressionType.values()) {
            for (boolean batched : List.of(false, true)) {
                Producer<String> producer = (batched ? batches() : unbatched()).compressionType(compression).create();
                String text = (compression + " ").repeat(500);
                CompletableFuture<MessageId> first = producer.sendAsync(text + 1);
                CompletableFuture<MessageId> second = producer.sendAsync(text + 2);
                producer.flush();
                soon(first);
                soon(second);
                assertEquals(List.of(text + 1, text + 2), values(take(consumer, 2)), compression + " batched: " + batched);
                producer.close();
            }
        }
    }

    @Test
    void chunksAreOneMessageAgain() throws Exception {
        Random random = new Random(4);
        byte[] big = new byte[50_000];
        random.nextBytes(big);
        Producer<byte[]> chunking = client.newProducer(Schema.BYTES).topic(topic).enableBatching(false).enableChunking(true)
                .chunkMaxMessageSize(4_000).create();
        chunking.send("small".getBytes(StandardCharsets.UTF_8));
        MessageId id = chunking.send(big);
        chunking.send("end".getBytes(StandardCharsets.UTF_8));
        Consumer<byte[]> consumer = client.newConsumer(Schema.BYTES).topic(topic).subscriptionName("s")
                .subscriptionInitialPosition(org.apache.pulsar.client.api.SubscriptionInitialPosition.Earliest).subscribe();
        List<Message<byte[]>> messages = take(consumer, 3);
        assertArrayEquals(big, messages.get(1).getValue());
        assertEquals(id, messages.get(1).getMessageId());
        eventually("all chunks are acknowledged", () -> backlog("s") == 0);
        // its id leads back to its first chunk
        consumer.seek(id);
        consumer.close();
        Reader<byte[]> reader = client.newReader(Schema.BYTES).topic(topic).startMessageId(id).startMessageIdInclusive().create();
        assertArrayEquals(big, reader.readNext(PATIENCE_SECONDS, java.util.concurrent.TimeUnit.SECONDS).getValue());
    }

    @Test
    void chunksOfSeveralProducersOnSharedStayTogether() throws Exception {
        List<Consumer<byte[]>> consumers = new java.util.ArrayList<>();
        for (int number = 0; number < 2; number++) {
            consumers.add(client.newConsumer(Schema.BYTES).topic(topic).subscriptionName("s")
                    .subscriptionType(SubscriptionType.Shared).subscribe());
        }
        Set<Integer> wanted = new HashSet<>();
        List<CompletableFuture<MessageId>> sent = new java.util.ArrayList<>();
        for (int producerNumber = 0; producerNumber < 2; producerNumber++) {
            Producer<byte[]> producer = client.newProducer(Schema.BYTES).topic(topic).enableBatching(false)
                    .enableChunking(true).chunkMaxMessageSize(1_000).create();
            for (int number = 0; number < 5; number++) {
                byte[] big = new byte[5_000];
                new Random(producerNumber * 100 + number).nextBytes(big);
                wanted.add(java.util.Arrays.hashCode(big));
                sent.add(producer.sendAsync(big));
            }
        }
        for (CompletableFuture<MessageId> each : sent) {
            soon(each);
        }
        Set<Integer> got = new HashSet<>();
        eventually("all chunked messages come whole", () -> {
            for (Consumer<byte[]> consumer : consumers) {
                Message<byte[]> message = consumer.receive(20, java.util.concurrent.TimeUnit.MILLISECONDS);
                if (message != null) {
                    got.add(java.util.Arrays.hashCode(message.getValue()));
                    consumer.acknowledge(message);
                }
            }
            return got.equals(wanted);
        });
    }

    @Test
    void metadataComesBack() throws Exception {
        Producer<String> producer = unbatched().producerName(topic + "-p").initialSequenceId(41).create();
        producer.newMessage().keyBytes(new byte[] {0, -1, 7}).orderingKey(new byte[] {9, 8}).eventTime(1_234_567L)
                .property("a", "1").property("ünï", "çödé").sequenceId(77).replicationClusters(List.of("elsewhere"))
                .value("v").send();
        producer.newMessage().key("gone").value(null).send();
        List<Message<String>> messages = receive(from(SubscriptionType.Exclusive).subscribe(), 2);
        Message<String> message = messages.get(0);
        assertTrue(message.hasBase64EncodedKey());
        assertArrayEquals(new byte[] {0, -1, 7}, message.getKeyBytes());
        assertArrayEquals(new byte[] {9, 8}, message.getOrderingKey());
        assertEquals(1_234_567L, message.getEventTime());
        assertEquals(Map.of("a", "1", "ünï", "çödé"), message.getProperties());
        assertEquals(77, message.getSequenceId());
        assertEquals(topic + "-p", message.getProducerName());
        assertFalse(message.isReplicated());
        assertNull(messages.get(1).getValue(), "a tombstone is null, not empty");
        assertNotEquals(0, message.getPublishTime());
    }

    @Test
    void aRouterAndLazyProducersOfPartitions() throws Exception {
        admin().topics().createPartitionedTopic(topic, 4);
        Producer<String> producer = unbatched().messageRoutingMode(MessageRoutingMode.CustomPartition)
                .enableLazyStartPartitionedProducers(true)
                .messageRouter(new MessageRouter() {
                    @Override
                    public int choosePartition(Message<?> message, TopicMetadata metadata) {
                        // a lazy producer asks once without a key, to find the partition to begin with
                        return message.hasKey() ? Integer.parseInt(message.getKey()) % metadata.numPartitions() : 0;
                    }
                }).create();
        for (int number = 0; number < 12; number++) {
            MessageIdAdv id = (MessageIdAdv) producer.newMessage().key("" + number).value("v").send();
            assertEquals(number % 4, id.getPartitionIndex());
        }
        assertEquals(12, receive(from(SubscriptionType.Shared).subscribe(), 12).size());
    }

    @Test
    void duplicatesGetAReceiptWithoutAnId() throws Exception {
        String namespace = newNamespace();
        admin().namespaces().setDeduplicationStatus(namespace, true);
        topic = "persistent://" + namespace + "/dedup";
        Producer<String> producer = unbatched().producerName("p").sendTimeout(0, java.util.concurrent.TimeUnit.SECONDS).create();
        for (int number = 0; number < 5; number++) {
            producer.newMessage().sequenceId(number * 10).value("" + number).send();
        }
        for (int number = 3; number < 6; number++) {
            MessageIdAdv id = (MessageIdAdv) producer.newMessage().sequenceId(number * 10).value("" + number).send();
            assertEquals(number < 5, id.getLedgerId() == -1 && id.getEntryId() == -1, "receipt of " + number + ": " + id);
        }
        producer.close();
        assertEquals(50, unbatched().producerName("p").create().getLastSequenceId(), "a new producer goes on after it");
        assertEquals(numbers(0, 6), values(receive(from(SubscriptionType.Exclusive).subscribe(), 6)));
    }
}
