package geminga;

import geminga.Blocks.Block;
import geminga.Blocks.Facts;
import geminga.Worker.In;
import java.io.*;
import java.lang.reflect.*;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.*;

/** The objects that a function sees: Pulsar's interfaces, met by proxies. */
final class Calls {
    private static final String API_CLIENT = "org.apache.pulsar.client.api.";

    private Calls() {}

    /** Pulsar's Context: of one message, or of whichever message the calling thread has in hand. */
    static final class OfContext implements InvocationHandler {
        private final Worker worker;
        private final In own;

        OfContext(Worker worker, In own) {
            this.worker = worker;
            this.own = own;
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = Types.ofObject(self, method, a, "Context of " + worker.facts.get("name"));
            if (plain != null) return plain;
            String name = method.getName();
            Facts facts = worker.facts;
            In in = own == null ? worker.current.get() : own;
            switch (name) {
                case "getTenant": return facts.get("tenant");
                case "getNamespace": return facts.get("namespace");
                case "getFunctionName": return facts.get("name");
                case "getFunctionId": return facts.get("functionId");
                case "getFunctionVersion": return facts.get("version");
                case "getInstanceId": return Integer.parseInt(facts.get("instance"));
                case "getNumInstances": return Integer.parseInt(facts.get("instances"));
                case "getInputTopics": return Collections.unmodifiableList(facts.inputs);
                case "getOutputTopic": return facts.get("output").isEmpty() ? null : facts.get("output");
                case "getOutputSchemaType": return facts.get("outputSchema").isEmpty() ? null : facts.get("outputSchema");
                case "getCurrentRecord":
                    return in == null ? null : Types.proxy(worker.contextType.getClassLoader(), Host.API + "Record", new OfRecord(worker, in));
                case "getLogger": return worker.logger;
                case "getUserConfigMap": return worker.userConfig;
                case "getUserConfigValue": return Optional.ofNullable(worker.userConfig.get(a[0]));
                case "getUserConfigValueOrDefault": return worker.userConfig.getOrDefault(a[0], a[1]);
                case "getSecret": return facts.values.get("secret." + a[0]);
                case "recordMetric":
                    worker.wire.send('M', new Block().add("name", a[0]).add("value", a[1]), new byte[0]);
                    return null;
                case "publish": {
                    Object with = a.length > 2 ? a[2] : null;
                    Values.Codec codec = with instanceof String ? Values.ofName((String) with, a[1], worker.loader) : Values.ofSchema(with);
                    Block block = new Block().add("topic", a[0]);
                    if (with != null) Values.mark(block, codec, worker.schemas);
                    return worker.publish(in, block, codec.encode(a[1]));
                }
                case "newOutputMessage":
                    return Types.proxy(worker.contextType.getClassLoader(), "org.apache.pulsar.client.api.TypedMessageBuilder",
                            new OfMessage(worker, in, (String) a[0], a[1]));
                case "newOutputRecordBuilder": {
                    Class<?> builder = Class.forName(Host.API + "utils.FunctionRecord", true, worker.contextType.getClassLoader());
                    for (Method from : builder.getMethods()) {
                        if (from.getName().equals("from") && from.getParameterCount() == 2) {
                            return from.invoke(null, self, a[0]);
                        }
                    }
                    throw Types.notHere(method);
                }
                case "getStateStore": return store(method, a);
                case "fatal":
                    ((Throwable) a[0]).printStackTrace();
                    System.err.flush();
                    // What ended before is not tried again.
                    worker.wire.flush();
                    Runtime.getRuntime().halt(1);
                    return null;
                default: return state(worker, in, method, a);
            }
        }

        /** The function's own state under Pulsar's other interface; it has no other store. */
        private Object store(Method method, Object[] a) throws ClassNotFoundException {
            Facts facts = worker.facts;
            List<String> own = List.of(facts.get("tenant"), facts.get("namespace"), facts.get("name"));
            List<String> wanted = a.length == 3 ? List.of((String) a[0], (String) a[1], (String) a[2])
                    : List.of(own.get(0), own.get(1), (String) a[0]);
            if (!wanted.equals(own)) {
                throw new IllegalArgumentException("there is no state store " + String.join("/", wanted) + ": a function has its own, "
                        + String.join("/", own));
            }
            ClassLoader loader = worker.contextType.getClassLoader();
            Class<?>[] types = {Class.forName(Host.API + "state.ByteBufferStateStore", true, loader),
                Class.forName(Host.API + "state.CounterStateStore", true, loader)};
            return Proxy.newProxyInstance(loader, types, new OfStore(worker, this.own, own));
        }
    }

    /** State by its methods' names, which Context and the stores share. */
    static Object state(Worker worker, In in, Method method, Object[] a) throws IOException {
        String name = method.getName();
        if (name.endsWith("Async")) {
            try {
                return CompletableFuture.completedFuture(state(worker, in, method, name.substring(0, name.length() - 5), a));
            } catch (IOException error) {
                return CompletableFuture.failedFuture(error);
            }
        }
        return state(worker, in, method, name, a);
    }

