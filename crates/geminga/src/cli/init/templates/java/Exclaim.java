package example;

import org.apache.pulsar.functions.api.Context;
import org.apache.pulsar.functions.api.Function;

/** Puts a mark behind each message, and counts them. Written for Apache Pulsar's functions API. */
public class Exclaim implements Function<String, String> {
    @Override
    public String process(String text, Context context) {
        if (text.isEmpty()) {
            throw new IllegalArgumentException("the message is empty");
        }
        context.incrCounter("seen", 1);
        context.getLogger().info("got {} characters", text.length());
        return text + context.getUserConfigValueOrDefault("mark", "!");
    }
}
