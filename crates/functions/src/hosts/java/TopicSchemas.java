package geminga;

import geminga.Blocks.Block;
import java.lang.reflect.*;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.*;
import java.util.concurrent.*;

/**
 * Values by the schemas that their topics have: what Pulsar calls AUTO_CONSUME. Pulsar's own client decodes;
 * each schema is asked for once, of the worker.
 */
final class TopicSchemas extends Values.Named {
    private static final Set<String> GENERIC = Set.of("org.apache.pulsar.client.api.schema.GenericRecord",
            "org.apache.pulsar.client.api.schema.GenericObject");
    private static final String CLIENT = "org.apache.pulsar.client.impl.schema.";

    private final Worker worker;
    private final Constructor<?> auto, info;
    private final Method decode, at, provide, typeOf;
    private final Class<?> provider;
    /** By topic: Pulsar's AutoConsumeSchema, which has all versions. */
    private final Map<String, Object> topics = new ConcurrentHashMap<>();

    TopicSchemas(Worker worker) throws Exception {
        super("message of its topic's schema");
        this.worker = worker;
        ClassLoader loader = worker.loader;
        Class<?> type;
        try {
            type = Class.forName(CLIENT + "AutoConsumeSchema", true, loader);
        } catch (ClassNotFoundException missing) {
            throw new IllegalArgumentException("a function of GenericRecord needs Pulsar's client on the class path", missing);
        }
        Class<?> schema = Class.forName(Host.SCHEMA, true, loader);
        Class<?> kind = Class.forName("org.apache.pulsar.common.schema.SchemaType", true, loader);
        provider = Class.forName("org.apache.pulsar.client.api.schema.SchemaInfoProvider", true, loader);
        auto = type.getConstructor();
        decode = schema.getMethod("decode", byte[].class, byte[].class);
        at = type.getMethod("atSchemaVersion", byte[].class);
        provide = schema.getMethod("setSchemaInfoProvider", provider);
        typeOf = kind.getMethod("valueOf", int.class);
        info = Class.forName(CLIENT + "SchemaInfoImpl", true, loader)
                .getConstructor(String.class, byte[].class, kind, long.class, Map.class);
    }

    /** Whether values of this type say themselves what they hold. */
    static boolean isGeneric(Type type) {
        return GENERIC.contains(Types.raw(type).getName());
    }

    /** The version that a message names; null for one that was sent without a schema. */
    static byte[] version(Worker.In in) {
        return in.get("schemaVersion") == null ? null : Base64.getDecoder().decode(in.get("schemaVersion"));
    }

    @Override
    public Object decode(Worker.In in, byte[] payload) throws Exception {
        return decode.invoke(of(in.get("topic")), payload, version(in));
    }

    @Override
    public Object schema(Worker.In in) throws Exception {
        return at.invoke(of(in.get("topic")), (Object) version(in));
    }

    @Override
    public Object decode(byte[] payload) {
        throw new IllegalStateException("a message without a topic has no schema");
    }

    @Override
    public byte[] encode(Object value) {
        throw new IllegalStateException("a GenericRecord is no output: return bytes or an object, or send by `newOutputMessage`");
    }

    private Object of(String topic) throws Exception {
        Object known = topics.get(topic);
        if (known != null) return known;
        Object made = auto.newInstance();
        provide.invoke(made, Types.proxy(provider, new Provider(topic)));
        Object before = topics.putIfAbsent(topic, made);
        return before == null ? made : before;
    }

    /** Pulsar's SchemaInfoProvider of one topic. */
    private final class Provider implements InvocationHandler {
        private final String topic;
        private final Map<ByteBuffer, Object> known = new ConcurrentHashMap<>();

        Provider(String topic) {
            this.topic = topic;
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = Types.ofObject(self, method, a, "schemas of " + topic);
            if (plain != null) return plain;
            switch (method.getName()) {
                case "getTopicName": return topic;
                case "getLatestSchema": return later(null);
                case "getSchemaByVersion": {
                    byte[] version = (byte[]) a[0];
                    // It was sent without a schema: bytes.
                    if (version == null || version.length == 0) return CompletableFuture.completedFuture(null);
                    Object schema = known.get(ByteBuffer.wrap(version));
                    if (schema != null) return CompletableFuture.completedFuture(schema);
                    CompletableFuture<Object> asked = later(version);
                    if (!asked.isCompletedExceptionally() && asked.join() != null) known.put(ByteBuffer.wrap(version), asked.join());
                    return asked;
                }
                default: throw Types.notHere(method);
            }
        }

        private CompletableFuture<Object> later(byte[] version) {
            try {
                return CompletableFuture.completedFuture(ask(version));
            } catch (Exception error) {
                return CompletableFuture.failedFuture(error);
            }
        }

        private Object ask(byte[] version) throws Exception {
            Block question = new Block().add("op", "schema.get").add("topic", topic);
            if (version != null) question.add("schemaVersion", Base64.getEncoder().encodeToString(version));
            byte[] answer = worker.wire.ask(question);
            if (answer == null) return null;
            int start = 4 + ByteBuffer.wrap(answer).order(ByteOrder.LITTLE_ENDIAN).getInt();
            String name = "";
            int type = 0;
            Map<String, String> properties = new HashMap<>();
            for (String[] pair : Blocks.parse(answer, 4, start)) {
                if (pair[0].equals("name")) name = pair[1];
                if (pair[0].equals("type")) type = Integer.parseInt(pair[1]);
                if (pair[0].startsWith("prop.")) properties.put(pair[0].substring(5), pair[1]);
            }
            byte[] definition = Arrays.copyOfRange(answer, start, answer.length);
            return info.newInstance(name, definition, typeOf.invoke(null, type), 0L, properties);
        }
    }
}
