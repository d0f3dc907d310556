package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.time.Instant;
import java.time.LocalDate;
import java.util.List;
import java.util.Objects;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionInitialPosition;
import org.apache.pulsar.client.api.schema.GenericRecord;
import org.apache.pulsar.client.api.schema.SchemaDefinition;
import org.apache.pulsar.common.policies.data.SchemaCompatibilityStrategy;
import org.apache.pulsar.common.schema.KeyValue;
import org.apache.pulsar.common.schema.KeyValueEncodingType;
import org.apache.pulsar.common.schema.SchemaInfo;
import org.apache.pulsar.common.schema.SchemaType;
import org.junit.jupiter.api.Test;

class SchemaTest extends Judge {
    public static class Quake {
        public String place;
        public double magnitude;

        public Quake() {
        }

        Quake(String place, double magnitude) {
            this.place = place;
            this.magnitude = magnitude;
        }

        @Override
        public boolean equals(Object other) {
            return other instanceof Quake quake && Objects.equals(place, quake.place) && magnitude == quake.magnitude;
        }

        @Override
        public int hashCode() {
            return Objects.hash(place, magnitude);
        }
    }

    /** Records of the same name, as they are after a change. */
    public static class Later {
        /** With a field that may be absent. */
        public static class Quake {
            public String place;
            public double magnitude;
            public Double depth;
        }
    }

    public static class Broken {
        /** Not to be read as the first, nor the first as this. */
        public static class Quake {
            public int place;
        }
    }

    private <T> Consumer<T> consumer(Schema<T> schema, String name) throws PulsarClientException {
        return client.newConsumer(schema).topic(topic).subscriptionName(name)
                .subscriptionInitialPosition(SubscriptionInitialPosition.Earliest).subscribe();
    }

    private <T> Producer<T> producer(Schema<T> schema) throws PulsarClientException {
        return client.newProducer(schema).topic(topic).create();
    }

    private void inNamespaceWith(SchemaCompatibilityStrategy strategy) throws Exception {
        String namespace = newNamespace();
        admin().namespaces().setSchemaCompatibilityStrategy(namespace, strategy);
        topic = "persistent://" + namespace + "/t";
    }

    @Test
    void recordsOfAvroAndJson() throws Exception {
        String base = topic;
        for (Schema<Quake> schema : List.of(Schema.AVRO(Quake.class), Schema.JSON(Quake.class))) {
            topic = base + "-" + schema.getSchemaInfo().getType();
            Consumer<Quake> consumer = consumer(schema, "s");
            producer(schema).send(new Quake("Lima", 7.5));
            assertEquals(new Quake("Lima", 7.5), next(consumer).getValue());
            SchemaInfo kept = admin().schemas().getSchemaInfo(topic);
            assertEquals(schema.getSchemaInfo().getType(), kept.getType());
            assertEquals(schema.getSchemaInfo().getSchemaDefinition(), kept.getSchemaDefinition());
        }
    }

    private <T> void trip(Schema<T> schema, T value) throws Exception {
        Consumer<T> consumer = consumer(schema, "s");
        producer(schema).send(value);
        assertEquals(value, next(consumer).getValue());
    }

    @Test
    void primitives() throws Exception {
        String base = topic;
        int number = 0;
        for (Object[] each : new Object[][] {{Schema.STRING, "ü"}, {Schema.INT8, (byte) -3}, {Schema.INT16, (short) 300},
            {Schema.INT32, -70_000}, {Schema.INT64, 1L << 40}, {Schema.BOOL, true}, {Schema.FLOAT, 1.5f}, {Schema.DOUBLE, -2.25},
            {Schema.LOCAL_DATE, LocalDate.of(2024, 2, 29)}, {Schema.INSTANT, Instant.ofEpochSecond(5, 7)}}) {
            topic = base + "-" + number++;
            @SuppressWarnings("unchecked")
            Schema<Object> schema = (Schema<Object>) each[0];
            trip(schema, each[1]);
            assertEquals(schema.getSchemaInfo().getType(), admin().schemas().getSchemaInfo(topic).getType());
        }
    }

    @Test
    void evolutionKeepsEveryVersionReadable() throws Exception {
        inNamespaceWith(SchemaCompatibilityStrategy.BACKWARD);
        producer(Schema.AVRO(Quake.class)).send(new Quake("Lima", 7.5));
        Schema<Later.Quake> newer = Schema.AVRO(SchemaDefinition.<Later.Quake>builder().withPojo(Later.Quake.class)
                .withAlwaysAllowNull(true).build());
        Later.Quake deep = new Later.Quake();
        deep.place = "Quito";
        deep.depth = 33.0;
        producer(newer).send(deep);
        assertEquals(2, admin().schemas().getAllSchemas(topic).size());
        Consumer<Later.Quake> consumer = consumer(newer, "s");
        Message<Later.Quake> first = next(consumer);
        Message<Later.Quake> second = next(consumer);
        assertEquals("Lima", first.getValue().place);
        assertEquals(null, first.getValue().depth);
        assertEquals(33.0, second.getValue().depth);
        assertArrayEquals(ByteBuffer.allocate(8).putLong(0).array(), first.getSchemaVersion());
        assertArrayEquals(ByteBuffer.allocate(8).putLong(1).array(), second.getSchemaVersion());
        assertThrows(PulsarClientException.IncompatibleSchemaException.class, () -> producer(Schema.AVRO(Broken.Quake.class)));
    }

