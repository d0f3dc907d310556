package geminga;

import geminga.Blocks.Block;
import geminga.Schemas.Definition;
import geminga.Wire.Output;
import java.io.IOException;
import java.lang.reflect.*;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.*;

/** Payloads as values: by the types of the class, by a SerDe, or by a schema of Pulsar's client. */
final class Values {
    private Values() {}

    /** Turns payloads into values and back; its text says what of. */
    interface Codec {
        Object decode(byte[] payload) throws Exception;

        byte[] encode(Object value) throws Exception;

        /** The same for one that looks at the message, too. */
        default Object decode(Worker.In in, byte[] payload) throws Exception {
            return decode(payload);
        }

        /** The schema of Pulsar's client by which it reads this message; null for none. */
        default Object schema(Worker.In in) throws Exception {
            return null;
        }

        /** What it writes, for those who declare it; null for bytes and for SerDe classes. */
        default Definition definition() {
            return null;
        }
    }

    abstract static class Named implements Codec {
        private final String name;

        Named(String name) {
            this.name = name;
        }

        @Override
        public String toString() {
            return name;
        }
    }

    /** What the type alone says. */
    static Codec of(Type type) {
        return of(type, null);
    }

    /** The same, declared to be of a schema. */
    private static Codec of(Type type, Definition definition) {
        return new Named(type.getTypeName()) {
            @Override
            public Definition definition() {
                return definition;
            }

            @Override
            public Object decode(byte[] payload) {
                return Values.decode(payload, type);
            }

            @Override
            public byte[] encode(Object value) {
                return Values.encode(value);
            }
        };
    }

    /**
     * What the class says where the configuration says nothing, as Pulsar's instance reads it: text is `string`, other
     * classes are what their topic has (`has` is the type of that, or null), or else `json`.
     */
    static Codec derived(Type type, String has, ClassLoader loader) throws Exception {
        Class<?> raw = Types.raw(type);
        if (raw == String.class) return of(type, has == null || has.equals("STRING") ? Definition.STRING : null);
        // A GenericRecord is whatever its topic has: it says nothing of it.
        if (!isObject(raw) || TopicSchemas.isGeneric(type)) return of(type);
        if ("AVRO".equals(has)) return ofSchema("avro", type, loader);
        return of(type, has == null || has.equals("JSON") ? Definition.json(raw, loader) : null);
    }

    /** A class that implements Pulsar's SerDe. */
    static Codec ofSerde(String name, Type type, ClassLoader loader) throws Exception {
        Class<?> found = Class.forName(name, true, loader);
        Class<?> api = Types.named(found, Host.API + "SerDe");
        if (api == null) throw new IllegalArgumentException("`" + name + "` does not implement " + Host.API + "SerDe");
        Object serde = null;
        for (Constructor<?> constructor : found.getDeclaredConstructors()) {
            Class<?>[] takes = constructor.getParameterTypes();
            if (takes.length > 1 || takes.length == 1 && takes[0] != Class.class) continue;
            constructor.setAccessible(true);
            // Pulsar's own DefaultSerDe is told the type.
            serde = takes.length == 0 ? constructor.newInstance() : constructor.newInstance(Types.raw(type));
            break;
        }
        if (serde == null) throw new IllegalArgumentException("`" + name + "` has no constructor without arguments");
        Method deserialize = api.getMethod("deserialize", byte[].class), serialize = api.getMethod("serialize", Object.class);
        deserialize.setAccessible(true);
        serialize.setAccessible(true);
        Object made = serde;
        return new Named(name) {
            @Override
            public Object decode(byte[] payload) throws Exception {
                return deserialize.invoke(made, (Object) payload);
            }

            @Override
            public byte[] encode(Object value) throws Exception {
                return (byte[]) serialize.invoke(made, value);
            }
        };
    }

