package launcher;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** The launcher's own arguments, and what is left for Toree. */
final class Arguments {
    /** Kernel specifications that were made for older gateways spell them so. */
    private static final String OLD_PREFIX = "--RemoteProcessProxy.";

    private static final List<String> MODES = Arrays.asList("lazy", "eager", "none");

    String kernelId = "";
    String responseAddress = "";
    /** The lowest and highest port; equal ones mean any. */
    int lowPort;

    int highPort;
    String sparkMode = "lazy";

    private final List<String> others = new ArrayList<>();

    private Arguments() {}

    static Arguments parse(String[] argv) throws Refusal {
        Arguments arguments = new Arguments();
        for (int i = 0; i < argv.length; i++) {
            String item = argv[i];
            if (item.equals("--")) { // the rest is the interpreter's
                arguments.others.addAll(Arrays.asList(argv).subList(i, argv.length));
                break;
            }
            int equals = item.startsWith("--") ? item.indexOf('=') : -1;
            String name = equals < 0 ? item : item.substring(0, equals);
            if (name.startsWith(OLD_PREFIX)) {
                name = "--" + name.substring(OLD_PREFIX.length());
            }
            if (!isOurs(name)) {
                arguments.others.add(item);
            } else if (equals >= 0) {
                arguments.take(name, item.substring(equals + 1));
            } else if (++i < argv.length) {
                arguments.take(name, argv[i]);
            } else {
                throw new Refusal("The launcher's argument " + item + " needs a value after it.");
            }
        }
        return arguments;
    }

    private static boolean isOurs(String name) {
        return Arrays.asList("--kernel-id", "--port-range", "--response-address", "--public-key", "--kernel-class-name",
                "--spark-context-initialization-mode").contains(name);
    }

    private void take(String name, String value) throws Refusal {
        switch (name) {
            case "--kernel-id":
                kernelId = value;
                break;
            case "--port-range":
                takePorts(value);
                break;
            case "--response-address":
                responseAddress = value;
                break;
            case "--spark-context-initialization-mode":
                if (!MODES.contains(value)) {
                    throw new Refusal("--spark-context-initialization-mode is '" + value + "': write lazy, eager or none.");
                }
                sparkMode = value;
                break;
            default: // accepted and not needed: nothing leaves the host unencrypted, and there is one kind of kernel
        }
    }

    private void takePorts(String text) throws Refusal {
        String[] ends = text.split("\\.\\.", -1);
        try {
            lowPort = Integer.parseInt(ends[0].trim());
            highPort = Integer.parseInt(ends[1].trim());
        } catch (NumberFormatException | ArrayIndexOutOfBoundsException error) {
            throw new Refusal("--port-range is '" + text + "': write LOW..HIGH, two numbers.");
        }
        if (lowPort != highPort && !(1024 <= lowPort && lowPort < highPort && highPort <= 65535)) {
            throw new Refusal("--port-range is '" + text + "': write two ports in 1024..65535, the lower one first.");
        }
    }

    /** Toree's command line. Eager is the launcher's to do: Toree would answer nobody until there is a session. */
    String[] forToree(String connectionFile) {
        List<String> argv = new ArrayList<>(Arrays.asList("--profile", connectionFile,
                "--spark-context-initialization-mode", sparkMode.equals("eager") ? "lazy" : sparkMode));
        argv.addAll(others);
        return argv.toArray(new String[0]);
    }
}
