package geminga;

import java.lang.reflect.*;
import java.util.*;

/** As much of JSON as values of functions need: maps, lists, plain values, and objects by their fields. */
final class Json {
    private static final java.util.regex.Pattern FRACTION =
            java.util.regex.Pattern.compile("-?\\d+(\\.\\d+)?([eE][-+]?\\d+)?");

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
        Number number = number(word);
        if (number != null) return number;
        at = from;
        throw wrong();
    }

    /** A number of JSON, in the smallest type that holds it; `null` for what is none. */
    private static Number number(String word) {
        int length = word.length(), digits = word.startsWith("-") ? 1 : 0;
        boolean whole = digits < length;
        for (int i = digits; i < length && whole; i++) {
            whole = word.charAt(i) >= '0' && word.charAt(i) <= '9';
        }
        if (whole) {
            if (length - digits < 10) return Integer.valueOf(word);
            if (length - digits < 19) return Long.valueOf(word);
            return new java.math.BigInteger(word);
        }
        return FRACTION.matcher(word).matches() ? Double.valueOf(word) : null;
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
                Object made = record((Map<?, ?>) value, wanted);
                if (made != null) return made;
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
                throw new IllegalArgumentException(wanted.getName() + " can not be made: " + Host.reason(error), error);
            }
        }
        throw new IllegalArgumentException(value.getClass().getSimpleName() + " is no " + wanted.getName());
    }

    /** A value of a record class (Java 16 and later); `null` for another class. */
    private static Object record(Map<?, ?> values, Class<?> wanted) throws ReflectiveOperationException {
        if (wanted.getSuperclass() == null || !wanted.getSuperclass().getName().equals("java.lang.Record")) return null;
        Object[] components = (Object[]) Class.class.getMethod("getRecordComponents").invoke(wanted);
        Class<?>[] types = new Class<?>[components.length];
        Object[] arguments = new Object[components.length];
        for (int i = 0; i < components.length; i++) {
            Class<?> about = components[i].getClass();
            types[i] = (Class<?>) about.getMethod("getType").invoke(components[i]);
            Type generic = (Type) about.getMethod("getGenericType").invoke(components[i]);
            arguments[i] = as(values.get(about.getMethod("getName").invoke(components[i])), generic);
            if (arguments[i] == null && types[i].isPrimitive()) {
                // As a field that is not named keeps its zero.
                arguments[i] = Array.get(Array.newInstance(types[i], 1), 0);
            }
        }
        Constructor<?> constructor = wanted.getDeclaredConstructor(types);
        constructor.setAccessible(true);
        return constructor.newInstance(arguments);
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
