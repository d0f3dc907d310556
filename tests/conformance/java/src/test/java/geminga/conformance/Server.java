package geminga.conformance;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/**
 * The server that is judged: one that somebody runs (SERVICE_URL and ADMIN_URL), or a {@code geminga standalone} of our
 * own ($GEMINGA_BIN, else target/release/geminga, else target/debug/geminga) that a test may kill.
 */
final class Server implements AutoCloseable {
    private static final Pattern ADDRESS = Pattern.compile("\"(serviceUrl|adminUrl)\":\\s*\"([^\"]+)\"");
    private static Server shared;

    private final Path folder;
    private Process process;
    private int port;
    private int httpPort;
    String serviceUrl;
    String adminUrl;

    private Server(Path folder) {
        this.folder = folder;
    }

    /** The one that all tests share; it lives as long as this process. */
    static synchronized Server shared() throws IOException {
        if (shared == null) {
            if (isOutside()) {
                shared = new Server(null);
                shared.serviceUrl = System.getenv("SERVICE_URL");
                shared.adminUrl = System.getenv("ADMIN_URL").replaceAll("/+$", "");
            } else {
                shared = own(0, 0);
            }
            Runtime.getRuntime().addShutdownHook(new Thread(shared::close));
            System.out.println("server: " + (isOutside() ? shared.serviceUrl : binary() + " " + shared.serviceUrl));
        }
        return shared;
    }

    /** A fresh one that the test may kill. Its ports lie outside the range from which clients get theirs: they find it
     * again, and never meet themselves while it is down. */
    static Server own() throws IOException {
        return own(quietPort(), quietPort());
    }

    private static Server own(int port, int httpPort) throws IOException {
        Server server = new Server(Files.createTempDirectory("geminga-conformance-java-"));
        server.port = port;
        server.httpPort = httpPort;
        server.start();
        return server;
    }

    static boolean isOutside() {
        return System.getenv("SERVICE_URL") != null;
    }

    private static String binary() {
        String named = System.getenv("GEMINGA_BIN");
        if (named != null) {
            return named;
        }
        String target = System.getenv().getOrDefault("CARGO_TARGET_DIR", "../../../target");
        for (String profile : List.of("release", "debug")) {
            Path path = Path.of(target, profile, "geminga");
            if (Files.isExecutable(path)) {
                return path.toString();
            }
        }
        throw new IllegalStateException("no geminga in " + target
                + ": run `cargo build --release`, or set GEMINGA_BIN or SERVICE_URL and ADMIN_URL");
    }

    private static int quietPort() {
        while (true) {
            int port = ThreadLocalRandom.current().nextInt(15_000, 32_000);
            try (ServerSocket probe = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
                return probe.getLocalPort();
            } catch (IOException taken) {
                // the next one
            }
        }
    }

    private void start() throws IOException {
        process = new ProcessBuilder(binary(), "standalone", "--port", "" + port, "--http-port", "" + httpPort,
                "--data", folder.resolve("data").toString(), "-o", "json")
                .redirectError(ProcessBuilder.Redirect.appendTo(folder.resolve("server.log").toFile()))
                .start();
        String line = new BufferedReader(new InputStreamReader(process.getInputStream())).readLine();
        if (line == null) {
            throw new IOException("the server did not become ready: " + Files.readString(folder.resolve("server.log")));
        }
        ADDRESS.matcher(line).results().forEach(found -> {
            if (found.group(1).equals("serviceUrl")) {
                serviceUrl = found.group(2);
            } else {
                adminUrl = found.group(2).replaceAll("/+$", "");
            }
        });
    }

    /** {@code kill -9}, and the same server again on its ports and data. */
    void killAndRestart() throws Exception {
        process.destroyForcibly().waitFor();
        start();
    }

    @Override
    public void close() {
        if (process == null) {
            return;
        }
        try {
            process.destroy();
            if (!process.waitFor(10, TimeUnit.SECONDS)) {
                process.destroyForcibly().waitFor();
            }
            try (Stream<Path> files = Files.walk(folder)) {
                files.sorted(Comparator.reverseOrder()).forEach(file -> file.toFile().delete());
            }
        } catch (IOException | InterruptedException error) {
            System.err.println("closing the server: " + error);
        }
    }
}
