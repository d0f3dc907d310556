package geminga;

import geminga.Blocks.Block;
import geminga.Blocks.Facts;
import geminga.Wire.Output;
import java.io.*;
import java.lang.reflect.*;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.*;

/** The function, and the messages that it is called with. */
final class Worker {
    final Wire wire;
    final Facts facts;
    /** The message in hand of this thread. */
    final ThreadLocal<In> current = new ThreadLocal<>();
    final Map<String, Object> userConfig;
    final Object logger;
    final Values.Codec output;
    final ClassLoader loader;
    final Schemas schemas;
    /** Pulsar's Context; null for a plain function, which sees none. */
    final Class<?> contextType;
    private final Object function;
    private final Call call;
    private final Object context;
    /** The function takes the messages of a window at once: as values, or as records when there is a type for them. */
    private final boolean windows;
    private final Class<?> recordType;
    private final Values.Codec input;
    private final Map<String, Values.Codec> inputs;
    private final Phaser running = new Phaser(1);

    interface Call {
        Object process(In in) throws Throwable;
    }

    /** A message in hand; its headers are read when somebody asks. */
    static final class In {
        final long number;
        private final byte[] body;
        private final int from, to;
        /** Where its payload ends in the body; it begins after the block. */
        private final int payloadTo;
        Object value;
        final List<Output> outputs = new ArrayList<>();
        /** Its outcome is said: what is published from now on belongs to no message. */
        boolean over;
        private Map<String, String> headers;

        In(long number, byte[] body, int from, int to, int payloadTo) {
            this.number = number;
            this.body = body;
            this.from = from;
            this.to = to;
            this.payloadTo = payloadTo;
        }

        byte[] payload() {
            return Arrays.copyOfRange(body, to, payloadTo);
        }

        synchronized Map<String, String> headers() {
            if (headers == null) {
                headers = new LinkedHashMap<>();
                for (String[] pair : Blocks.parse(body, from, to)) {
                    headers.put(pair[0], pair[1]);
                }
            }
            return headers;
        }

        String get(String name) {
            return headers().get(name);
        }

        /** Its key; base64 where it is bytes. */
        String key() {
            return get("key") != null ? get("key") : get("key64");
        }

        Map<String, String> properties() {
            Map<String, String> properties = new LinkedHashMap<>();
            headers().forEach((name, value) -> {
                if (name.startsWith("prop.")) properties.put(name.substring(5), value);
            });
            return properties;
        }
    }

    Worker(Wire wire, Facts facts) throws Exception {
        this.wire = wire;
        this.facts = facts;
        schemas = new Schemas(wire);
        @SuppressWarnings("unchecked")
        Map<String, Object> config = (Map<String, Object>) Json.parse(facts.values.getOrDefault("userConfig", "{}"));
        userConfig = config;
        String name = facts.get("className").isEmpty() ? classOfPackage() : facts.get("className");
        loader = ClassLoader.getSystemClassLoader();
        Class<?> type;
        try {
            type = Class.forName(name, true, loader);
        } catch (ClassNotFoundException missing) {
            throw new ClassNotFoundException("the package has no class `" + name + "`", missing);
        }
        Class<?> api = Types.named(type, Host.API + "Function");
        windows = facts.get("windows").equals("1");
        Class<?> windowApi = Types.named(type, Host.API + "WindowFunction");
        if (windowApi != null && !windows) {
            throw new IllegalArgumentException("`" + name + "` is a window function: it needs `windowConfig`");
        }
        if (windows && api != null) {
            throw new IllegalArgumentException("`" + name + "` takes one message at a time, and `windowConfig` is set");
        }
        if (api == null && windowApi == null && !java.util.function.Function.class.isAssignableFrom(type)) {
            throw new IllegalArgumentException("`" + name + "` implements neither java.util.function.Function nor "
                    + Host.API + "Function");
        }
        Constructor<?> constructor = type.getDeclaredConstructor();
        constructor.setAccessible(true);
        function = constructor.newInstance();
        if (windowApi != null) api = windowApi;
        Class<?> of = api == null ? java.util.function.Function.class : api;
        Type takes = Types.argument(type, of, 0);
        takes = windows && windowApi == null ? element(takes) : Types.inside(takes);
        Type gives = Types.argument(type, of, 1);
        check(takes, "inputType");
        check(Types.inside(gives), "outputType");
        if (api == null) {
            @SuppressWarnings("unchecked")
            java.util.function.Function<Object, Object> plain = (java.util.function.Function<Object, Object>) function;
            call = in -> plain.apply(in.value);
            context = logger = null;
            contextType = null;
        } else {
            logger = Types.proxy(api.getClassLoader(), "org.slf4j.Logger", new Calls.OfLogger(wire, name));
            contextType = Class.forName(Host.API + (windowApi == null ? "Context" : "WindowContext"), true, api.getClassLoader());
            context = Types.proxy(contextType, new Calls.OfContext(this, null));
            Method process = api.getMethod("process", windowApi == null ? Object.class : Collection.class, contextType);
            // A function that goes on after its return must still know which message it is about.
            call = Types.isFuture(gives)
                    ? in -> process.invoke(function, in.value, Types.proxy(contextType, new Calls.OfContext(this, in)))
                    : in -> process.invoke(function, in.value, context);
        }
        recordType = windowApi == null ? null : Class.forName(Host.API + "Record", true, windowApi.getClassLoader());
        input = TopicSchemas.isGeneric(takes) ? new TopicSchemas(this) : Values.of(takes);
        inputs = new HashMap<>();
        for (Map.Entry<String, String> fact : facts.values.entrySet()) {
            String key = fact.getKey();
            if (key.startsWith("inputSerde.")) inputs.put(key.substring(11), Values.ofSerde(fact.getValue(), takes, loader));
            if (key.startsWith("inputSchema.")) {
                boolean auto = TopicSchemas.isGeneric(takes) || fact.getValue().equalsIgnoreCase("auto_consume");
                inputs.put(key.substring(12), auto ? new TopicSchemas(this) : Values.ofSchema(fact.getValue(), takes, loader));
            }
        }
        // Where nothing is said the class says it, and a topic may have another way already.
        Map<String, Schemas.Definition> declared = new LinkedHashMap<>();
        for (String topic : facts.inputs) {
            Values.Codec codec = inputs.get(topic);
            if (codec == null) {
                codec = Values.derived(takes, facts.values.get("topicSchema." + topic), loader);
                if (codec.definition() != null && codec.definition().type.equals("AVRO")) inputs.put(topic, codec);
            }
            if (codec.definition() != null) declared.put("input." + topic, codec.definition());
        }
        Type given = Types.inside(gives);
        output = !facts.get("outputSerde").isEmpty() ? Values.ofSerde(facts.get("outputSerde"), given, loader)
                : !facts.get("outputSchema").isEmpty() ? Values.ofSchema(facts.get("outputSchema"), given, loader)
                : Values.derived(given, facts.values.get("topicSchema." + facts.get("output")), loader);
        // Records say for themselves what they are.
        boolean isSaid = !facts.get("outputSchema").isEmpty() || !Types.isRecord(gives);
        if (isSaid && output.definition() != null) declared.put("output", output.definition());
        schemas.declare(declared);
        if (context != null) lifecycle("initialize", contextType, context);
    }

