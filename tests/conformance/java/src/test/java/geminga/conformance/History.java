package geminga.conformance;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * What one topic was promised to hold, and what its readers saw of it. It decides whether that fits together; it talks to
 * nobody. A message is {@code stream/number}: the numbers of a stream (a producer and a key) are 0, 1, 2, ...
 */
final class History {
    /** What all consumers of one subscription saw, in the order in which they took it. */
    static final class View {
        private final String name;
        private final boolean ordered;
        private final Map<String, Integer> top = new HashMap<>();
        private final Set<String> seen = new HashSet<>();
        private final List<String> wrong = new ArrayList<>();
        private long again;

        /** {@code ordered}: no message of a stream may come before the one that precedes it was seen. */
        View(String name, boolean ordered) {
            this.name = name;
            this.ordered = ordered;
        }

        synchronized void take(String value) {
            int cut = value.lastIndexOf('/');
            String stream = value.substring(0, cut);
            int number = Integer.parseInt(value.substring(cut + 1));
            int due = top.getOrDefault(stream, -1) + 1;
            if (ordered && number > due) {
                wrong.add(name + ": " + value + " came, where " + due + " was due");
            }
            top.merge(stream, number, Math::max);
            if (!seen.add(value)) {
                again++;
            }
        }

        @Override
        public String toString() {
            return name;
        }

        synchronized int count() {
            return seen.size();
        }

        synchronized long again() {
            return again;
        }
    }

    private final Map<String, Integer> next = new HashMap<>();
    private final Set<String> promised = new HashSet<>();

    /** The next message of a stream; what is returned will be sent. */
    synchronized String next(String stream) {
        return stream + "/" + (next.merge(stream, 1, Integer::sum) - 1);
    }

    /** The server acknowledged it to its producer. */
    synchronized void promised(String value) {
        promised.add(value);
    }

    synchronized int promisedCount() {
        return promised.size();
    }

    /** Whatever contradicts the promises, in a view that should be complete by now. */
    synchronized List<String> problems(View view) {
        List<String> problems = new ArrayList<>();
        synchronized (view) {
            problems.addAll(view.wrong);
            Set<String> lost = new HashSet<>(promised);
            lost.removeAll(view.seen);
            if (!lost.isEmpty()) {
                problems.add(view.name + ": lost " + lost.size() + " of " + promised.size() + ": "
                        + lost.stream().sorted().limit(5).toList());
            }
        }
        return problems;
    }

    /** As {@link #problems}, of a view that reads a log from its beginning where nothing may be twice. */
    synchronized List<String> problemsOfOnce(View view) {
        List<String> problems = problems(view);
        synchronized (view) {
            if (view.again > 0) {
                problems.add(view.name + ": " + view.again + " messages are there twice");
            }
        }
        return problems;
    }
}
