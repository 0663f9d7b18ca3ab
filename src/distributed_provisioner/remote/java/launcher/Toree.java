package launcher;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.util.Arrays;

/** Apache Toree and Spark, as far as the launcher needs them; by reflection, for it is compiled without them. */
final class Toree {
    private static final String MAIN = "org.apache.toree.Main";
    private static final String SESSION = "org.apache.spark.sql.SparkSession";

    private final ClassLoader loader = Thread.currentThread().getContextClassLoader();
    private final Class<?> main;

    private Toree() throws Refusal {
        main = load(MAIN, "Apache Toree is not on the class path: give its assembly to spark-submit by --jars, as bin/run.sh does.");
    }

    /** Checked: Toree and the Spark that it needs are here, and fit each other and this Java. */
    static Toree onThisJvm() throws Refusal {
        Toree toree = new Toree();
        toree.load(SESSION, "Spark is not on the class path: start the launcher by spark-submit, as bin/run.sh does.");
        toree.checkScala();
        checkJava();
        openJarPackage();
        return toree;
    }

    private void checkScala() throws Refusal {
        String sparks = version("scala.util.Properties", "versionNumberString");
        String own = version("org.apache.toree.kernel.BuildInfo", "scalaVersion");
        if (!sparks.isEmpty() && !own.isEmpty() && !minor(sparks).equals(minor(own))) {
            throw new Refusal("This Apache Toree is for Scala " + minor(own) + ", and the Spark here has Scala " + minor(sparks)
                    + ": set SPARK_HOME to a Spark 3 for Scala " + minor(own) + ".");
        }
    }

    private String version(String type, String method) {
        try {
            return String.valueOf(call(Class.forName(type, true, loader), null, method));
        } catch (ReflectiveOperationException | LinkageError error) {
            return ""; // another version of it; what does not fit will show
        }
    }

    private static String minor(String version) {
        return version.replaceFirst("^(\\d+\\.\\d+).*", "$1");
    }

    /** Toree installs a security manager. */
    private static void checkJava() throws Refusal {
        String version = System.getProperty("java.specification.version");
        int number = Integer.parseInt(version.replaceFirst("^1\\.", ""));
        boolean allowed = "allow".equals(System.getProperty("java.security.manager"));
        if (number >= 24 || number >= 18 && !allowed) {
            throw new Refusal("Apache Toree does not run on Java " + version + ": set JAVA_HOME to a Java 8, 11 or 17.");
        }
    }

    /**
     * Toree finds its magics with a library that looks into java.util.jar, which is closed since Java 16. Done here, so that a user's own
     * `--driver-java-options` are left alone; Spark opens java.lang itself.
     */
    private static void openJarPackage() {
        try {
            Object base = call(Class.class, Object.class, "getModule");
            Method open = base.getClass().getDeclaredMethod("implAddOpensToAllUnnamed", String.class);
            open.setAccessible(true);
            open.invoke(base, "java.util.jar");
        } catch (NoSuchMethodException error) {
            // Java 8 has no modules
        } catch (ReflectiveOperationException | RuntimeException error) {
            System.err.println("Magics will be missing: start Java with --add-opens=java.base/java.util.jar=ALL-UNNAMED (" + error + ").");
        }
    }

    /** Toree has no mode "none": its `spark` creates a session at first use, unless it knows no master. */
    void forgetMaster() {
        System.clearProperty("spark.master");
    }

    /** Run the kernel; returns when it has been shut down. */
    void run(String[] argv) throws Refusal {
        try {
            main.getMethod("main", String[].class).invoke(null, (Object) argv);
        } catch (InvocationTargetException error) {
            error.getCause().printStackTrace();
            throw new Refusal("Apache Toree has failed: " + error.getCause() + ".");
        } catch (ReflectiveOperationException error) {
            throw new Refusal("This is not an Apache Toree that the launcher knows: " + error + ".");
        }
    }

    /** Create the session that the first use of `spark` would create; a cell that uses it meanwhile waits for it. */
    void createSession() {
        try {
            Object builder = call(session(), null, "builder");
            call(builder.getClass(), builder, "getOrCreate");
        } catch (ReflectiveOperationException error) {
            Throwable reason = error.getCause() == null ? error : error.getCause();
            reason.printStackTrace();
            System.err.println("No Spark session at the start: " + reason + ". The first cell that uses it tries again.");
        }
    }

    /** Cancel all jobs of the Spark session, if there is one: nobody waits for what they compute any more. */
    void cancelJobs() {
        try {
            // Its SparkContext would tell whether it is there only after its creation, which may take minutes.
            Object session = call(session(), null, "getDefaultSession");
            if (Boolean.TRUE.equals(call(session.getClass(), session, "isDefined"))) {
                session = call(session.getClass(), session, "get");
                Object context = call(session(), session, "sparkContext");
                call(context.getClass(), context, "cancelAllJobs");
            }
        } catch (ReflectiveOperationException error) {
            System.err.println("The Spark jobs could not be canceled: " + (error.getCause() == null ? error : error.getCause()));
        }
    }

    /** Whether a thread is one of Toree's that runs or compiles a cell now. */
    static boolean runsCell(Thread thread) {
        return hasFrameOf(thread, "org.apache.toree.utils.TaskManager");
    }

    /** Whether it runs a cell: Scala's interpreter calls the classes that it makes of them `$line1.$read…`. */
    static boolean runsCodeOfCell(Thread thread) {
        return runsCell(thread) && hasFrameOf(thread, "$line");
    }

    private static boolean hasFrameOf(Thread thread, String prefix) {
        return Arrays.stream(thread.getStackTrace()).anyMatch(frame -> frame.getClassName().startsWith(prefix));
    }

    private Class<?> session() throws ClassNotFoundException {
        return Class.forName(SESSION, true, loader);
    }

    private Class<?> load(String name, String otherwise) throws Refusal {
        try {
            return Class.forName(name, false, loader);
        } catch (ClassNotFoundException error) {
            throw new Refusal(otherwise);
        }
    }

    private static Object call(Class<?> type, Object target, String method) throws ReflectiveOperationException {
        return type.getMethod(method).invoke(target);
    }
}
