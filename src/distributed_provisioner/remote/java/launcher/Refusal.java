package launcher;

/** Why there is no kernel: one sentence for the log, which says what to do. */
final class Refusal extends Exception {
    private static final long serialVersionUID = 1;

    Refusal(String sentence) {
        super(sentence);
    }
}
