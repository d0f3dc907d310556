package geminga;

import geminga.Blocks.Block;
import java.io.*;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicInteger;

/** The socket, what was read ahead, and the outcomes that wait to be sent. Any thread may call it. */
final class Wire {
    /** Verdicts of a message. */
    static final int DONE = 0, FAILED = 1, DATA = 2, TEMPORARY = 3, DROP = 4, HOLD = 5;

    private static final int FLUSH_BYTES = 1 << 18;
    private static final int HEAD_BYTES = 12;

    private final DataInputStream in;
    private final OutputStream out = new FileOutputStream(FileDescriptor.in);
    // The worker sends no more than its window.
    private final BlockingQueue<Frame> frames = new LinkedBlockingQueue<>();
    private final Map<String, CompletableFuture<byte[]>> answers = new ConcurrentHashMap<>();
    private final AtomicInteger asked = new AtomicInteger();
    private final ByteArrayOutputStream outcomes = new ByteArrayOutputStream(1 << 16);
    private int waiting;
    private volatile boolean busy;
    private volatile boolean ended;
    private final Semaphore work = new Semaphore(0);

    static final class Frame {
        final char kind;
        final byte[] body;

        Frame(char kind, byte[] body) {
            this.kind = kind;
            this.body = body;
        }
    }

    /** A message on its way out. */
    static final class Output {
        final Block block;
        final byte[] payload;

        Output(Block block, byte[] payload) {
            this.block = block;
            this.payload = payload;
        }
    }

    /** The worker has no answer now. */
    static final class Unanswered extends RuntimeException {
        Unanswered(String why) {
            super(why);
        }
    }

    Wire() {
        in = new DataInputStream(new BufferedInputStream(new FileInputStream(FileDescriptor.in), FLUSH_BYTES));
        daemon("geminga-reader", this::read);
        daemon("geminga-flusher", this::flushLate);
    }

    private static void daemon(String name, Runnable body) {
        Thread thread = new Thread(body, name);
        thread.setDaemon(true);
        thread.start();
    }

    private void read() {
        try {
            byte[] head = new byte[HEAD_BYTES];
            while (true) {
                in.readFully(head);
                byte[] body = new byte[Integer.parseInt(new String(head, 2, 9, StandardCharsets.US_ASCII))];
                in.readFully(body);
                if (head[0] == 'A') {
                    answer(body);
                } else {
                    frames.add(new Frame((char) head[0], body));
                }
            }
        } catch (IOException | RuntimeException end) {
            ended = true;
            frames.add(new Frame('!', new byte[0]));
            answers.values().forEach(answer -> answer.completeExceptionally(new EOFException()));
        }
    }

    private void answer(byte[] body) {
        int size = ByteBuffer.wrap(body).order(ByteOrder.LITTLE_ENDIAN).getInt();
        Blocks.Facts facts = new Blocks.Facts(Blocks.parse(body, 4, 4 + size));
        CompletableFuture<byte[]> asking = answers.remove(facts.get("ask"));
        if (asking != null && !facts.get("error").isEmpty()) {
            asking.completeExceptionally(new Unanswered(facts.get("error")));
        } else if (asking != null) {
            asking.complete(facts.get("found").equals("1") ? Arrays.copyOfRange(body, 4 + size, body.length) : null);
        }
    }

    Frame next() throws IOException {
        while (true) {
            try {
                Frame frame = frames.take();
                if (frame.kind == '!') {
                    throw new EOFException();
                }
                return frame;
            } catch (InterruptedException left) {
                // By the function, for whom it was: the socket is as it was.
            }
        }
    }

    /** A batch is in hand: outcomes that wait for long are flushed. */
    void begin() {
        if (!busy) {
            busy = true;
            work.release();
        }
    }

    void end() throws IOException {
        busy = false;
        flush();
    }

    private void flushLate() {
        try {
            while (true) {
                work.acquire();
                while (busy) {
                    Thread.sleep(5);
                    flush();
                }
            }
        } catch (IOException | InterruptedException gone) {
            // The reader notices too.
        }
    }

    synchronized void outcome(long number, int verdict, String reason, List<Output> outputs) throws IOException {
        byte[] why = reason.getBytes(StandardCharsets.UTF_8);
        number(number, 8);
        outcomes.write(verdict);
        number(outputs.size(), 4);
        number(why.length, 4);
        outcomes.write(why, 0, why.length);
        for (Output output : outputs) {
            byte[] block = output.block == null ? new byte[0] : output.block.bytes();
            number(block.length, 4);
            number(output.payload.length, 4);
            outcomes.write(block, 0, block.length);
            outcomes.write(output.payload, 0, output.payload.length);
        }
        waiting++;
        if (outcomes.size() > FLUSH_BYTES) {
            flush();
        }
    }

    private void number(long value, int bytes) {
        for (int i = 0; i < bytes; i++) {
            outcomes.write((int) (value >> 8 * i));
        }
    }

    synchronized void flush() throws IOException {
        if (waiting == 0) {
            return;
        }
        out.write(head('O', outcomes.size() + 4, 4).putInt(waiting).array());
        outcomes.writeTo(out);
        outcomes.reset();
        waiting = 0;
    }

    /** The head of a frame of `size` bytes, in a buffer with room for `more`. */
    private static ByteBuffer head(char kind, int size, int more) {
        ByteBuffer head = ByteBuffer.allocate(HEAD_BYTES + more).order(ByteOrder.LITTLE_ENDIAN);
        head.put((byte) kind).put((byte) ' ');
        for (int i = 8, rest = size; i >= 0; i--, rest /= 10) {
            head.put(2 + i, (byte) ('0' + rest % 10));
        }
        head.position(HEAD_BYTES - 1);
        return head.put((byte) '\n');
    }

    /** One frame; outcomes that wait go first, so that the order of events stays true. */
    synchronized void send(char kind, Block block, byte[] rest) throws IOException {
        flush();
        byte[] named = block == null ? new byte[0] : block.bytes();
        int size = rest.length + (block == null ? 0 : 4 + named.length);
        ByteBuffer frame = head(kind, size, size);
        if (block != null) {
            frame.putInt(named.length).put(named);
        }
        out.write(frame.put(rest).array());
    }

    byte[] ask(Block question) throws IOException {
        String number = String.valueOf(asked.incrementAndGet());
        CompletableFuture<byte[]> answer = new CompletableFuture<>();
        answers.put(number, answer);
        if (ended) {
            throw new EOFException();
        }
        send('Q', question.add("ask", number), new byte[0]);
        boolean interrupted = false;
        try {
            while (true) {
                try {
                    return answer.get();
                } catch (InterruptedException later) {
                    // The answer comes all the same; who asked sees the interruption then.
                    interrupted = true;
                }
            }
        } catch (ExecutionException gone) {
            if (gone.getCause() instanceof Unanswered) throw (Unanswered) gone.getCause();
            throw new EOFException();
        } finally {
            if (interrupted) Thread.currentThread().interrupt();
        }
    }

    void log(String level, String text) {
        try {
            send('L', new Block().add("level", level), text.getBytes(StandardCharsets.UTF_8));
        } catch (IOException gone) {
            System.err.println(text);
        }
    }
}