    @Test
    void incompatibleOnesAreRefused() throws Exception {
        producer(Schema.AVRO(Quake.class));
        assertThrows(PulsarClientException.IncompatibleSchemaException.class, () -> producer(Schema.AVRO(Broken.Quake.class)));
        assertThrows(PulsarClientException.IncompatibleSchemaException.class, () -> producer(Schema.STRING));
        assertThrows(PulsarClientException.IncompatibleSchemaException.class, () -> consumer(Schema.JSON(Quake.class), "j"));
        assertThrows(PulsarClientException.IncompatibleSchemaException.class, () -> consumer(Schema.AVRO(Broken.Quake.class), "o"));
    }

    @Test
    void anythingGoesWhereAlwaysCompatible() throws Exception {
        inNamespaceWith(SchemaCompatibilityStrategy.ALWAYS_COMPATIBLE);
        producer(Schema.AVRO(Quake.class)).send(new Quake("Lima", 7.5));
        producer(Schema.AVRO(Broken.Quake.class)).send(new Broken.Quake());
        producer(Schema.STRING).send("text");
        assertEquals(3, admin().schemas().getAllSchemas(topic).size());
    }

    @Test
    void noNewOnesWhereUpdatesAreOff() throws Exception {
        inNamespaceWith(SchemaCompatibilityStrategy.BACKWARD);
        producer(Schema.AVRO(Quake.class));
        admin().namespaces().setIsAllowAutoUpdateSchema(topic.substring("persistent://".length(), topic.lastIndexOf('/')), false);
        eventually("the policy is in force", () -> {
            try {
                producer(Schema.AVRO(Later.Quake.class));
                return false;
            } catch (PulsarClientException.IncompatibleSchemaException refused) {
                return true;
            }
        });
        producer(Schema.AVRO(Quake.class)).send(new Quake("Lima", 7.5));
    }

    @Test
    void validationKeepsBytesOut() throws Exception {
        inNamespaceWith(SchemaCompatibilityStrategy.FULL);
        admin().namespaces().setSchemaValidationEnforced(topic.substring("persistent://".length(), topic.lastIndexOf('/')), true);
        producer(Schema.AVRO(Quake.class));
        eventually("the policy is in force", () -> {
            try {
                producer(Schema.BYTES).close();
                return false;
            } catch (PulsarClientException.IncompatibleSchemaException refused) {
                return true;
            }
        });
    }

    @Test
    void aConsumerCannotTypeATopicInUse() throws Exception {
        producer(Schema.BYTES).send(new byte[] {1});
        assertThrows(PulsarClientException.IncompatibleSchemaException.class, () -> consumer(Schema.AVRO(Quake.class), "s"));
    }

    @Test
    void keysAndValues() throws Exception {
        String base = topic;
        for (KeyValueEncodingType encoding : KeyValueEncodingType.values()) {
            topic = base + "-" + encoding;
            Schema<KeyValue<String, Quake>> schema = Schema.KeyValue(Schema.STRING, Schema.AVRO(Quake.class), encoding);
            Consumer<KeyValue<String, Quake>> consumer = consumer(schema, "s");
            producer(schema).newMessage().value(new KeyValue<>("key", new Quake("Lima", 1))).send();
            Message<KeyValue<String, Quake>> message = next(consumer);
            assertEquals("key", message.getValue().getKey());
            assertEquals(new Quake("Lima", 1), message.getValue().getValue());
            assertEquals(encoding == KeyValueEncodingType.SEPARATED, message.hasKey());
            assertEquals(SchemaType.KEY_VALUE, admin().schemas().getSchemaInfo(topic).getType());
        }
    }

    @Test
    void consumersThatTakeWhatComes() throws Exception {
        Consumer<GenericRecord> consumer = null;
        producer(Schema.AVRO(Quake.class)).send(new Quake("Lima", 7.5));
        consumer = consumer(Schema.AUTO_CONSUME(), "s");
        GenericRecord record = next(consumer).getValue();
        assertEquals(SchemaType.AVRO, record.getSchemaType());
        assertEquals("Lima", record.getField("place"));
        assertEquals(7.5, record.getField("magnitude"));
        topic = topic + "-primitive";
        producer(Schema.INT32).send(17);
        assertEquals(17, next(consumer(Schema.AUTO_CONSUME(), "s")).getValue().getNativeObject());
    }

    @Test
    void producersOfWhateverTheTopicHas() throws Exception {
        Schema<Quake> schema = Schema.AVRO(Quake.class);
        Consumer<Quake> consumer = consumer(schema, "s");
        Producer<byte[]> producer = producer(Schema.AUTO_PRODUCE_BYTES());
        producer.send(schema.encode(new Quake("Lima", 7.5)));
        assertEquals(new Quake("Lima", 7.5), next(consumer).getValue());
        assertThrows(RuntimeException.class, () -> {
            try {
                producer.send(new byte[] {});
            } catch (PulsarClientException refused) {
                throw new RuntimeException(refused);
            }
        });
    }

    @Test
    void oneProducerOfSeveralSchemas() throws Exception {
        inNamespaceWith(SchemaCompatibilityStrategy.ALWAYS_COMPATIBLE);
        Producer<Quake> producer = client.newProducer(Schema.AVRO(Quake.class)).topic(topic).enableMultiSchema(true).create();
        producer.newMessage().value(new Quake("Lima", 7.5)).send();
        Later.Quake deep = new Later.Quake();
        deep.place = "Quito";
        producer.newMessage(Schema.AVRO(Later.Quake.class)).value(deep).send();
        assertEquals(2, admin().schemas().getAllSchemas(topic).size());
        Consumer<GenericRecord> consumer = consumer(Schema.AUTO_CONSUME(), "s");
        assertEquals("Lima", next(consumer).getValue().getField("place"));
        GenericRecord second = next(consumer).getValue();
        assertEquals("Quito", second.getField("place"));
        assertTrue(second.getFields().stream().anyMatch(field -> field.getName().equals("depth")));
    }
}