    /** A schema by its name (`string`, `json`, `avro`, ...) for the type of the class, or a class of its own. */
    static Codec ofSchema(String name, Type type, ClassLoader loader) throws Exception {
        String plain = name.toLowerCase(Locale.ROOT);
        if (plain.isEmpty() || plain.equals("none") || plain.equals("bytes") || plain.startsWith("auto")) return of(type);
        if (plain.equals("string") && (type == String.class || type == Object.class)) return of(String.class, Definition.STRING);
        Class<?> api;
        try {
            api = Class.forName(Host.SCHEMA, true, loader);
        } catch (ClassNotFoundException missing) {
            throw new IllegalArgumentException("schema `" + name + "` needs Pulsar's client on the class path", missing);
        }
        if (name.indexOf('.') >= 0) {
            Constructor<?> constructor = Class.forName(name, true, loader).getDeclaredConstructor();
            constructor.setAccessible(true);
            return ofSchema(constructor.newInstance());
        }
        switch (plain) {
            case "json":
                // Numbers and text are written as JSON has them.
                if (!isObject(Types.raw(type))) return of(type, Definition.json(Types.raw(type), loader));
                return ofSchema(api.getMethod("JSON", Class.class).invoke(null, Types.raw(type)));
            case "avro": return ofSchema(api.getMethod("AVRO", Class.class).invoke(null, Types.raw(type)));
            case "protobuf": return ofSchema(api.getMethod("PROTOBUF", Class.class).invoke(null, Types.raw(type)));
            case "protobuf_native": return ofSchema(api.getMethod("PROTOBUF_NATIVE", Class.class).invoke(null, Types.raw(type)));
            default:
        }
        if (plain.equals("boolean")) plain = "bool";
        for (Field field : api.getFields()) {
            if (field.getName().equalsIgnoreCase(plain)) return ofSchema(field.get(null));
        }
        throw new IllegalArgumentException("there is no schema `" + name + "`");
    }

    private static boolean isObject(Class<?> type) {
        return type != Object.class && !type.isPrimitive() && !type.isArray() && !type.getName().startsWith("java.");
    }

    /** A schema of Pulsar's client; without one, what the value itself says. */
    static Codec ofSchema(Object schema) {
        Class<?> api = schema == null ? null : Types.named(schema.getClass(), Host.SCHEMA);
        if (api == null) return of(Object.class);
        try {
            Method decode = api.getMethod("decode", byte[].class), encode = api.getMethod("encode", Object.class);
            Definition definition = Definition.of(api, schema);
            return new Named(schema.getClass().getSimpleName()) {
                @Override
                public Definition definition() {
                    return definition;
                }

                @Override
                public Object decode(byte[] payload) throws Exception {
                    return decode.invoke(schema, (Object) payload);
                }

                @Override
                public byte[] encode(Object value) throws Exception {
                    return (byte[]) encode.invoke(schema, value);
                }

                @Override
                public Object schema(Worker.In in) {
                    return schema;
                }
            };
        } catch (ReflectiveOperationException error) {
            throw new IllegalStateException(Host.cause(error));
        }
    }

    /** What a function calls a schema or a SerDe by. */
    static Codec ofName(String name, Object value, ClassLoader loader) throws Exception {
        Type type = value == null ? Object.class : value.getClass();
        boolean serde;
        try {
            serde = Types.named(Class.forName(name, true, loader), Host.API + "SerDe") != null;
        } catch (ClassNotFoundException none) {
            // The name of a schema is no class.
            serde = false;
        }
        return serde ? ofSerde(name, type, loader) : ofSchema(name, type, loader);
    }

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

    /** The output of what a function returned, a Record with its own key, topic, properties and schema. */
    static Output output(Object result, Codec codec, Schemas schemas) throws Exception {
        Class<?> record = Types.named(result.getClass(), Host.API + "Record");
        if (record == null) return new Output(null, codec.encode(result));
        Block block = new Block();
        option(record, result, "getDestinationTopic").ifPresent(topic -> block.add("topic", topic));
        option(record, result, "getKey").ifPresent(key -> block.add("key", key));
        option(record, result, "getEventTime").ifPresent(time -> block.add("eventTime", time));
        Object properties = record.getMethod("getProperties").invoke(result);
        if (properties instanceof Map) {
            ((Map<?, ?>) properties).forEach((name, value) -> block.add("prop." + name, value));
        }
        Object value = record.getMethod("getValue").invoke(result);
        Object schema = record.getMethod("getSchema").invoke(result);
        if (value == null) return null;
        Codec own = schema == null ? codec : ofSchema(schema);
        mark(block, own, schemas);
        return new Output(block, own.encode(value));
    }

    /** Says what an output was written by. */
    static void mark(Block block, Codec codec, Schemas schemas) throws IOException {
        Definition definition = codec.definition();
        if (definition != null) block.add("schema", schemas.number(definition));
    }

    private static Optional<?> option(Class<?> type, Object of, String getter) throws ReflectiveOperationException {
        Object value = type.getMethod(getter).invoke(of);
        return value instanceof Optional ? (Optional<?>) value : Optional.empty();
    }
}