    /** The class that a package of a built-in function names. */
    private static String classOfPackage() throws IOException {
        try (InputStream about = ClassLoader.getSystemResourceAsStream("META-INF/services/pulsar-io.yaml")) {
            if (about != null) {
                for (String line : new String(about.readAllBytes(), StandardCharsets.UTF_8).split("\n")) {
                    if (line.startsWith("functionClass:")) return line.substring(14).trim().replaceAll("^[\"']|[\"']$", "");
                }
            }
        }
        throw new IllegalArgumentException("`className` is needed: the class of the function");
    }

    /** What a collection holds. */
    private static Type element(Type whole) {
        if (whole == Object.class) return Object.class;
        if (whole instanceof ParameterizedType && Types.raw(whole).isAssignableFrom(List.class)) {
            Type held = ((ParameterizedType) whole).getActualTypeArguments()[0];
            return held instanceof WildcardType ? ((WildcardType) held).getUpperBounds()[0] : held;
        }
        throw new IllegalArgumentException("a function with `windowConfig` takes a Collection, not " + whole.getTypeName());
    }

    /** The messages of a window: the count, the lengths, then block and payload of each. */
    private List<Object> window(byte[] payload) throws Exception {
        ByteBuffer head = ByteBuffer.wrap(payload).order(ByteOrder.LITTLE_ENDIAN);
        int count = head.getInt();
        int at = 4 + 8 * count;
        List<Object> all = new ArrayList<>(count);
        for (int index = 0; index < count; index++) {
            int middle = at + head.getInt(), end = middle + head.getInt();
            In in = new In(-1, payload, at, middle, end);
            in.value = codec(in).decode(in, in.payload());
            all.add(recordType == null ? in.value : Types.proxy(recordType, new Calls.OfRecord(this, in)));
            at = end;
        }
        return Collections.unmodifiableList(all);
    }

    /** What the configuration says of a type must be what the class says. */
    private void check(Type type, String fact) {
        String wanted = facts.get(fact);
        if (wanted.isEmpty() || wanted.equals(type.getTypeName()) || wanted.equals(Types.raw(type).getName())) return;
        throw new IllegalArgumentException("`" + fact + "ClassName` is " + wanted + ", and the class has " + type.getTypeName());
    }

    private void lifecycle(String name, Class<?> parameter, Object argument) throws Exception {
        for (Method method : function.getClass().getMethods()) {
            Class<?>[] takes = method.getParameterTypes();
            if (method.getName().equals(name) && (parameter == null ? takes.length == 0
                    : takes.length == 1 && takes[0] == parameter)) {
                method.setAccessible(true);
                if (parameter == null) method.invoke(function); else method.invoke(function, argument);
                return;
            }
        }
    }

    void close() {
        try {
            if (context != null) {
                lifecycle("close", null, null);
            } else if (function instanceof AutoCloseable) {
                ((AutoCloseable) function).close();
            }
        } catch (Exception error) {
            Host.cause(error).printStackTrace();
        }
    }

