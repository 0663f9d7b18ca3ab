package launcher;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.management.ManagementFactory;
import java.lang.reflect.InvocationTargetException;
import java.net.ProtocolFamily;
import java.net.SocketAddress;
import java.net.StandardProtocolFamily;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * A launcher's line to its listener, through the Unix socket at the response address: `server_listener.py` describes it, and has the same
 * class. Java knows Unix sockets since 16; before, Python (which every host has, the listener is Python) copies between the socket and two
 * pipes.
 */
final class Report {
    private static final String BRIDGE = "import socket, sys\n"
            + "line = socket.socket(socket.AF_UNIX)\n"
            + "line.connect(sys.argv[1])\n"
            + "sys.stdout.buffer.write(line.makefile('rb').readline())\n"
            + "sys.stdout.flush()\n"
            + "line.sendall(sys.stdin.buffer.readline())\n";

    private static final int MAX_LINE = 1 << 20;

    private final InputStream input;
    private final OutputStream output;

    private Report(InputStream input, OutputStream output) {
        this.input = input;
        this.output = output;
    }

    static Report to(String address) throws Refusal {
        try {
            SocketChannel channel = unixSocket(address);
            if (channel != null) {
                return new Report(Channels.newInputStream(channel), Channels.newOutputStream(channel));
            }
            Process bridge = new ProcessBuilder("python3", "-I", "-S", "-c", BRIDGE, address)
                    .redirectError(ProcessBuilder.Redirect.INHERIT)
                    .start();
            return new Report(bridge.getInputStream(), bridge.getOutputStream());
        } catch (IOException error) {
            throw new Refusal("The listener cannot be reached at " + address + ": " + error.getMessage() + ".");
        }
    }

    /** What the kernel shall use. */
    Map<String, Object> given() throws Refusal {
        ByteArrayOutputStream line = new ByteArrayOutputStream();
        try {
            for (int c = input.read(); c >= 0 && c != '\n' && line.size() < MAX_LINE; c = input.read()) {
                line.write(c);
            }
            return Json.parse(new String(line.toByteArray(), StandardCharsets.UTF_8));
        } catch (IOException | IllegalArgumentException error) {
            throw new Refusal("The listener did not say what the kernel shall use: " + error.getMessage() + ".");
        }
    }

    /** Tell the listener that the kernel's sockets answer. */
    void send(Map<String, Object> connectionInfo) throws IOException {
        Map<String, Object> report = new LinkedHashMap<>();
        report.put("connection_info", connectionInfo);
        report.put("pid", Long.valueOf(ManagementFactory.getRuntimeMXBean().getName().split("@")[0]));
        Long group = processGroup();
        if (group != null) {
            report.put("pgid", group);
        }
        output.write((Json.write(report) + "\n").getBytes(StandardCharsets.UTF_8));
        output.flush();
        output.close();
    }

    /** Null before Java 16. */
    private static SocketChannel unixSocket(String path) throws IOException {
        try {
            ProtocolFamily family = StandardProtocolFamily.valueOf("UNIX");
            Object address = Class.forName("java.net.UnixDomainSocketAddress").getMethod("of", String.class).invoke(null, path);
            SocketChannel channel = (SocketChannel) SocketChannel.class.getMethod("open", ProtocolFamily.class).invoke(null, family);
            channel.connect((SocketAddress) address);
            return channel;
        } catch (IllegalArgumentException | ClassNotFoundException | NoSuchMethodException | IllegalAccessException error) {
            return null;
        } catch (InvocationTargetException error) {
            throw new IOException(error.getCause().getMessage());
        }
    }

    /** The process group's id, after the command's name in parentheses: "pid (name) state ppid pgrp …"; null where there is no /proc. */
    private static Long processGroup() {
        try {
            String stat = new String(Files.readAllBytes(Paths.get("/proc/self/stat")), StandardCharsets.ISO_8859_1);
            return Long.valueOf(stat.substring(stat.lastIndexOf(')') + 2).split(" ")[2]);
        } catch (IOException error) {
            return null;
        }
    }
}
