package launcher;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.FileAttribute;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;

/** What a client must know: written to a connection file that only its owner can read, which is where Toree reads it. */
final class ConnectionInfo {
    private static final List<String> CHANNELS = Arrays.asList("shell", "iopub", "stdin", "control", "hb");

    final Map<String, Object> fields;
    final String path;

    private ConnectionInfo(Map<String, Object> fields, Path path) throws Refusal {
        this.fields = fields;
        this.path = path.toString();
        FileAttribute<?> mode = PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------"));
        try {
            Files.deleteIfExists(path);
            Files.createFile(path, mode);
            Files.write(path, Json.write(fields).getBytes(StandardCharsets.UTF_8), StandardOpenOption.WRITE);
        } catch (IOException error) {
            throw new Refusal("The connection file " + path + " cannot be written: " + error + ".");
        }
    }

    /** As the listener says; for Unix sockets, which Toree does not have, ports on loopback. */
    static ConnectionInfo given(Map<String, Object> given, Arguments arguments) throws Refusal {
        if (given.get("curve_publickey") != null) {
            throw new Refusal("The kernel specification says that this kernel encrypts its sockets, which Apache Toree cannot:"
                    + " take supported_encryption out of its kernel.json.");
        }
        Map<String, Object> fields = new LinkedHashMap<>(given);
        fields.keySet().removeAll(Arrays.asList("kernel_id", "directory", "ports"));
        if (!"tcp".equals(given.get("transport"))) {
            choosePorts(fields, arguments);
        }
        return new ConnectionInfo(fields, Paths.get(given.get("directory").toString(), "connection.json"));
    }

    static ConnectionInfo own(Arguments arguments) throws Refusal {
        Map<String, Object> fields = new LinkedHashMap<>();
        choosePorts(fields, arguments);
        fields.put("key", UUID.randomUUID().toString());
        fields.put("signature_scheme", "hmac-sha256");
        String name = arguments.kernelId.isEmpty() ? UUID.randomUUID().toString() : arguments.kernelId;
        Path directory = runtimeDirectory();
        try {
            Files.createDirectories(directory);
        } catch (IOException error) {
            throw new Refusal("The directory " + directory + " cannot be made: " + error + ".");
        }
        ConnectionInfo info = new ConnectionInfo(fields, directory.resolve("kernel-" + name + ".json"));
        Paths.get(info.path).toFile().deleteOnExit();
        return info;
    }

    private static void choosePorts(Map<String, Object> fields, Arguments arguments) throws Refusal {
        fields.put("transport", "tcp");
        fields.put("ip", Ports.LOOPBACK);
        List<Integer> ports = Ports.choose(CHANNELS.size(), arguments.lowPort, arguments.highPort);
        for (String channel : CHANNELS) {
            fields.put(channel + "_port", ports.get(CHANNELS.indexOf(channel)));
        }
    }

    /** Where `jupyter console --existing` looks. */
    private static Path runtimeDirectory() {
        String runtime = System.getenv("JUPYTER_RUNTIME_DIR");
        if (runtime != null && !runtime.isEmpty()) {
            return Paths.get(runtime);
        }
        String data = System.getenv("JUPYTER_DATA_DIR");
        if (data != null && !data.isEmpty()) {
            return Paths.get(data, "runtime");
        }
        boolean mac = System.getProperty("os.name").startsWith("Mac");
        return Paths.get(System.getProperty("user.home"), mac ? "Library/Jupyter/runtime" : ".local/share/jupyter/runtime");
    }

    /** Return when all five sockets accept a connection. Throws Refusal where one of them is not this kernel's. */
    void awaitAnswers() throws Refusal {
        for (String channel : CHANNELS) {
            int port = ((Number) fields.get(channel + "_port")).intValue();
            Ports.awaitAnswer(fields.get("ip").toString(), port);
            if (!Ports.isOwn(port)) {
                throw new Refusal("Another program took port " + port + " on this host before Apache Toree did: start the kernel again.");
            }
        }
    }
}
