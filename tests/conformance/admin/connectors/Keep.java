import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Map;
import org.apache.pulsar.functions.api.Record;
import org.apache.pulsar.io.core.Sink;
import org.apache.pulsar.io.core.SinkContext;

/** A sink that writes each message as a line of the file that its setting {@code path} names. */
public class Keep implements Sink<String> {
    private Path path;

    @Override
    public void open(Map<String, Object> config, SinkContext context) {
        path = Path.of(config.get("path").toString());
    }

    @Override
    public void write(Record<String> record) throws IOException {
        byte[] line = (record.getValue() + "\n").getBytes(StandardCharsets.UTF_8);
        Files.write(path, line, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
        System.out.println("kept " + record.getValue());
        record.ack();
    }

    @Override
    public void close() {
    }
}