    private static Object state(Worker worker, In in, Method method, String name, Object[] a) throws IOException {
        Wire wire = worker.wire;
        switch (name) {
            case "putState":
            case "put":
                wire.send('Q', worker.about(in, "state.put", a[0]), Values.bytes((ByteBuffer) a[1]));
                return null;
            case "getState":
            case "get": {
                byte[] value = wire.ask(worker.about(in, "state.get", a[0]));
                return value == null ? null : ByteBuffer.wrap(value);
            }
            case "deleteState":
            case "delete":
                wire.send('Q', worker.about(in, "state.delete", a[0]), new byte[0]);
                return null;
            case "incrCounter":
                wire.send('Q', worker.about(in, "state.increment", a[0]).add("by", a[1]), new byte[0]);
                return null;
            case "getCounter": {
                byte[] value = wire.ask(worker.about(in, "state.get", a[0]));
                return value == null || value.length != 8 ? 0L : ByteBuffer.wrap(value).getLong();
            }
            default: throw Types.notHere(method);
        }
    }

    /** Pulsar's ByteBufferStateStore and CounterStateStore. */
    static final class OfStore implements InvocationHandler {
        private final Worker worker;
        private final In own;
        private final List<String> name;

        OfStore(Worker worker, In own, List<String> name) {
            this.worker = worker;
            this.own = own;
            this.name = name;
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = Types.ofObject(self, method, a, "StateStore " + String.join("/", name));
            if (plain != null) return plain;
            switch (method.getName()) {
                case "tenant": return name.get(0);
                case "namespace": return name.get(1);
                case "name": return name.get(2);
                case "fqsn": return String.join("/", name);
                case "init":
                case "close": return null;
                default: return state(worker, own == null ? worker.current.get() : own, method, a);
            }
        }
    }

    /** Pulsar's Record: the message in hand. */
    static final class OfRecord implements InvocationHandler {
        private final Worker worker;
        private final In in;

        OfRecord(Worker worker, In in) {
            this.worker = worker;
            this.in = in;
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = Types.ofObject(self, method, a, "Record " + in.get("id"));
            if (plain != null) return plain;
            switch (method.getName()) {
                case "getValue": return in.value;
                case "getKey": return Optional.ofNullable(in.key());
                case "getTopicName": return Optional.ofNullable(in.get("topic"));
                case "getPartitionId": return Optional.of(in.get("topic") + "-" + in.get("partition"));
                case "getPartitionIndex": return Optional.ofNullable(in.get("partition")).map(Integer::valueOf);
                case "getRecordSequence": return Optional.ofNullable(in.get("sequence")).map(Long::valueOf);
                case "getEventTime":
                    return Optional.ofNullable(in.get("eventTime")).map(Long::valueOf).filter(time -> time > 0);
                case "getProperties": return in.properties();
                case "ack":
                    worker.wire.send('Q', new Block().add("op", "ack").add("id", in.get("id")), new byte[0]);
                    return null;
                case "fail":
                    throw new IllegalStateException("Record.fail: throw an exception to fail a message");
                case "getSchema": return worker.codec(in).schema(in);
                case "getMessage": return Optional.of(Types.proxy(worker.loader, API_CLIENT + "Message", new OfInput(worker, in)));
                default:
                    if (method.getReturnType() == Optional.class) return Optional.empty();
                    throw Types.notHere(method);
            }
        }
    }

    /** Pulsar's Message: the one that a record is of. */
    static final class OfInput implements InvocationHandler {
        private final Worker worker;
        private final In in;

        OfInput(Worker worker, In in) {
            this.worker = worker;
            this.in = in;
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = Types.ofObject(self, method, a, "Message " + in.get("id"));
            if (plain != null) return plain;
            switch (method.getName()) {
                case "getValue": return in.value;
                case "getData": return in.payload();
                case "size": return in.payload().length;
                case "getTopicName": return in.get("topic");
                case "getMessageId": return messageId();
                case "getPublishTime": return number("publishTime");
                case "getEventTime": return number("eventTime");
                case "getSequenceId": return number("sequence");
                case "getProducerName": return in.get("producer");
                case "getRedeliveryCount": return (int) number("redelivery");
                case "getSchemaVersion": return TopicSchemas.version(in);
                case "getReaderSchema": return Optional.ofNullable(worker.codec(in).schema(in));
                case "getProperties": return in.properties();
                case "hasProperty": return in.properties().containsKey(a[0]);
                case "getProperty": return in.properties().get(a[0]);
                case "hasKey": return in.key() != null;
                case "getKey": return in.key();
                case "hasBase64EncodedKey": return in.get("key64") != null;
                case "getKeyBytes":
                    if (in.get("key64") != null) return Base64.getDecoder().decode(in.get("key64"));
                    return in.key() == null ? null : in.key().getBytes(StandardCharsets.UTF_8);
                case "hasOrderingKey": return in.get("orderingKey") != null;
                case "getOrderingKey":
                    return in.get("orderingKey") == null ? null : in.get("orderingKey").getBytes(StandardCharsets.UTF_8);
                // The memory is the collector's.
                case "release": return null;
                case "isReplicated":
                case "hasBrokerPublishTime":
                case "hasIndex": return false;
                case "getReplicatedFrom": return null;
                default:
                    if (method.getReturnType() == Optional.class) return Optional.empty();
                    throw Types.notHere(method);
            }
        }

