package geminga;

import geminga.Blocks.Block;
import java.io.IOException;
import java.util.*;

/** What the worker is told of schemas, so that it can declare them to the topics. */
final class Schemas {
    /** As many as the worker keeps. */
    private static final int MAX = 1000;

    private final Wire wire;
    private final Map<Definition, Integer> numbers = new HashMap<>();

    Schemas(Wire wire) {
        this.wire = wire;
    }

    /** A schema without the code for its values. */
    static final class Definition {
        static final Definition STRING = new Definition("STRING", "String", new byte[0], Map.of());

        final String type, name;
        final byte[] data;
        final Map<String, String> properties;

        Definition(String type, String name, byte[] data, Map<String, String> properties) {
            this.type = type;
            this.name = name;
            this.data = data;
            this.properties = properties;
        }

        /** That of one of Pulsar's schemas; null for those that declare nothing. */
        static Definition of(Class<?> api, Object schema) throws ReflectiveOperationException {
            Object info = api.getMethod("getSchemaInfo").invoke(schema);
            if (info == null) return null;
            Class<?> type = Types.named(info.getClass(), "org.apache.pulsar.common.schema.SchemaInfo");
            if (type == null) return null;
            String kind = ((Enum<?>) type.getMethod("getType").invoke(info)).name();
            // Bytes, and what takes the schema of its topic.
            if (kind.equals("NONE") || kind.equals("BYTES") || kind.startsWith("AUTO")) return null;
            byte[] data = (byte[]) type.getMethod("getSchema").invoke(info);
            Map<String, String> properties = new TreeMap<>();
            Object given = type.getMethod("getProperties").invoke(info);
            if (given instanceof Map) {
                ((Map<?, ?>) given).forEach((name, value) -> properties.put(String.valueOf(name), String.valueOf(value)));
            }
            String name = (String) type.getMethod("getName").invoke(info);
            return new Definition(kind, name == null ? "" : name, data == null ? new byte[0] : data, properties);
        }

        /** That of a class by Pulsar's `Schema.JSON`; null where there is no such thing, or no client of Pulsar's. */
        static Definition json(Class<?> type, ClassLoader loader) {
            try {
                Class<?> api = Class.forName(Host.SCHEMA, true, loader);
                return of(api, api.getMethod("JSON", Class.class).invoke(null, type));
            } catch (ReflectiveOperationException | LinkageError none) {
                return null;
            }
        }

        @Override
        public boolean equals(Object other) {
            if (!(other instanceof Definition)) return false;
            Definition it = (Definition) other;
            return type.equals(it.type) && name.equals(it.name) && Arrays.equals(data, it.data) && properties.equals(it.properties);
        }

        @Override
        public int hashCode() {
            return Objects.hash(type, name, Arrays.hashCode(data), properties);
        }
    }

    /** The number by which outputs name a schema, which the worker is told first. */
    synchronized int number(Definition definition) throws IOException {
        Integer known = numbers.get(definition);
        return known == null ? tell(definition, List.of()) : known;
    }

    /** Before the host is ready: what outputs and inputs are that say nothing of themselves. */
    synchronized void declare(Map<String, Definition> all) throws IOException {
        Map<Definition, List<String>> uses = new LinkedHashMap<>();
        all.forEach((use, definition) -> uses.computeIfAbsent(definition, none -> new ArrayList<>()).add(use));
        for (Map.Entry<Definition, List<String>> one : uses.entrySet()) {
            tell(one.getKey(), one.getValue());
        }
    }

    private int tell(Definition definition, List<String> uses) throws IOException {
        if (numbers.size() >= MAX) throw new IllegalStateException("more than " + MAX + " schemas: make them once, and not anew for each message");
        int number = numbers.size();
        Block block = new Block().add("id", number).add("type", definition.type).add("name", definition.name);
        for (String use : uses) block.add("of", use);
        definition.properties.forEach((name, value) -> block.add("prop." + name, value));
        wire.send('S', block, definition.data);
        numbers.put(definition, number);
        return number;
    }
}
