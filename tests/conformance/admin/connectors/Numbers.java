import java.util.Map;
import org.apache.pulsar.functions.api.Record;
import org.apache.pulsar.io.core.Source;
import org.apache.pulsar.io.core.SourceContext;

/** A source that gives as many numbers as its setting {@code count} says, and then waits. */
public class Numbers implements Source<String> {
    private int last;
    private int given;

    @Override
    public void open(Map<String, Object> config, SourceContext context) {
        last = ((Number) config.get("count")).intValue();
    }

    @Override
    public Record<String> read() throws InterruptedException {
        while (given == last) {
            Thread.sleep(100);
        }
        String value = String.valueOf(++given);
        return () -> value;
    }

    @Override
    public void close() {
    }
}
