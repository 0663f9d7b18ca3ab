package launcher;

import java.io.File;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Set;

/** TCP ports on this host. */
final class Ports {
    static final String LOOPBACK = "127.0.0.1";
    private static final String LISTENS = "0A";
    private static final int PAUSE = 50;
    private static final int PATIENCE = 200;

    private Ports() {}

    /** Different free ports on loopback, at random; `low == high`: any. They are not reserved: bind them soon. */
    static List<Integer> choose(int count, int low, int high) throws Refusal {
        int first = low == high ? 10000 : low;
        int last = low == high ? lastUnclaimed() : high;
        List<Integer> candidates = new ArrayList<>();
        for (int port = first; port <= last; port++) {
            candidates.add(port);
        }
        Collections.shuffle(candidates);
        List<Integer> found = new ArrayList<>();
        for (int port : candidates) {
            if (isFree(port)) {
                found.add(port);
            }
            if (found.size() == count) {
                return found;
            }
        }
        throw new Refusal("The kernel needs " + count + " ports: fewer are free in " + first + ".." + last + " on " + LOOPBACK
                + ". Widen the port range, or end kernels on this host.");
    }

    private static boolean isFree(int port) {
        try (ServerSocket probe = new ServerSocket()) {
            probe.setReuseAddress(true);
            probe.bind(new InetSocketAddress(LOOPBACK, port));
            return true;
        } catch (IOException error) {
            return false;
        }
    }

    /** The system gives the ports above to outgoing connections: one of those could take a port before Toree binds it. */
    private static int lastUnclaimed() {
        try {
            byte[] range = Files.readAllBytes(Paths.get("/proc/sys/net/ipv4/ip_local_port_range"));
            int claimed = Integer.parseInt(new String(range, StandardCharsets.US_ASCII).trim().split("\\s+")[0]);
            return claimed > 12000 ? claimed - 1 : 65535;
        } catch (IOException error) {
            return 49151;
        }
    }

    /** Return when somebody accepts connections there. */
    static void awaitAnswer(String address, int port) {
        while (true) {
            try (Socket probe = new Socket()) {
                probe.connect(new InetSocketAddress(address, port), PATIENCE);
                if (probe.getLocalPort() != port) { // else the system chose that port for the probe, which then reached itself
                    return;
                }
            } catch (IOException error) {
                // nobody yet
            }
            pause(PAUSE);
        }
    }

    /** Whether it is this process that listens there; true where the system does not tell. */
    static boolean isOwn(int port) {
        Set<String> sockets = new HashSet<>();
        File[] files = new File("/proc/self/fd").listFiles();
        for (File file : files == null ? new File[0] : files) {
            try {
                sockets.add(Files.readSymbolicLink(file.toPath()).toString());
            } catch (IOException error) {
                // closed since
            }
        }
        try {
            List<String> rows = new ArrayList<>(Files.readAllLines(Paths.get("/proc/self/net/tcp")));
            rows.addAll(Files.readAllLines(Paths.get("/proc/self/net/tcp6")));
            return rows.stream()
                    .map(row -> row.trim().split("\\s+"))
                    .filter(row -> row[1].endsWith(String.format(":%04X", port)) && row[3].equals(LISTENS))
                    .anyMatch(row -> sockets.contains("socket:[" + row[9] + "]"));
        } catch (IOException error) {
            return true;
        }
    }

    static void pause(int milliseconds) {
        try {
            Thread.sleep(milliseconds);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        }
    }
}
