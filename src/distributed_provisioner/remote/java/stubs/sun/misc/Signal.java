package sun.misc;

/** What the compiler must know of the JDK's own class, which `--release 8` hides. Not part of the jar. */
public final class Signal {
    public Signal(String name) {}

    public static SignalHandler handle(Signal signal, SignalHandler handler) {
        return null;
    }
}
