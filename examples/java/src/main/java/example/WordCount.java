package example;

import org.apache.pulsar.functions.api.Context;
import org.apache.pulsar.functions.api.Function;

/** Counts words. It is written for Apache Pulsar's functions API, and runs on Geminga as it is. */
public class WordCount implements Function<String, String> {
    @Override
    public String process(String line, Context context) {
        String[] words = line.trim().toLowerCase().split("\\s+");
        if (words[0].isEmpty()) {
            context.getLogger().warn("a line without words");
            return null;
        }
        for (String word : words) {
            context.incrCounter(word, 1);
        }
        return String.format("%d words, \"%s\" seen %d times", words.length, words[0], context.getCounter(words[0]));
    }
}
