package launcher;

import java.io.IOException;

/**
 * Launches Apache Toree, a kernel for Scala, and reports its connection information.
 *
 * <p>With {@code --response-address} (the path of the listener's Unix socket for this kernel) the listener says which key and endpoints to
 * use, and is told once the kernel's sockets answer. By hand, without it, the launcher makes its own and prints where the connection file
 * is. It is the main class of a Spark application in client mode:
 *
 * <pre>
 * spark-submit --class launcher.ToreeLauncher --jars toree-assembly-0.5.0.jar toree-launcher-2.12.jar --kernel-id test
 * </pre>
 *
 * <p>Java 8 that refers neither to Scala nor to Spark or Toree when it is compiled, so that one jar serves all versions of them.
 */
public final class ToreeLauncher {
    private ToreeLauncher() {}

    public static void main(String[] argv) {
        // Whoever interrupts now means a cell that does not run yet; the JVM's own answer would be to exit.
        Interrupts.ignore();
        try {
            launch(Arguments.parse(argv));
        } catch (Refusal refusal) {
            end(refusal);
        }
        System.exit(0); // else Spark's threads keep the JVM alive
    }

    private static void launch(Arguments arguments) throws Refusal {
        Toree toree = Toree.onThisJvm();
        if (arguments.sparkMode.equals("none")) {
            toree.forgetMaster();
        }
        Report report = arguments.responseAddress.isEmpty() ? null : Report.to(arguments.responseAddress);
        ConnectionInfo info = report == null ? ConnectionInfo.own(arguments) : ConnectionInfo.given(report.given(), arguments);
        Thread reporter = new Thread(() -> {
            try {
                new Interrupts(toree).takeOver();
                info.awaitAnswers();
                tell(report, info);
            } catch (Refusal refusal) {
                end(refusal);
            }
            if (arguments.sparkMode.equals("eager")) {
                toree.createSession();
            }
        }, "launcher");
        reporter.setDaemon(true);
        reporter.start();
        toree.run(arguments.forToree(info.path));
    }

    private static void tell(Report report, ConnectionInfo info) throws Refusal {
        if (report == null) {
            System.out.println("The connection file is " + info.path);
            System.out.println("To use the kernel: jupyter console --existing " + info.path);
            return;
        }
        try {
            report.send(info.fields);
        } catch (IOException error) {
            throw new Refusal("The listener could not be told that the kernel is ready: " + error.getMessage() + ".");
        }
    }

    private static void end(Refusal refusal) {
        System.err.println(refusal.getMessage());
        System.exit(1);
    }
}
