package scala.util;

/** Stands for the one of Spark 4. */
public final class Properties {
    public static String versionNumberString() {
        return "2.13.16";
    }
}
