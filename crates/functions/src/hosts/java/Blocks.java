package geminga;

import java.nio.charset.StandardCharsets;
import java.util.*;

/** Header blocks: lines of name and value. */
final class Blocks {
    private Blocks() {}

    static List<String[]> parse(byte[] body, int from, int to) {
        List<String[]> pairs = new ArrayList<>();
        String text = new String(body, from, to - from, StandardCharsets.UTF_8);
        for (int at = 0, end; at < text.length(); at = end + 1) {
            end = text.indexOf('\n', at);
            if (end < 0) end = text.length();
            int colon = text.indexOf(':', at);
            if (colon >= 0 && colon < end) {
                pairs.add(new String[] {unescape(text.substring(at, colon)), unescape(text.substring(colon + 1, end))});
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
            } else if (i + 4 <= text.length()) {
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
}
