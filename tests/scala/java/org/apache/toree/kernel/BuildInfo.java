package org.apache.toree.kernel;

/** Stands for Toree's. */
public final class BuildInfo {
    public static String scalaVersion() {
        return "2.12.15";
    }
}
