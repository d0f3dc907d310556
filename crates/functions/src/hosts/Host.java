// Geminga's host for Java functions: the JDK and nothing else.
//
// It runs java.util.function.Function classes, and functions written for Pulsar's functions API, as
// Pulsar's own instance does, over the socket binding of the host protocol (docs/host-protocol.md). The
// API's interfaces are met by proxies, so this file compiles without them, and against any version.
package geminga;

import java.io.*;
import java.lang.reflect.*;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicInteger;

public final class Host {
    static final String API = "org.apache.pulsar.functions.api.";
    static final int DONE = 0, FAILED = 1, DATA = 2, TEMPORARY = 3, DROP = 4, HOLD = 5;

    public static void main(String[] arguments) throws Exception {
        Wire wire = new Wire();
        System.setIn(new ByteArrayInputStream(new byte[0]));
        Frame hello = wire.next();
        Facts facts = new Facts(parse(hello.body, 0, hello.body.length));
        Worker worker;
        try {
            if (!"1".equals(facts.get("protocol"))) {
                throw new IllegalStateException("host protocol " + facts.get("protocol") + " is not 1");
            }
            worker = new Worker(wire, facts);
        } catch (Throwable error) {
            error.printStackTrace();
            wire.send('F', null, reason(error).getBytes(StandardCharsets.UTF_8));
            System.exit(1);
            return;
        }
        Block ready = new Block().add("protocol", "1").add("language", "java " + System.getProperty("java.version"));
        wire.send('R', ready, new byte[0]);
        int status = 0;
        try {
            worker.serve();
        } catch (EOFException gone) {
            // The worker has let go.
        } catch (IOException error) {
            status = 1;
        }
        worker.close();
        System.out.flush();
        System.err.flush();
        // Threads of the function must not keep the process.
        Runtime.getRuntime().halt(status);
    }

    static String reason(Throwable error) {
        while (error instanceof InvocationTargetException && error.getCause() != null
                || error instanceof CompletionException && error.getCause() != null) {
            error = error.getCause();
        }
        String text = error.toString();
        return text.length() > 4000 ? text.substring(0, 4000) : text;
    }

    // ---- header blocks ------------------------------------------------------------------------------

    static List<String[]> parse(byte[] body, int from, int to) {
        List<String[]> pairs = new ArrayList<>();
        for (String line : new String(body, from, to - from, StandardCharsets.UTF_8).split("\n")) {
            int colon = line.indexOf(':');
            if (colon >= 0) {
                pairs.add(new String[] {unescape(line.substring(0, colon)), unescape(line.substring(colon + 1))});
            }
        }
        return pairs;
    }