    void serve() throws IOException {
        int done = facts.get("manualAck").equals("1") ? Wire.HOLD : Wire.DONE;
        while (true) {
            Wire.Frame frame = wire.next();
            if (frame.kind == 'P') {
                wire.send('G', null, new byte[0]);
            } else if (frame.kind == 'D') {
                running.arriveAndAwaitAdvance();
                wire.flush();
                return;
            } else if (frame.kind == 'B') {
                batch(frame.body, done);
            }
        }
    }

    private void batch(byte[] body, int done) throws IOException {
        ByteBuffer head = ByteBuffer.wrap(body).order(ByteOrder.LITTLE_ENDIAN);
        long first = head.getLong();
        int count = head.getInt();
        int at = 12 + 8 * count;
        wire.begin();
        for (int index = 0; index < count; index++) {
            int middle = at + head.getInt(), end = middle + head.getInt();
            one(new In(first + index, body, at, middle, end), done);
            // What a function makes of an interruption is not the next message's.
            Thread.interrupted();
            at = end;
        }
        wire.end();
    }

    /** How the input of a message is read: by its topic, where that was said; a partition is its parent's, a pattern is said. */
    Values.Codec codec(In in) {
        if (inputs.isEmpty()) return input;
        String topic = in.get("input");
        if (topic == null) topic = in.get("topic");
        Values.Codec own = inputs.get(topic);
        int at = own == null && topic != null ? topic.lastIndexOf("-partition-") : -1;
        if (at >= 0) own = inputs.get(topic.substring(0, at));
        return own == null ? input : own;
    }

    private void one(In in, int done) throws IOException {
        try {
            byte[] payload = in.payload();
            in.value = windows ? window(payload) : codec(in).decode(in, payload);
        } catch (Exception | LinkageError error) {
            if (asksLater(error)) {
                fail(in, error);
                return;
            }
            wire.outcome(in.number, Wire.DATA, "the input is no " + input + ": " + Host.reason(error), List.of());
            return;
        }
        current.set(in);
        try {
            Object result = call.process(in);
            if (result instanceof CompletableFuture) {
                running.register();
                ((CompletableFuture<?>) result).whenComplete((late, error) -> {
                    try {
                        if (error == null) finish(in, late, done); else fail(in, error);
                        wire.flush();
                    } catch (IOException gone) {
                        // The reader notices too.
                    } finally {
                        running.arriveAndDeregister();
                    }
                });
                return;
            }
            finish(in, result, done);
        } catch (IOException gone) {
            // The socket's: an IOException of the function comes wrapped.
            throw gone;
        } catch (Throwable error) {
            fail(in, error);
        } finally {
            current.remove();
        }
    }

    private void finish(In in, Object result, int done) throws IOException {
        Output main;
        try {
            main = result == null ? null : Values.output(result, output, schemas);
        } catch (Exception | LinkageError error) {
            fail(in, error);
            return;
        }
        List<Output> outputs;
        synchronized (in) {
            in.over = true;
            outputs = in.outputs;
        }
        if (main != null) {
            outputs = new ArrayList<>(outputs);
            outputs.add(0, main);
        }
        wire.outcome(in.number, done, "", outputs);
    }

    /** The message may be read later: its schema could not be had. */
    private static boolean asksLater(Throwable error) {
        for (Throwable at = error; at != null; at = at.getCause()) {
            if (at instanceof Wire.Unanswered) return true;
        }
        return false;
    }

    private void fail(In in, Throwable wrapped) throws IOException {
        synchronized (in) {
            in.over = true;
        }
        Throwable error = Host.cause(wrapped);
        int verdict = Wire.FAILED;
        for (Class<?> type = error.getClass(); type != null; type = type.getSuperclass()) {
            String name = type.getSimpleName();
            if (name.equals("BadDataException")) verdict = Wire.DATA;
            if (name.equals("RetryException")) verdict = Wire.TEMPORARY;
            if (name.equals("DropException")) verdict = Wire.DROP;
        }
        if (asksLater(error)) verdict = Wire.TEMPORARY;
        if (verdict == Wire.FAILED) {
            error.printStackTrace();
            System.err.flush();
        }
        wire.outcome(in.number, verdict, verdict == Wire.DROP ? "" : Host.reason(error), List.of());
    }

    /** Adds to the message in hand, or sends by itself when there is none. */
    CompletableFuture<Void> publish(In in, Block block, byte[] payload) {
        try {
            if (in != null) {
                synchronized (in) {
                    if (!in.over) {
                        in.outputs.add(new Output(block, payload));
                        return CompletableFuture.completedFuture(null);
                    }
                }
            }
            wire.send('Q', block.add("op", "publish"), payload);
            return CompletableFuture.completedFuture(null);
        } catch (IOException error) {
            return CompletableFuture.failedFuture(error);
        }
    }

    /** A request about state: it belongs to its message, whichever message ends next. */
    Block about(In in, String op, Object key) {
        Block block = new Block().add("op", op).add("key", key);
        if (in != null) {
            synchronized (in) {
                if (!in.over) block.add("message", in.number);
            }
        }
        return block;
    }
}
