package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.KeySharedPolicy;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Range;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.client.impl.Murmur3Hash32;
import org.junit.jupiter.api.Test;

class KeySharedTest extends Judge {
    private Consumer<String> sticky(int from, int to) throws PulsarClientException {
        return from(SubscriptionType.Key_Shared)
                .keySharedPolicy(KeySharedPolicy.stickyHashRange().ranges(Range.of(from, to))).subscribe();
    }

    /** Where Pulsar puts a key on its ring of 65536. */
    private static int hash(String key) {
        return Murmur3Hash32.getInstance().makeHash(key.getBytes(StandardCharsets.UTF_8)) % 65536;
    }

    private static void sendKeys(Producer<String> producer, int from, int to, int keys) throws Exception {
        for (int number = from; number < to; number++) {
            producer.newMessage().key("k" + number % keys).value("" + number).sendAsync();
        }
        producer.flush();
    }

    @Test
    void stickyRangesGetTheirHashes() throws Exception {
        Consumer<String> low = sticky(0, 20_000);
        Consumer<String> high = sticky(20_001, 65_535);
        sendKeys(producer(), 0, 100, 100);
        Set<String> lowKeys = new HashSet<>();
        for (int number = 0; number < 100; number++) {
            if (hash("k" + number) <= 20_000) {
                lowKeys.add("k" + number);
            }
        }
        Set<String> got = new HashSet<>();
        take(low, lowKeys.size()).forEach(message -> got.add(message.getKey()));
        assertEquals(lowKeys, got);
        assertEquals(100 - lowKeys.size(), take(high, 100 - lowKeys.size()).size());
    }

    @Test
    void overlappingStickyRangesAreRefused() throws Exception {
        sticky(0, 100);
        assertThrows(PulsarClientException.class, () -> sticky(50, 200));
        sticky(101, 200);
    }

    @Test
    void hashZeroCountsAsOne() throws Exception {
        String zero = null;
        for (int number = 0; zero == null; number++) {
            zero = hash("z" + number) == 0 ? "z" + number : null;
        }
        Consumer<String> ofZero = sticky(0, 0);
        Consumer<String> ofRest = sticky(1, 65_535);
        producer().newMessage().key(zero).value("v").send();
        assertEquals("v", next(ofRest).getValue());
        nothing(ofZero);
    }

    @Test
    void messagesWithoutKeyGoByProducerAndSequence() throws Exception {
        Consumer<String> low = sticky(0, 32_767);
        Consumer<String> high = sticky(32_768, 65_535);
        send(unbatched().producerName("p").create(), 0, 20);
        List<String> lows = numbers(0, 20).stream().filter(number -> hash("p-" + number) < 32_768).toList();
        assertEquals(lows, values(take(low, lows.size())));
        assertEquals(20 - lows.size(), take(high, 20 - lows.size()).size());
    }

    @Test
    void outOfOrderIsAllowedWhereAsked() throws Exception {
        Consumer<String> first = from(SubscriptionType.Key_Shared)
                .keySharedPolicy(KeySharedPolicy.autoSplitHashRange().setAllowOutOfOrderDelivery(true)).subscribe();
        Producer<String> producer = producer();
        sendKeys(producer, 0, 20, 20);
        receive(first, 20);
        Consumer<String> second = from(SubscriptionType.Key_Shared)
                .keySharedPolicy(KeySharedPolicy.autoSplitHashRange().setAllowOutOfOrderDelivery(true)).subscribe();
        // the first one still holds a message of each key; nobody waits for that
        sendKeys(producer, 20, 40, 20);
        int moved = 0;
        int kept = 0;
        for (int tries = 0; moved + kept < 20 && tries < 200; tries++) {
            kept += first.receive(20, TimeUnit.MILLISECONDS) == null ? 0 : 1;
            moved += second.receive(20, TimeUnit.MILLISECONDS) == null ? 0 : 1;
        }
        assertEquals(20, moved + kept);
        assertTrue(moved > 0, "keys moved to the new consumer at once");
    }

    @Test
    void keysMoveOnlyWhenTheyAreDrained() throws Exception {
        Consumer<String> first = from(SubscriptionType.Key_Shared).isAckReceiptEnabled(true).subscribe();
        Producer<String> producer = producer();
        sendKeys(producer, 0, 40, 20);
        List<Message<String>> held = receive(first, 40);
        Consumer<String> second = from(SubscriptionType.Key_Shared).isAckReceiptEnabled(true).subscribe();
        sendKeys(producer, 40, 80, 20);
        nothing(second);
        for (Message<String> message : held) {
            first.acknowledge(message);
        }
        Map<String, Integer> last = new HashMap<>();
        Map<String, Set<Consumer<String>>> owners = new HashMap<>();
        int[] count = {0};
        eventually("all come", () -> {
            for (Consumer<String> consumer : List.of(first, second)) {
                Message<String> message = consumer.receive(10, TimeUnit.MILLISECONDS);
                if (message != null) {
                    int number = Integer.parseInt(message.getValue());
                    assertTrue(last.getOrDefault(message.getKey(), -1) < number, "order within " + message.getKey());
                    last.put(message.getKey(), number);
                    owners.computeIfAbsent(message.getKey(), key -> new HashSet<>()).add(consumer);
                    consumer.acknowledge(message);
                    count[0]++;
                }
            }
            return count[0] == 40;
        });
        assertTrue(owners.values().stream().allMatch(of -> of.size() == 1), "one owner for each key");
        assertTrue(owners.values().stream().anyMatch(of -> of.contains(second)), "the new consumer has some");
    }

    @Test
    void messagesOfALeavingConsumerGoFirstToTheNextOwner() throws Exception {
        Consumer<String> first = from(SubscriptionType.Key_Shared).consumerName("a").subscribe();
        Producer<String> producer = producer();
        sendKeys(producer, 0, 30, 3);
        receive(first, 30);
        Consumer<String> second = from(SubscriptionType.Key_Shared).consumerName("b").subscribe();
        first.close();
        sendKeys(producer, 30, 60, 3);
        Map<String, Integer> last = new HashMap<>();
        for (Message<String> message : take(second, 60)) {
            int number = Integer.parseInt(message.getValue());
            assertEquals(last.getOrDefault(message.getKey(), number % 3 - 3) + 3, number, "no gap, no reorder in " + message.getKey());
            last.put(message.getKey(), number);
        }
    }

    @Test
    void theOrderingKeyDecidesBeforeTheKey() throws Exception {
        Consumer<String> low = sticky(0, 32_767);
        Consumer<String> high = sticky(32_768, 65_535);
        String lowKey = null;
        String highKey = null;
        for (int number = 0; lowKey == null || highKey == null; number++) {
            if (hash("k" + number) < 32_768) {
                lowKey = "k" + number;
            } else {
                highKey = "k" + number;
            }
        }
        Producer<String> producer = producer();
        producer.newMessage().key(lowKey).orderingKey(highKey.getBytes(StandardCharsets.UTF_8)).value("1").send();
        producer.newMessage().key(highKey).orderingKey(lowKey.getBytes(StandardCharsets.UTF_8)).value("2").send();
        assertEquals("1", next(high).getValue());
        assertEquals("2", next(low).getValue());
    }
}