    static String unescape(String text) {
        if (text.indexOf('\\') < 0) {
            return text;
        }
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (c != '\\' || i + 1 == text.length()) {
                out.append(c);
            } else if (text.charAt(i + 1) == 'n') {
                out.append('\n');
                i++;
            } else if (text.charAt(i + 1) == '\\') {
                out.append('\\');
                i++;
            } else {
                out.append((char) Integer.parseInt(text.substring(i + 1, i + 4), 8));
                i += 3;
            }
        }
        return out.toString();
    }

    static final class Block {
        private final StringBuilder text = new StringBuilder();

        Block add(String name, Object value) {
            escape(name, true);
            text.append(':');
            escape(String.valueOf(value), false);
            text.append('\n');
            return this;
        }

        private void escape(String from, boolean name) {
            for (int i = 0; i < from.length(); i++) {
                char c = from.charAt(i);
                switch (c) {
                    case '\\': text.append("\\\\"); break;
                    case '\n': text.append("\\n"); break;
                    case 0: text.append("\\000"); break;
                    case 0x1f: text.append("\\037"); break;
                    default: if (c == ':' && name) text.append("\\072"); else text.append(c);
                }
            }
        }

        byte[] bytes() {
            return text.toString().getBytes(StandardCharsets.UTF_8);
        }
    }

    /** What the greeting says. */
    static final class Facts {
        final Map<String, String> values = new HashMap<>();
        final List<String> inputs = new ArrayList<>();

        Facts(List<String[]> pairs) {
            for (String[] pair : pairs) {
                if (pair[0].equals("input")) {
                    inputs.add(pair[1]);
                } else {
                    values.put(pair[0], pair[1]);
                }
            }
        }

        String get(String name) {
            return values.getOrDefault(name, "");
        }
    }

    // ---- the wire -----------------------------------------------------------------------------------

    static final class Frame {
        final char kind;
        final byte[] body;

        Frame(char kind, byte[] body) {
            this.kind = kind;
            this.body = body;
        }
    }

    /** The socket, what was read ahead, and the outcomes that wait to be sent. */
    static final class Wire {
        private final DataInputStream in;
        private final OutputStream out = new FileOutputStream(FileDescriptor.in);
        // The worker sends no more than its window.
        private final BlockingQueue<Frame> frames = new LinkedBlockingQueue<>();
        private final Map<String, CompletableFuture<byte[]>> answers = new ConcurrentHashMap<>();
        private final AtomicInteger asked = new AtomicInteger();
        private final ByteArrayOutputStream outcomes = new ByteArrayOutputStream(1 << 16);
        private int waiting;
        private volatile boolean busy;
        private final Semaphore work = new Semaphore(0);

        Wire() {
            in = new DataInputStream(new BufferedInputStream(new FileInputStream(FileDescriptor.in), 1 << 18));
            daemon("geminga-reader", this::read);
            daemon("geminga-flusher", this::flushLate);
        }

        private static void daemon(String name, Runnable body) {
            Thread thread = new Thread(body, name);
            thread.setDaemon(true);
            thread.start();
        }

        private void read() {
            try {
                byte[] head = new byte[12];
                while (true) {
                    in.readFully(head);
                    int size = Integer.parseInt(new String(head, 2, 9, StandardCharsets.US_ASCII));
                    byte[] body = new byte[size];
                    in.readFully(body);
                    if (head[0] == 'A') {
                        answer(body);
                    } else {
                        frames.add(new Frame((char) head[0], body));
                    }
                }
            } catch (IOException | RuntimeException end) {
                frames.add(new Frame('!', new byte[0]));
                answers.values().forEach(answer -> answer.completeExceptionally(new EOFException()));
            }
        }

        private void answer(byte[] body) {
            int size = ByteBuffer.wrap(body).order(ByteOrder.LITTLE_ENDIAN).getInt();
            Facts facts = new Facts(parse(body, 4, 4 + size));
            CompletableFuture<byte[]> asking = answers.remove(facts.get("ask"));
            if (asking != null) {
                asking.complete(facts.get("found").equals("1") ? Arrays.copyOfRange(body, 4 + size, body.length) : null);
            }
        }

        Frame next() throws IOException {
            try {
                Frame frame = frames.take();
                if (frame.kind == '!') {
                    throw new EOFException();
                }
                return frame;
            } catch (InterruptedException interrupted) {
                throw new EOFException();
            }
        }

        /** A batch is in hand: outcomes that wait for long are flushed. */
        void begin() {
            if (!busy) {
                busy = true;
                work.release();
            }
        }

        void end() throws IOException {
            busy = false;
            flush();
        }

        private void flushLate() {
            try {
                while (true) {
                    work.acquire();
                    while (busy) {
                        Thread.sleep(5);
                        flush();
                    }
                }
            } catch (IOException | InterruptedException gone) {
                // The reader notices too.
            }
        }

        synchronized void outcome(long number, int verdict, String reason, List<Output> outputs) throws IOException {
            byte[] why = reason.getBytes(StandardCharsets.UTF_8);
            number(number, 8);
            outcomes.write(verdict);
            number(outputs.size(), 4);
            number(why.length, 4);
            outcomes.write(why);
            for (Output output : outputs) {
                byte[] block = output.block == null ? new byte[0] : output.block.bytes();
                number(block.length, 4);
                number(output.payload.length, 4);
                outcomes.write(block);
                outcomes.write(output.payload);
            }
            waiting++;
            if (outcomes.size() > 1 << 18) {
                flush();
            }
        }

        private void number(long value, int bytes) {
            for (int i = 0; i < bytes; i++) {
                outcomes.write((int) (value >> 8 * i));
            }
        }

        synchronized void flush() throws IOException {
            if (waiting == 0) {
                return;
            }
            ByteBuffer head = ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN);
            head.put(String.format("O %09d\n", outcomes.size() + 4).getBytes(StandardCharsets.US_ASCII)).putInt(waiting);
            out.write(head.array());
            outcomes.writeTo(out);
            outcomes.reset();
            waiting = 0;
        }

        /** One frame; outcomes that wait go first, so that the order of events stays true. */
        synchronized void send(char kind, Block block, byte[] rest) throws IOException {
            flush();
            byte[] named = block == null ? new byte[0] : block.bytes();
            int size = rest.length + (block == null ? 0 : 4 + named.length);
            ByteBuffer frame = ByteBuffer.allocate(12 + size).order(ByteOrder.LITTLE_ENDIAN);
            frame.put(String.format("%c %09d\n", kind, size).getBytes(StandardCharsets.US_ASCII));
            if (block != null) {
                frame.putInt(named.length).put(named);
            }
            out.write(frame.put(rest).array());
        }

        byte[] ask(String op, String key) throws IOException {
            String number = String.valueOf(asked.incrementAndGet());
            CompletableFuture<byte[]> answer = new CompletableFuture<>();
            answers.put(number, answer);
            send('Q', new Block().add("op", op).add("ask", number).add("key", key), new byte[0]);
            try {
                return answer.get();
            } catch (ExecutionException | InterruptedException gone) {
                throw new EOFException();
            }
        }

        void log(String level, String text) {
            try {
                send('L', new Block().add("level", level), text.getBytes(StandardCharsets.UTF_8));
            } catch (IOException gone) {
                System.err.println(text);
            }
        }
    }

    static final class Output {
        final Block block;
        final byte[] payload;

        Output(Block block, byte[] payload) {
            this.block = block;
            this.payload = payload;
        }
    }

    /** A message in hand; its headers are read when somebody asks. */
    static final class In {
        final byte[] body;
        final int from, to;
        final Object value;
        final List<Output> outputs = new ArrayList<>();
        boolean over;
        private Map<String, String> headers;

        In(byte[] body, int from, int to, Object value) {
            this.body = body;
            this.from = from;
            this.to = to;
            this.value = value;
        }

        synchronized Map<String, String> headers() {
            if (headers == null) {
                headers = new LinkedHashMap<>();
                for (String[] pair : parse(body, from, to)) {
                    headers.put(pair[0], pair[1]);
                }
            }
            return headers;
        }

        String get(String name) {
            return headers().get(name);
        }
    }

    // ---- the function -------------------------------------------------------------------------------

    interface Call {
        Object process(Object input) throws Throwable;
    }

    static final class Worker {
        final Wire wire;
        final Facts facts;
        final ThreadLocal<In> current = new ThreadLocal<>();
        final Map<String, Object> userConfig;
        private final Object function;
        private final Call call;
        private final Type inputType;
        private final Object context;
        private final Object logger;
        private final Phaser running = new Phaser(1);

        Worker(Wire wire, Facts facts) throws Exception {
            this.wire = wire;
            this.facts = facts;
            @SuppressWarnings("unchecked")
            Map<String, Object> config = (Map<String, Object>) Json.parse(facts.values.getOrDefault("userConfig", "{}"));
            userConfig = config;
            String name = facts.get("className");
            if (name.isEmpty()) {
                throw new IllegalArgumentException("`className` is needed: the class of the function");
            }
            Class<?> type = Class.forName(name, true, ClassLoader.getSystemClassLoader());
            Class<?> api = named(type, API + "Function");
            if (named(type, API + "WindowFunction") != null) {
                throw new IllegalArgumentException("window functions are not supported yet");
            }
            if (api == null && !java.util.function.Function.class.isAssignableFrom(type)) {
                throw new IllegalArgumentException("`" + name + "` implements neither java.util.function.Function nor "
                        + API + "Function");
            }
            Constructor<?> constructor = type.getDeclaredConstructor();
            constructor.setAccessible(true);
            function = constructor.newInstance();
            if (api == null) {
                @SuppressWarnings("unchecked")
                java.util.function.Function<Object, Object> plain = (java.util.function.Function<Object, Object>) function;
                call = plain::apply;
                inputType = argument(type, java.util.function.Function.class, 0);
                check(argument(type, java.util.function.Function.class, 1), "outputType");
                context = logger = null;
            } else {
                ClassLoader loader = api.getClassLoader();
                logger = proxy(loader, "org.slf4j.Logger", new LoggerCalls(wire, name));
                Class<?> contextType = Class.forName(API + "Context", true, loader);
                context = proxy(loader, API + "Context", new ContextCalls(this, contextType));
                Method process = api.getMethod("process", Object.class, contextType);
                call = input -> process.invoke(function, input, context);
                inputType = argument(type, api, 0);
                check(argument(type, api, 1), "outputType");
                lifecycle("initialize", contextType, context);
            }
            check(inputType, "inputType");
        }

        /** What the configuration says of a type must be what the class says. */
        private void check(Type type, String fact) {
            String wanted = facts.get(fact);
            if (!wanted.isEmpty() && !wanted.equals(type.getTypeName()) && !(type instanceof Class && wanted.equals(((Class<?>) type).getName()))) {
                throw new IllegalArgumentException("`" + fact + "ClassName` is " + wanted + ", and the class has " + type.getTypeName());
            }
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
                }
            } catch (Exception error) {
                error.printStackTrace();
            }
        }

        void serve() throws IOException {
            int done = facts.get("manualAck").equals("1") ? HOLD : DONE;
            while (true) {
                Frame frame = wire.next();
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
                one(first + index, body, at, middle, end, done);
                at = end;
            }
            wire.end();
        }

        private void one(long number, byte[] body, int at, int middle, int end, int done) throws IOException {
            Object value;
            try {
                value = Values.decode(Arrays.copyOfRange(body, middle, end), inputType);
            } catch (RuntimeException error) {
                wire.outcome(number, DATA, "the input is no " + inputType.getTypeName() + ": " + reason(error), List.of());
                return;
            }
            In in = new In(body, at, middle, value);
            current.set(in);
            try {
                Object result = call.process(value);
                if (result instanceof CompletableFuture) {
                    running.register();
                    ((CompletableFuture<?>) result).whenComplete((late, error) -> {
                        try {
                            if (error == null) finish(number, in, late, done); else fail(number, in, error);
                            wire.flush();
                        } catch (IOException gone) {
                            // The reader notices too.
                        } finally {
                            running.arriveAndDeregister();
                        }
                    });
                    return;
                }
                finish(number, in, result, done);
            } catch (Throwable error) {
                fail(number, in, error);
            } finally {
                current.remove();
            }
        }

        private void finish(long number, In in, Object result, int done) throws IOException {
            List<Output> outputs;
            synchronized (in) {
                in.over = true;
                outputs = in.outputs;
            }
            if (result != null) {
                Output main;
                try {
                    main = Values.output(result);
                } catch (RuntimeException error) {
                    fail(number, in, error);
                    return;
                }
                outputs = new ArrayList<>(outputs);
                if (main != null) outputs.add(0, main);
            }
            wire.outcome(number, done, "", outputs);
        }

        private void fail(long number, In in, Throwable error) throws IOException {
            synchronized (in) {
                in.over = true;
            }
            while ((error instanceof InvocationTargetException || error instanceof CompletionException) && error.getCause() != null) {
                error = error.getCause();
            }
            int verdict = FAILED;
            for (Class<?> type = error.getClass(); type != null; type = type.getSuperclass()) {
                String name = type.getSimpleName();
                if (name.equals("BadDataException")) verdict = DATA;
                if (name.equals("RetryException")) verdict = TEMPORARY;
                if (name.equals("DropException")) verdict = DROP;
            }
            if (verdict == FAILED) {
                error.printStackTrace();
                System.err.flush();
            }
            wire.outcome(number, verdict, verdict == DROP ? "" : reason(error), List.of());
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
    }

    /** The interface of a name among all that a class implements. */
    static Class<?> named(Class<?> type, String name) {
        for (Class<?> at = type; at != null; at = at.getSuperclass()) {
            if (at.getName().equals(name)) return at;
            for (Class<?> one : at.getInterfaces()) {
                Class<?> found = named(one, name);
                if (found != null) return found;
            }
        }
        return null;
    }

    /** What stands for a type parameter of `wanted` in `type`; Object when nobody says. */
    static Type argument(Class<?> type, Class<?> wanted, int index) {
        Type found = find(type, wanted, index);
        if (found instanceof WildcardType) found = ((WildcardType) found).getUpperBounds()[0];
        if (found instanceof ParameterizedType && ((ParameterizedType) found).getRawType() == CompletableFuture.class) {
            found = ((ParameterizedType) found).getActualTypeArguments()[0];
        }
        return found == null || found instanceof TypeVariable ? Object.class : found;
    }

    private static Type find(Type at, Class<?> wanted, int index) {
        Class<?> raw = at instanceof ParameterizedType ? (Class<?>) ((ParameterizedType) at).getRawType()
                : at instanceof Class ? (Class<?>) at : null;
        if (raw == null) return null;
        if (raw == wanted) {
            return at instanceof ParameterizedType ? ((ParameterizedType) at).getActualTypeArguments()[index] : null;
        }
        List<Type> parents = new ArrayList<>(Arrays.asList(raw.getGenericInterfaces()));
        if (raw.getGenericSuperclass() != null) parents.add(raw.getGenericSuperclass());
        for (Type parent : parents) {
            Type found = find(parent, wanted, index);
            if (found instanceof TypeVariable && at instanceof ParameterizedType) {
                TypeVariable<?>[] own = raw.getTypeParameters();
                for (int i = 0; i < own.length; i++) {
                    if (own[i].equals(found)) return ((ParameterizedType) at).getActualTypeArguments()[i];
                }
            }
            if (found != null) return found;
        }
        return null;
    }

    static Object proxy(ClassLoader loader, String type, InvocationHandler calls) throws ClassNotFoundException {
        Class<?> found = Class.forName(type, true, loader);
        return Proxy.newProxyInstance(loader, new Class<?>[] {found}, calls);
    }

    /** Methods that every object has; `null` for another one. */
    static Object ofObject(Object self, Method method, Object[] arguments, String shown) {
        switch (method.getName()) {
            case "toString": return method.getParameterCount() == 0 ? shown : null;
            case "hashCode": return method.getParameterCount() == 0 ? System.identityHashCode(self) : null;
            case "equals": return method.getParameterCount() == 1 && method.getDeclaringClass() == Object.class ? self == arguments[0] : null;
            default: return null;
        }
    }

    static UnsupportedOperationException notHere(Method method) {
        return new UnsupportedOperationException(method.getDeclaringClass().getSimpleName() + "." + method.getName() + " is not supported by Geminga");
    }

    /** Pulsar's Context. */
    static final class ContextCalls implements InvocationHandler {
        private final Worker worker;
        private final Class<?> type;

        ContextCalls(Worker worker, Class<?> type) {
            this.worker = worker;
            this.type = type;
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = ofObject(self, method, a, "Context of " + worker.facts.get("name"));
            if (plain != null) return plain;
            String name = method.getName();
            if (name.endsWith("Async") && !name.equals("sendAsync")) {
                try {
                    return CompletableFuture.completedFuture(state(name.substring(0, name.length() - 5), a, method));
                } catch (IOException error) {
                    return CompletableFuture.failedFuture(error);
                }
            }
            Facts facts = worker.facts;
            In in = worker.current.get();
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
                    return in == null ? null : proxy(type.getClassLoader(), API + "Record", new RecordCalls(worker, in));
                case "getLogger": return worker.logger;
                case "getUserConfigMap": return worker.userConfig;
                case "getUserConfigValue": return Optional.ofNullable(worker.userConfig.get(a[0]));
                case "getUserConfigValueOrDefault": return worker.userConfig.getOrDefault(a[0], a[1]);
                case "getSecret": return facts.values.get("secret." + a[0]);
                case "recordMetric":
                    worker.wire.send('M', new Block().add("name", a[0]).add("value", a[1]), new byte[0]);
                    return null;
                case "publish":
                    return worker.publish(in, new Block().add("topic", a[0]), Values.encode(a[1], a.length > 2 ? a[2] : null));
                case "newOutputMessage":
                    return proxy(type.getClassLoader(), "org.apache.pulsar.client.api.TypedMessageBuilder",
                            new MessageCalls(worker, in, (String) a[0], a[1]));
                case "newOutputRecordBuilder": {
                    Class<?> builder = Class.forName(API + "utils.FunctionRecord", true, type.getClassLoader());
                    for (Method from : builder.getMethods()) {
                        if (from.getName().equals("from") && from.getParameterCount() == 2) {
                            return from.invoke(null, self, a[0]);
                        }
                    }
                    throw notHere(method);
                }
                case "fatal":
                    ((Throwable) a[0]).printStackTrace();
                    System.err.flush();
                    Runtime.getRuntime().halt(1);
                    return null;
                default: return state(name, a, method);
            }
        }

        private Object state(String name, Object[] a, Method method) throws IOException {
            Wire wire = worker.wire;
            switch (name) {
                case "putState":
                    wire.send('Q', new Block().add("op", "state.put").add("key", a[0]), Values.bytes((ByteBuffer) a[1]));
                    return null;
                case "getState": {
                    byte[] value = wire.ask("state.get", (String) a[0]);
                    return value == null ? null : ByteBuffer.wrap(value);
                }
                case "deleteState":
                    wire.send('Q', new Block().add("op", "state.delete").add("key", a[0]), new byte[0]);
                    return null;
                case "incrCounter":
                    wire.send('Q', new Block().add("op", "state.increment").add("key", a[0]).add("by", a[1]), new byte[0]);
                    return null;
                case "getCounter": {
                    byte[] value = wire.ask("state.get", (String) a[0]);
                    return value == null || value.length != 8 ? 0L : ByteBuffer.wrap(value).getLong();
                }
                default: throw notHere(method);
            }
        }
    }

    /** Pulsar's Record: the message in hand. */
    static final class RecordCalls implements InvocationHandler {
        private final Worker worker;
        private final In in;

        RecordCalls(Worker worker, In in) {
            this.worker = worker;
            this.in = in;
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = ofObject(self, method, a, "Record " + in.get("id"));
            if (plain != null) return plain;
            switch (method.getName()) {
                case "getValue": return in.value;
                case "getKey": return Optional.ofNullable(in.get("key") != null ? in.get("key") : in.get("key64"));
                case "getTopicName": return Optional.ofNullable(in.get("topic"));
                case "getPartitionId": return Optional.of(in.get("topic") + "-" + in.get("partition"));
                case "getPartitionIndex": return Optional.ofNullable(in.get("partition")).map(Integer::valueOf);
                case "getRecordSequence": return Optional.ofNullable(in.get("sequence")).map(Long::valueOf);
                case "getEventTime":
                    return Optional.ofNullable(in.get("eventTime")).map(Long::valueOf).filter(time -> time > 0);
                case "getProperties": {
                    Map<String, String> properties = new LinkedHashMap<>();
                    in.headers().forEach((name, value) -> {
                        if (name.startsWith("prop.")) properties.put(name.substring(5), value);
                    });
                    return properties;
                }
                case "ack":
                    worker.wire.send('Q', new Block().add("op", "ack").add("id", in.get("id")), new byte[0]);
                    return null;
                case "fail":
                    throw new IllegalStateException("Record.fail: throw an exception to fail a message");
                case "getSchema": return null;
                default:
                    if (method.getReturnType() == Optional.class) return Optional.empty();
                    throw notHere(method);
            }
        }
    }

    /** Pulsar's TypedMessageBuilder. */
    static final class MessageCalls implements InvocationHandler {
        private final Worker worker;
        private final In in;
        private final Block block = new Block();
        private final Object schema;
        private byte[] payload = new byte[0];

        MessageCalls(Worker worker, In in, String topic, Object schema) {
            this.schema = schema;
            this.worker = worker;
            this.in = in;
            block.add("topic", topic);
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = ofObject(self, method, a, "an output message");
            if (plain != null) return plain;
            switch (method.getName()) {
                case "value": payload = Values.encode(a[0], schema); return self;
                case "key": block.add("key", a[0]); return self;
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
                default: throw notHere(method);
            }
        }
    }

    /** slf4j's Logger. */
    static final class LoggerCalls implements InvocationHandler {
        private final Wire wire;
        private final String name;

        LoggerCalls(Wire wire, String name) {
            this.wire = wire;
            this.name = name;
        }

        @Override
        public Object invoke(Object self, Method method, Object[] a) throws Throwable {
            Object plain = ofObject(self, method, a, "Logger " + name);
            if (plain != null) return plain;
            String called = method.getName();
            if (called.equals("getName")) return name;
            if (called.startsWith("is")) return !called.equals("isTraceEnabled");
            if (!Set.of("trace", "debug", "info", "warn", "error").contains(called)) throw notHere(method);
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

    // ---- values -------------------------------------------------------------------------------------

    static final class Values {
        static Object decode(byte[] payload, Type type) {
            if (type == byte[].class) return payload;
            if (type == ByteBuffer.class) return ByteBuffer.wrap(payload);
            String text = new String(payload, StandardCharsets.UTF_8);
            if (type == String.class || type == CharSequence.class) return text;
            // Nobody says what it is: text, when it is text.
            if (type == Object.class) return Arrays.equals(text.getBytes(StandardCharsets.UTF_8), payload) ? text : payload;
            return Json.as(Json.parse(text.trim()), type);
        }

        static byte[] bytes(ByteBuffer buffer) {
            byte[] bytes = new byte[buffer.remaining()];
            buffer.duplicate().get(bytes);
            return bytes;
        }

        static byte[] encode(Object value) {
            if (value instanceof byte[]) return (byte[]) value;
            if (value instanceof ByteBuffer) return bytes((ByteBuffer) value);
            if (value instanceof CharSequence) return value.toString().getBytes(StandardCharsets.UTF_8);
            return Json.write(value).getBytes(StandardCharsets.UTF_8);
        }

        /** As a schema says, when one is given; the name of a schema or a SerDe says nothing here. */
        static byte[] encode(Object value, Object schema) throws ReflectiveOperationException {
            Class<?> type = schema == null ? null : named(schema.getClass(), "org.apache.pulsar.client.api.Schema");
            return type == null ? encode(value) : (byte[]) type.getMethod("encode", Object.class).invoke(schema, value);
        }

        /** The output of what a function returned, a Record with its own key, topic and properties. */
        static Output output(Object result) {
            Class<?> record = named(result.getClass(), API + "Record");
            if (record == null) return new Output(null, encode(result));
            try {
                Block block = new Block();
                option(record, result, "getDestinationTopic").ifPresent(topic -> block.add("topic", topic));
                option(record, result, "getKey").ifPresent(key -> block.add("key", key));
                option(record, result, "getEventTime").ifPresent(time -> block.add("eventTime", time));
                Object properties = record.getMethod("getProperties").invoke(result);
                if (properties instanceof Map) {
                    ((Map<?, ?>) properties).forEach((name, value) -> block.add("prop." + name, value));
                }
                Object value = record.getMethod("getValue").invoke(result);
                return value == null ? null : new Output(block, encode(value));
            } catch (ReflectiveOperationException error) {
                throw new IllegalStateException(reason(error), error);
            }
        }

        private static Optional<?> option(Class<?> type, Object of, String getter) throws ReflectiveOperationException {
            Object value = type.getMethod(getter).invoke(of);
            return value instanceof Optional ? (Optional<?>) value : Optional.empty();
        }
    }

    /** As much of JSON as values of functions need: maps, lists, plain values, and objects by their fields. */
    static final class Json {
        private final String text;
        private int at;

        private Json(String text) {
            this.text = text;
        }

        static Object parse(String text) {
            Json json = new Json(text);
            Object value = json.value(0);
            json.blank();
            if (json.at != text.length()) throw json.wrong();
            return value;
        }

        private IllegalArgumentException wrong() {
            return new IllegalArgumentException("not JSON at character " + at);
        }

        private void blank() {
            while (at < text.length() && Character.isWhitespace(text.charAt(at))) at++;
        }

        private boolean take(char c) {
            blank();
            if (at < text.length() && text.charAt(at) == c) {
                at++;
                return true;
            }
            return false;
        }

        private Object value(int depth) {
            if (depth > 200) throw wrong();
            blank();
            if (take('{')) {
                Map<String, Object> map = new LinkedHashMap<>();
                if (take('}')) return map;
                do {
                    blank();
                    if (at >= text.length() || text.charAt(at) != '"') throw wrong();
                    String key = string();
                    if (!take(':')) throw wrong();
                    map.put(key, value(depth + 1));
                } while (take(','));
                if (!take('}')) throw wrong();
                return map;
            }
            if (take('[')) {
                List<Object> list = new ArrayList<>();
                if (take(']')) return list;
                do {
                    list.add(value(depth + 1));
                } while (take(','));
                if (!take(']')) throw wrong();
                return list;
            }
            if (at < text.length() && text.charAt(at) == '"') return string();
            int from = at;
            while (at < text.length() && ",]} \t\r\n".indexOf(text.charAt(at)) < 0) at++;
            String word = text.substring(from, at);
            switch (word) {
                case "true": return true;
                case "false": return false;
                case "null": return null;
                default:
            }
            try {
                if (word.matches("-?\\d{1,9}")) return Integer.valueOf(word);
                if (word.matches("-?\\d{1,18}")) return Long.valueOf(word);
                if (word.matches("-?\\d+")) return new java.math.BigInteger(word);
                if (word.matches("-?\\d+(\\.\\d+)?([eE][-+]?\\d+)?")) return Double.valueOf(word);
            } catch (NumberFormatException error) {
                // Said below.
            }
            at = from;
            throw wrong();
        }

        private String string() {
            StringBuilder out = new StringBuilder();
            at++;
            while (at < text.length()) {
                char c = text.charAt(at++);
                if (c == '"') return out.toString();
                if (c != '\\') {
                    out.append(c);
                    continue;
                }
                if (at >= text.length()) throw wrong();
                char escaped = text.charAt(at++);
                switch (escaped) {
                    case 'n': out.append('\n'); break;
                    case 't': out.append('\t'); break;
                    case 'r': out.append('\r'); break;
                    case 'b': out.append('\b'); break;
                    case 'f': out.append('\f'); break;
                    case 'u':
                        if (at + 4 > text.length()) throw wrong();
                        out.append((char) Integer.parseInt(text.substring(at, at + 4), 16));
                        at += 4;
                        break;
                    default: out.append(escaped);
                }
            }
            throw wrong();
        }

        /** A parsed value as a value of a type. */
        static Object as(Object value, Type type) {
            Type[] arguments = {};
            if (type instanceof ParameterizedType) {
                arguments = ((ParameterizedType) type).getActualTypeArguments();
                type = ((ParameterizedType) type).getRawType();
            }
            if (!(type instanceof Class) || type == Object.class) return value;
            Class<?> wanted = (Class<?>) type;
            if (value == null) return null;
            if (value instanceof Number) {
                Number number = (Number) value;
                boolean whole = !(number instanceof Double);
                if (wanted == int.class || wanted == Integer.class) return within(number, whole, Integer.MIN_VALUE, Integer.MAX_VALUE).intValue();
                if (wanted == long.class || wanted == Long.class) return within(number, whole, Long.MIN_VALUE, Long.MAX_VALUE).longValue();
                if (wanted == short.class || wanted == Short.class) return within(number, whole, Short.MIN_VALUE, Short.MAX_VALUE).shortValue();
                if (wanted == byte.class || wanted == Byte.class) return within(number, whole, Byte.MIN_VALUE, Byte.MAX_VALUE).byteValue();
                if (wanted == double.class || wanted == Double.class) return number.doubleValue();
                if (wanted == float.class || wanted == Float.class) return number.floatValue();
                if (wanted == Number.class) return number;
            }
            if (value instanceof Boolean && (wanted == boolean.class || wanted == Boolean.class)) return value;
            if (value instanceof String && wanted == String.class) return value;
            if (value instanceof String && wanted.isEnum()) {
                for (Object constant : wanted.getEnumConstants()) {
                    if (((Enum<?>) constant).name().equals(value)) return constant;
                }
            }
            if (value instanceof List && (wanted.isAssignableFrom(ArrayList.class) || wanted.isArray())) {
                Type element = wanted.isArray() ? wanted.getComponentType() : arguments.length > 0 ? arguments[0] : Object.class;
                List<Object> list = new ArrayList<>();
                for (Object one : (List<?>) value) list.add(as(one, element));
                if (!wanted.isArray()) return list;
                Object array = Array.newInstance(wanted.getComponentType(), list.size());
                for (int i = 0; i < list.size(); i++) Array.set(array, i, list.get(i));
                return array;
            }
            if (value instanceof Map && wanted.isAssignableFrom(LinkedHashMap.class)) {
                Type element = arguments.length > 1 ? arguments[1] : Object.class;
                Map<Object, Object> map = new LinkedHashMap<>();
                ((Map<?, ?>) value).forEach((key, one) -> map.put(key, as(one, element)));
                return map;
            }
            if (value instanceof Map && !wanted.isPrimitive() && !wanted.isArray() && !wanted.isEnum() && !wanted.getName().startsWith("java.")) {
                try {
                    Constructor<?> constructor = wanted.getDeclaredConstructor();
                    constructor.setAccessible(true);
                    Object object = constructor.newInstance();
                    for (Field field : fields(wanted)) {
                        if (((Map<?, ?>) value).containsKey(field.getName())) {
                            field.set(object, as(((Map<?, ?>) value).get(field.getName()), field.getGenericType()));
                        }
                    }
                    return object;
                } catch (ReflectiveOperationException error) {
                    throw new IllegalArgumentException(wanted.getName() + " can not be made: " + reason(error), error);
                }
            }
            throw new IllegalArgumentException(value.getClass().getSimpleName() + " is no " + wanted.getName());
        }

        private static Number within(Number number, boolean whole, long least, long most) {
            if (!whole || number instanceof java.math.BigInteger || number.longValue() < least || number.longValue() > most) {
                throw new IllegalArgumentException(number + " does not fit");
            }
            return number;
        }

        private static List<Field> fields(Class<?> type) {
            List<Field> all = new ArrayList<>();
            for (Class<?> at = type; at != null && at != Object.class; at = at.getSuperclass()) {
                for (Field field : at.getDeclaredFields()) {
                    int modifiers = field.getModifiers();
                    if (Modifier.isStatic(modifiers) || Modifier.isTransient(modifiers) || field.isSynthetic()) continue;
                    field.setAccessible(true);
                    all.add(field);
                }
            }
            return all;
        }

        static String write(Object value) {
            StringBuilder out = new StringBuilder();
            write(value, out, 0);
            return out.toString();
        }

        private static void write(Object value, StringBuilder out, int depth) {
            if (depth > 200) throw new IllegalArgumentException("nested too deep, or in a circle");
            if (value == null || value instanceof Number || value instanceof Boolean) {
                out.append(value);
            } else if (value instanceof CharSequence || value instanceof Character || value instanceof Enum) {
                quote(value instanceof Enum ? ((Enum<?>) value).name() : value.toString(), out);
            } else if (value instanceof Map) {
                out.append('{');
                String between = "";
                for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                    out.append(between);
                    quote(String.valueOf(entry.getKey()), out);
                    out.append(':');
                    write(entry.getValue(), out, depth + 1);
                    between = ",";
                }
                out.append('}');
            } else if (value instanceof Iterable || value.getClass().isArray()) {
                List<Object> list = new ArrayList<>();
                if (value instanceof Iterable) ((Iterable<?>) value).forEach(list::add);
                else for (int i = 0; i < Array.getLength(value); i++) list.add(Array.get(value, i));
                out.append('[');
                for (int i = 0; i < list.size(); i++) {
                    if (i > 0) out.append(',');
                    write(list.get(i), out, depth + 1);
                }
                out.append(']');
            } else if (value.getClass().getName().startsWith("java.")) {
                throw new IllegalArgumentException("a " + value.getClass().getName() + " can not be an output");
            } else {
                Map<String, Object> map = new LinkedHashMap<>();
                try {
                    for (Field field : fields(value.getClass())) {
                        if (field.get(value) != null) map.put(field.getName(), field.get(value));
                    }
                } catch (IllegalAccessException error) {
                    throw new IllegalArgumentException(error);
                }
                write(map, out, depth + 1);
            }
        }

        private static void quote(String text, StringBuilder out) {
            out.append('"');
            for (int i = 0; i < text.length(); i++) {
                char c = text.charAt(i);
                if (c == '"' || c == '\\') out.append('\\').append(c);
                else if (c == '\n') out.append("\\n");
                else if (c < 0x20) out.append(String.format("\\u%04x", (int) c));
                else out.append(c);
            }
            out.append('"');
        }
    }
}
