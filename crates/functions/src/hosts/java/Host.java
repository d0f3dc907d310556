// Geminga's host for Java functions: the JDK and nothing else.
//
// It runs java.util.function.Function classes, and functions written for Pulsar's functions API, as
// Pulsar's own instance does, over the socket binding of the host protocol (docs/host-protocol.md). The
// API's interfaces are met by proxies, so these files compile without them, and against any version.
//
// Host starts and ends; Wire is the socket; Blocks its header blocks; Worker the function and its messages;
// Types what the class says of its types; Values, TopicSchemas and Json payloads; Calls the objects that the function sees.
package geminga;

import java.io.*;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletionException;

public final class Host {
    static final String API = "org.apache.pulsar.functions.api.";
    static final String SCHEMA = "org.apache.pulsar.client.api.Schema";

    private Host() {}

    public static void main(String[] arguments) throws Exception {
        Wire wire = new Wire();
        System.setIn(new ByteArrayInputStream(new byte[0]));
        Wire.Frame hello = wire.next();
        Blocks.Facts facts = new Blocks.Facts(Blocks.parse(hello.body, 0, hello.body.length));
        Worker worker;
        try {
            if (!"1".equals(facts.get("protocol"))) {
                throw new IllegalStateException("host protocol " + facts.get("protocol") + " is not 1");
            }
            worker = new Worker(wire, facts);
        } catch (Throwable error) {
            cause(error).printStackTrace();
            wire.send('F', null, reason(error).getBytes(StandardCharsets.UTF_8));
            System.exit(1);
            return;
        }
        Blocks.Block ready = new Blocks.Block().add("protocol", "1")
                .add("language", "java " + System.getProperty("java.version"));
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

    /** What really happened, without what reflection and futures put around it. */
    static Throwable cause(Throwable error) {
        while ((error instanceof InvocationTargetException || error instanceof CompletionException) && error.getCause() != null) {
            error = error.getCause();
        }
        return error;
    }

    static String reason(Throwable error) {
        String text = cause(error).toString();
        return text.length() > 4000 ? text.substring(0, 4000) : text;
    }
}