        private long number(String name) {
            return in.get(name) == null ? 0 : Long.parseLong(in.get(name));
        }

        /** `ledger:entry:partition`, and `:index` for one of a batch. */
        private Object messageId() throws Exception {
            String[] parts = in.get("id").split(":");
            boolean batch = parts.length > 3;
            Class<?> type = Class.forName("org.apache.pulsar.client.impl." + (batch ? "BatchMessageIdImpl" : "MessageIdImpl"), true, worker.loader);
            long ledger = Long.parseLong(parts[0]), entry = Long.parseLong(parts[1]);
            int partition = Integer.parseInt(parts[2]);
            return batch ? type.getConstructor(long.class, long.class, int.class, int.class)
                            .newInstance(ledger, entry, partition, Integer.parseInt(parts[3]))
                    : type.getConstructor(long.class, long.class, int.class).newInstance(ledger, entry, partition);
        }
    }

    /** Pulsar's TypedMessageBuilder. */
    static final class OfMessage implements InvocationHandler {
        private final Worker worker;
        private final In in;
        private final Block block = new Block();
        private final Values.Codec codec;
        private byte[] payload = new byte[0];

        OfMessage(Worker worker, In in, String topic, Object schema) throws IOException {
            this.worker = worker;
            this.in = in;
            codec = Values.ofSchema(schema);
            block.add("topic", topic);
            Values.mark(block, codec, worker.schemas);
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = Types.ofObject(self, method, a, "an output message");
            if (plain != null) return plain;
            switch (method.getName()) {
                case "value": payload = codec.encode(a[0]); return self;
                case "key": block.add("key", a[0]); return self;
                case "keyBytes": block.add("key64", Base64.getEncoder().encodeToString((byte[]) a[0])); return self;
                case "orderingKey": block.add("orderingKey", new String((byte[]) a[0], StandardCharsets.UTF_8)); return self;
                case "property": block.add("prop." + a[0], a[1]); return self;
                case "properties":
                    ((Map<?, ?>) a[0]).forEach((name, value) -> block.add("prop." + name, value));
                    return self;
                case "eventTime": block.add("eventTime", a[0]); return self;
                case "sequenceId": block.add("sequence", a[0]); return self;
                case "deliverAfter": block.add("delayMs", ((TimeUnit) a[1]).toMillis((Long) a[0])); return self;
                case "deliverAt": block.add("delayMs", Math.max(0, (Long) a[0] - System.currentTimeMillis())); return self;
                case "send": worker.publish(in, block, payload).join(); return null;
                case "sendAsync": return worker.publish(in, block, payload).thenApply(done -> null);
                default: throw Types.notHere(method);
            }
        }
    }

    /** slf4j's Logger. */
    static final class OfLogger implements InvocationHandler {
        private final Wire wire;
        private final String name;

        OfLogger(Wire wire, String name) {
            this.wire = wire;
            this.name = name;
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = Types.ofObject(self, method, a, "Logger " + name);
            if (plain != null) return plain;
            String called = method.getName();
            if (called.equals("getName")) return name;
            if (called.startsWith("is")) return !called.equals("isTraceEnabled");
            if (!Set.of("trace", "debug", "info", "warn", "error").contains(called)) throw Types.notHere(method);
            int at = method.getParameterTypes()[0] == String.class ? 0 : 1;
            List<Object> values = new ArrayList<>();
            for (int i = at + 1; i < a.length; i++) {
                if (a[i] instanceof Object[]) values.addAll(Arrays.asList((Object[]) a[i])); else values.add(a[i]);
            }
            StringBuilder text = new StringBuilder();
            String format = String.valueOf(a[at]);
            int from = 0, used = 0;
            for (int hole; used < values.size() && (hole = format.indexOf("{}", from)) >= 0; from = hole + 2) {
                text.append(format, from, hole).append(values.get(used++));
            }
            text.append(format.substring(from));
            if (used < values.size() && values.get(values.size() - 1) instanceof Throwable) {
                StringWriter trace = new StringWriter();
                ((Throwable) values.get(values.size() - 1)).printStackTrace(new PrintWriter(trace));
                text.append('\n').append(trace);
            }
            wire.log(called.toUpperCase(Locale.ROOT), text.toString());
            return null;
        }
    }
}
