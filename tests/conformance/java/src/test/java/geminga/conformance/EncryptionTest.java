package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.security.Key;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.ConsumerCryptoFailureAction;
import org.apache.pulsar.client.api.CryptoKeyReader;
import org.apache.pulsar.client.api.EncryptionKeyInfo;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.common.api.EncryptionContext;
import org.junit.jupiter.api.Test;

/** The client encrypts; the server hands through what it cannot read. */
class EncryptionTest extends Judge {
    private static final KeyPair PAIR = pair();

    private static KeyPair pair() {
        try {
            KeyPairGenerator generator = KeyPairGenerator.getInstance("RSA");
            generator.initialize(2048);
            return generator.generateKeyPair();
        } catch (java.security.NoSuchAlgorithmException error) {
            throw new IllegalStateException(error);
        }
    }

    private static EncryptionKeyInfo pem(String kind, Key key) {
        String text = "-----BEGIN " + kind + " KEY-----\n"
                + Base64.getMimeEncoder(64, "\n".getBytes(StandardCharsets.US_ASCII)).encodeToString(key.getEncoded())
                + "\n-----END " + kind + " KEY-----\n";
        return new EncryptionKeyInfo(text.getBytes(StandardCharsets.US_ASCII), Map.of("version", "1"));
    }

    static final class Keys implements CryptoKeyReader {
        @Override
        public EncryptionKeyInfo getPublicKey(String name, Map<String, String> metadata) {
            return pem("PUBLIC", PAIR.getPublic());
        }

        @Override
        public EncryptionKeyInfo getPrivateKey(String name, Map<String, String> metadata) {
            return pem("PRIVATE", PAIR.getPrivate());
        }
    }

    private Producer<String> encrypting(boolean batched) throws PulsarClientException {
        return (batched ? batches() : unbatched()).cryptoKeyReader(new Keys()).addEncryptionKey("test.key").create();
    }

    @Test
    void whoHasTheKeyReads() throws Exception {
        send(encrypting(false), 0, 5);
        send(encrypting(true), 5, 10);
        Consumer<String> consumer = from(SubscriptionType.Exclusive).cryptoKeyReader(new Keys()).subscribe();
        assertEquals(numbers(0, 10), values(take(consumer, 10)));
    }

    @Test
    void withoutTheKeyTheContextComesThrough() throws Exception {
        Producer<String> producer = encrypting(false);
        producer.newMessage().key("k").property("p", "q").value("secret").send();
        send(encrypting(true), 0, 5);
        Consumer<byte[]> consumer = client.newConsumer().topic(topic).subscriptionName("raw")
                .subscriptionInitialPosition(org.apache.pulsar.client.api.SubscriptionInitialPosition.Earliest)
                .cryptoFailureAction(ConsumerCryptoFailureAction.CONSUME).subscribe();
        List<Message<byte[]>> messages = take(consumer, 2);
        Message<byte[]> single = messages.get(0);
        EncryptionContext context = single.getEncryptionCtx().orElseThrow();
        assertEquals(1, context.getKeys().size());
        assertEquals(Map.of("version", "1"), context.getKeys().get("test.key").getMetadata());
        assertTrue(context.getKeys().get("test.key").getKeyValue().length >= 128);
        assertTrue(context.getParam().length > 0);
        assertFalse(new String(single.getData(), StandardCharsets.ISO_8859_1).contains("secret"));
        assertEquals("k", single.getKey());
        assertEquals("q", single.getProperty("p"));
        assertEquals(5, messages.get(1).getEncryptionCtx().orElseThrow().getBatchSize().orElse(0), "a batch stays one message");
    }

    @Test
    void discardingWithoutTheKeyAcknowledges() throws Exception {
        send(encrypting(false), 0, 3);
        producer().send("plain");
        Consumer<String> consumer = from(SubscriptionType.Exclusive)
                .cryptoFailureAction(ConsumerCryptoFailureAction.DISCARD).subscribe();
        assertEquals(List.of("plain"), values(take(consumer, 1)));
        eventually("nothing is left", () -> backlog("s") == 0);
    }

    @Test
    void aNamespaceCanRequireIt() throws Exception {
        String namespace = newNamespace();
        admin().namespaces().setEncryptionRequiredStatus(namespace, true);
        topic = "persistent://" + namespace + "/t";
        assertThrows(PulsarClientException.class, this::producer);
        send(encrypting(false), 0, 2);
        Consumer<String> consumer = from(SubscriptionType.Exclusive).cryptoKeyReader(new Keys()).subscribe();
        assertEquals(numbers(0, 2), values(take(consumer, 2)));
    }
}
