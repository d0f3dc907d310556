package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Consumer;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionInitialPosition;
import org.apache.pulsar.common.functions.ConsumerConfig;
import org.apache.pulsar.common.functions.FunctionConfig;
import org.apache.pulsar.common.functions.WindowConfig;
import org.apache.pulsar.functions.api.examples.pojo.AvroTestObject;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** The examples that Apache publishes, from its jar as it is: deployed by the admin client, asked by messages. */
class FunctionsTest extends Judge {
    private static final String PACKAGE = "org.apache.pulsar.functions.api.examples.";

    public static class Plain {
        public String value;
    }

    public static class Later {
        /** The same with one field more. */
        public static class Plain {
            public String value;
            public Integer more;
        }
    }

    private final List<String> made = new ArrayList<>();
    private String output;

    @BeforeEach
    void here() {
        org.junit.jupiter.api.Assumptions.assumeFalse(Server.isOutside(), "needs a functions worker; this server is not ours");
        output = topic + "-out";
    }

    @AfterEach
    void remove() throws Exception {
        for (String name : made) {
            admin().functions().deleteFunction("public", "default", name);
        }
    }

    private static String jar() {
        for (String entry : System.getProperty("java.class.path").split(java.io.File.pathSeparator)) {
            if (entry.contains("pulsar-functions-api-examples")) {
                return entry;
            }
        }
        throw new IllegalStateException("the examples are not on the class path");
    }

    private String create(String example, Consumer<FunctionConfig> change) throws Exception {
        FunctionConfig config = new FunctionConfig();
        config.setTenant("public");
        config.setNamespace("default");
        config.setName(topic);
        config.setClassName(PACKAGE + example);
        config.setInputs(Set.of(topic));
        config.setOutput(output);
        config.setRuntime(FunctionConfig.Runtime.JAVA);
        config.setSubscriptionPosition(SubscriptionInitialPosition.Earliest);
        change.accept(config);
        admin().functions().createFunction(config, jar());
        made.add(config.getName());
        return config.getName();
    }

    private org.apache.pulsar.client.api.Consumer<byte[]> results(String topic) throws PulsarClientException {
        return client.newConsumer().topic(topic).subscriptionName("s")
                .subscriptionInitialPosition(SubscriptionInitialPosition.Earliest).subscribe();
    }

    private static String text(Message<byte[]> message) {
        return new String(message.getData(), StandardCharsets.UTF_8);
    }

    private void sendAll(String... texts) throws Exception {
        try (Producer<String> producer = producer()) {
            for (String text : texts) {
                producer.send(text);
            }
        }
    }

    private long counter(String name, String key) throws Exception {
        try {
            return admin().functions().getFunctionState("public", "default", name, key).getNumberValue();
        } catch (org.apache.pulsar.client.admin.PulsarAdminException.NotFoundException none) {
            return 0;
        }
    }

    @Test
    void exclamation() throws Exception {
        create("ExclamationFunction", config -> { });
        sendAll("hello", "world");
        var out = results(output);
        assertEquals("hello!", text(next(out)));
        assertEquals("world!", text(next(out)));
    }

    @Test
    void userConfig() throws Exception {
        create("UserConfigFunction", config -> config.setUserConfig(Map.of("WhatToWrite", "this")));
        sendAll("hello");
        assertEquals("this", text(next(results(output))));
    }

    @Test
    void wordCount() throws Exception {
        String name = create("WordCountFunction", config -> { });
        sendAll("to be or not to be", "to do");
        eventually("the words are counted", () -> counter(name, "to") == 3 && counter(name, "be") == 2 && counter(name, "do") == 1);
    }

    @Test
    void context() throws Exception {
        String log = topic + "-log";
        String name = create("ContextFunction", config -> config.setLogTopic(log));
        var lines = results(log);
        sendAll("hello");
        String wanted = "\"hello\" has arrived on one of the following topics: persistent://public/default/" + topic;
        for (String line = ""; !line.contains(wanted); line = text(next(lines))) {
            assertTrue(line.length() < 10_000, line);
        }
        eventually("the metric is kept", () -> admin().functions().getFunctionStats("public", "default", name, 0)
                .getUserMetrics().toString().contains("function-" + name + "-messages-received"));
    }

    @Test
    void windows() throws Exception {
        String base = topic;
        for (String example : List.of("AddWindowFunction", "window.ContextWindowFunction")) {
            topic = base + "-" + example;
            output = topic + "-out";
            create(example, config -> config.setWindowConfig(
                    new WindowConfig().setWindowLengthCount(3).setSlidingIntervalCount(3)));
            sendAll("1", "2", "39", "4", "5", "6");
            var out = results(output);
            assertEquals("42", text(next(out)), example);
            assertEquals("15", text(next(out)), example);
        }
    }

    @Test
    void typesByTheirSerDe() throws Exception {
        String serde = PACKAGE + "serde.CustomObjectSerde";
        create("CustomObjectFunction", config -> {
            config.setInputs(null);
            config.setCustomSerdeInputs(Map.of(topic, serde));
            config.setOutputSerdeClassName(serde);
        });
        client.newProducer().topic(topic).create().send(ByteBuffer.allocate(8).putLong(1).array());
        assertEquals(101, ByteBuffer.wrap(next(results(output)).getData()).getLong());
    }

    @Test
    void typesByTheirSchema() throws Exception {
        create("AvroSchemaTestFunction", config -> {
            config.setInputs(null);
            config.setInputSpecs(Map.of(topic, ConsumerConfig.builder().schemaType("avro").build()));
            config.setOutputSchemaType("avro");
        });
        AvroTestObject object = new AvroTestObject();
        object.setBaseValue(1);
        object.setObjectValue("one");
        Schema<AvroTestObject> schema = Schema.AVRO(AvroTestObject.class);
        client.newProducer(schema).topic(topic).create().send(object);
        AvroTestObject answer = schema.decode(next(results(output)).getData());
        assertEquals(11, answer.getBaseValue());
        assertEquals("one", answer.getObjectValue());
    }

    private <T> void sendOne(Schema<T> schema, T value) throws Exception {
        try (Producer<T> producer = client.newProducer(schema).topic(topic).create()) {
            producer.newMessage().key("k").property("p", "v").value(value).send();
        }
    }

    /** Nobody says what the messages are but their own topic, whose schema changes. */
    @Test
    void schemasOfTheTopic() throws Exception {
        create("AutoSchemaFunction", config -> { });
        var out = results(output);
        Plain plain = new Plain();
        plain.value = "first";
        sendOne(Schema.AVRO(Plain.class), plain);
        assertEquals("value-first", text(next(out)));
        Later.Plain later = new Later.Plain();
        later.value = "second";
        later.more = 2;
        sendOne(Schema.AVRO(Later.Plain.class), later);
        assertEquals("value-second", text(next(out)));
        sendOne(Schema.AVRO(Plain.class), plain);
        assertEquals("value-first", text(next(out)));
    }

    @Test
    void messagesPassOnAsTheyAre() throws Exception {
        create("MergeTopicFunction", config -> { });
        Plain plain = new Plain();
        plain.value = "x";
        sendOne(Schema.JSON(Plain.class), plain);
        Message<byte[]> message = next(results(output));
        assertEquals("{\"value\":\"x\"}", text(message));
        assertEquals("persistent://public/default/" + topic, message.getProperty("__original_topic"));
        assertEquals("v", message.getProperty("p"));
        assertEquals("k", new String(message.getKeyBytes(), StandardCharsets.UTF_8));
    }
}
