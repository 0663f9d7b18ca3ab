package launcher;

import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import sun.misc.Signal;
import sun.misc.SignalHandler;

/**
 * SIGINT as Jupyter means it: it ends what the cell does, never the kernel.
 *
 * <p>Toree's own handler ends the JVM when a second SIGINT comes within three seconds. And it asks Toree for the SparkContext to cancel its
 * jobs: where there is none yet, that makes one, in a thread that has no context class loader; Spark finds no class of the notebook's any
 * more. This one takes its place: jobs are canceled if there are any, threads that run a cell are interrupted, and stopped if they do not
 * care.
 */
final class Interrupts implements SignalHandler {
    /** Milliseconds for a cell to end by itself. */
    private static final int GRACE = 5000;

    /** The same, where somebody interrupts again. */
    private static final int LITTLE_GRACE = 1000;

    private static final int PAUSE = 50;
    private static final Signal INT = new Signal("INT");

    private final Toree toree;
    private final AtomicInteger count = new AtomicInteger();

    Interrupts(Toree toree) {
        this.toree = toree;
    }

    static void ignore() {
        Signal.handle(INT, signal -> {});
    }

    /** Wait until Toree has set its handler, and take its place. */
    void takeOver() {
        while (!Signal.handle(INT, this).getClass().getName().startsWith("org.apache.toree.")) {
            Ports.pause(PAUSE);
        }
    }

    @Override
    public void handle(Signal signal) {
        int number = count.incrementAndGet();
        toree.cancelJobs();
        Set<Thread> cells = threads().filter(Toree::runsCell).collect(Collectors.toSet());
        Set<Thread> asked = new HashSet<>();
        for (int waited = 0; waited < GRACE && !(waited >= LITTLE_GRACE && number != count.get()); waited += PAUSE) {
            cells.removeIf(cell -> !Toree.runsCell(cell));
            // Not while it is compiled: Toree knows no such end of a cell, and would not answer any more.
            cells.stream().filter(Toree::runsCodeOfCell).filter(asked::add).forEach(Thread::interrupt);
            if (cells.isEmpty()) {
                return;
            }
            Ports.pause(PAUSE);
        }
        cells.stream().filter(Toree::runsCodeOfCell).forEach(Interrupts::stop);
    }

    private static Stream<Thread> threads() {
        return Thread.getAllStackTraces().keySet().stream();
    }

    @SuppressWarnings("deprecation") // what it leaves half done is the notebook's own
    private static void stop(Thread cell) {
        try {
            cell.stop();
        } catch (UnsupportedOperationException error) {
            System.err.println("The cell cannot be interrupted: from Java 20 on, a thread that does not wait cannot be stopped.");
        }
    }
}
