package org.apache.toree;

import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import sun.misc.Signal;
import sun.misc.SignalHandler;

/** Stands for Toree where only the launcher is looked at: it listens late, and ends on SIGINT. */
public final class Main implements SignalHandler {
    public static void main(String[] argv) throws Exception {
        System.out.println("argv: " + Arrays.asList(argv) + " master: " + System.getProperty("spark.master"));
        Signal.handle(new Signal("INT"), new Main());
        Thread.sleep(1000);
        String info = new String(Files.readAllBytes(Paths.get(argv[Arrays.asList(argv).indexOf("--profile") + 1])));
        List<ServerSocket> listening = new ArrayList<>();
        Matcher matcher = Pattern.compile("_port\": (\\d+)").matcher(info);
        while (matcher.find() && !Arrays.asList(argv).contains("--deaf")) {
            listening.add(new ServerSocket(Integer.parseInt(matcher.group(1)), 50, InetAddress.getByName("127.0.0.1")));
        }
        Thread.sleep(Arrays.asList(argv).contains("--end") ? 500 : 60000);
    }

    @Override
    public void handle(Signal signal) {
        System.exit(99);
    }
}
