package geminga;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.Collections;
import java.util.Deque;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;

// Unpacks a NAR into a folder: Unpack NAR FOLDER FILES BYTES. No more files, folders among them, and bytes than that:
// an archive may be made to fill the disk, and may say that it is smaller than it is, so that what is written is
// counted. One name may make two thousand folders.
final class Unpack {
    private final String nar;
    private final long filesMax;
    private final long bytesMax;
    private long files;
    private long bytes;

    private Unpack(String nar, long filesMax, long bytesMax) {
        this.nar = nar;
        this.filesMax = filesMax;
        this.bytesMax = bytesMax;
    }

    public static void main(String[] arguments) {
        Unpack unpack = new Unpack(arguments[0], Long.parseLong(arguments[2]), Long.parseLong(arguments[3]));
        try {
            unpack.into(Path.of(arguments[1]).toAbsolutePath().normalize());
        } catch (IOException | IllegalArgumentException error) {
            System.err.println("`" + unpack.nar + "`: " + error.getMessage());
            System.exit(1);
        }
    }

    private void into(Path folder) throws IOException {
        try (ZipFile archive = new ZipFile(nar)) {
            if (archive.size() > filesMax) {
                throw tooMuch();
            }
            byte[] buffer = new byte[1 << 16];
            for (ZipEntry entry : Collections.list(archive.entries())) {
                Path path = folder.resolve(entry.getName()).normalize();
                if (!path.startsWith(folder)) {
                    throw new IOException("it holds `" + entry.getName() + "`, which leads out of it");
                }
                if (entry.isDirectory()) {
                    make(path);
                    continue;
                }
                make(path.getParent());
                count();
                try (InputStream from = archive.getInputStream(entry); OutputStream to = Files.newOutputStream(path)) {
                    for (int count; (count = from.read(buffer)) >= 0; ) {
                        bytes += count;
                        if (bytes > bytesMax) {
                            throw tooMuch();
                        }
                        to.write(buffer, 0, count);
                    }
                }
            }
        }
    }

    private void make(Path folder) throws IOException {
        Deque<Path> missing = new ArrayDeque<>();
        for (Path at = folder; !Files.isDirectory(at); at = at.getParent()) {
            missing.push(at);
        }
        for (Path path : missing) {
            count();
            Files.createDirectory(path);
        }
    }

    private void count() throws IOException {
        files++;
        if (files > filesMax) {
            throw tooMuch();
        }
    }

    private IOException tooMuch() {
        return new IOException("it unpacks to more than " + filesMax + " files and folders or " + bytesMax + " bytes");
    }
}
