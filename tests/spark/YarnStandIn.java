import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.reflect.Proxy;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardCopyOption;
import java.security.PrivilegedAction;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.Collectors;
import java.util.zip.ZipEntry;
import java.util.zip.ZipInputStream;
import javax.crypto.SecretKey;
import org.apache.hadoop.io.DataInputByteBuffer;
import org.apache.hadoop.io.DataOutputBuffer;
import org.apache.hadoop.io.Text;
import org.apache.hadoop.ipc.Server;
import org.apache.hadoop.security.Credentials;
import org.apache.hadoop.security.UserGroupInformation;
import org.apache.hadoop.security.token.SecretManager;
import org.apache.hadoop.yarn.api.ApplicationClientProtocol;
import org.apache.hadoop.yarn.api.ApplicationMasterProtocol;
import org.apache.hadoop.yarn.api.ContainerManagementProtocol;
import org.apache.hadoop.yarn.api.protocolrecords.*;
import org.apache.hadoop.yarn.api.records.*;
import org.apache.hadoop.yarn.conf.YarnConfiguration;
import org.apache.hadoop.yarn.exceptions.ApplicationNotFoundException;
import org.apache.hadoop.yarn.exceptions.YarnException;
import org.apache.hadoop.yarn.ipc.YarnRPC;
import org.apache.hadoop.yarn.security.AMRMTokenIdentifier;
import org.apache.hadoop.yarn.security.NMTokenIdentifier;

/**
 * A stand-in for YARN's ResourceManager and NodeManagers, which no registry has. It speaks YARN's real wire protocols (Hadoop RPC), with the
 * classes that the package pyspark has in hadoop-client-api, so that real spark-submit clients, application masters and executors run on
 * it: several applications at a time, each known by its AMRM token. There is no security, no scheduling by resources, and no HDFS: what a
 * client has staged in a file of its own host is fetched from that host's node.
 *
 * <pre>
 * YarnStandIn node HOST PORT DIRECTORY             PORT + 1 gives files to other nodes
 * YarnStandIn manager HOST NODE:PORT,NODE:PORT…    on the ports of the configuration
 * </pre>
 */
public final class YarnStandIn {
    static final YarnConfiguration CONF = new YarnConfiguration();
    static final YarnRPC RPC = YarnRPC.create(CONF);

    private YarnStandIn() {}

    public static void main(String[] argv) throws Exception {
        if (argv[0].equals("node")) {
            new Node(argv[1], Integer.parseInt(argv[2]), Paths.get(argv[3]));
        } else {
            List<NodeId> nodes = new ArrayList<>();
            for (String node : argv[2].split(",")) {
                nodes.add(NodeId.fromString(node));
            }
            new Manager(nodes);
        }
        log("READY");
        Thread.sleep(Long.MAX_VALUE);
    }

    static synchronized void log(String line) {
        System.out.println(System.currentTimeMillis() + " " + line);
        System.out.flush();
    }

    /** What answers the calls of a protocol, by their names; null for a call that is not known. */
    interface Calls {
        Object call(String name, Object request) throws Exception;
    }

    static void serve(Class<?> protocol, InetSocketAddress address, SecretManager<AMRMTokenIdentifier> secrets, Calls calls) {
        Object instance = Proxy.newProxyInstance(protocol.getClassLoader(), new Class<?>[] {protocol}, (proxy, method, arguments) -> {
            if (method.getDeclaringClass() == Object.class) {
                switch (method.getName()) {
                    case "hashCode":
                        return System.identityHashCode(proxy);
                    case "equals":
                        return proxy == arguments[0];
                    default:
                        return protocol.getSimpleName();
                }
            }
            try {
                Object answer = calls.call(method.getName(), arguments[0]);
                if (answer == null) {
                    throw new IOException("the stand-in for YARN does not know " + method.getName());
                }
                return answer;
            } catch (IOException | YarnException error) {
                log(method.getName() + ": " + error);
                throw error;
            } catch (Exception error) {
                log(method.getName() + ": " + error);
                throw new IOException(error);
            }
        });
        RPC.getServer(protocol, instance, address, CONF, secrets, 5).start();
    }

    static org.apache.hadoop.yarn.api.records.Token token(String identifier, String kind, NodeId node) {
        byte[] bytes = identifier.getBytes(StandardCharsets.UTF_8);
        return org.apache.hadoop.yarn.api.records.Token.newInstance(bytes, kind, new byte[] {1, 2, 3, 4}, node.toString());
    }

    /** Where a node gives a file. */
    static URI files(NodeId node, Path path) {
        return URI.create("http://" + node.getHost() + ":" + (node.getPort() + 1) + path);
    }

    // --- nodes ---------------------------------------------------------------------------------------------------------------------------

    /** A NodeManager: starts containers as processes of its own user, in directories below its own. */
    static final class Node {
        final NodeId id;
        final Path directory;
        final Map<ContainerId, Process> containers = new ConcurrentHashMap<>();

        Node(String host, int port, Path directory) throws IOException {
            this.id = NodeId.newInstance(host, port);
            this.directory = directory;
            serve(ContainerManagementProtocol.class, new InetSocketAddress(host, port), null, this::call);
            HttpServer files = HttpServer.create(new InetSocketAddress(host, port + 1), 0);
            files.createContext("/", exchange -> {
                Path path = Paths.get(exchange.getRequestURI().getPath());
                boolean forget = exchange.getRequestMethod().equals("DELETE");
                exchange.sendResponseHeaders(forget || Files.isRegularFile(path) ? 200 : 404, 0);
                try (OutputStream body = exchange.getResponseBody()) {
                    if (forget) {
                        forget(path);
                    } else if (Files.isRegularFile(path)) {
                        Files.copy(path, body);
                    }
                }
            });
            files.start();
        }

        /** Remove what an application has staged. */
        static void forget(Path directory) throws IOException {
            if (!Files.isDirectory(directory) || !directory.getParent().endsWith(".sparkStaging")) {
                return;
            }
            for (Path path : Files.list(directory).collect(Collectors.toList())) {
                Files.delete(path);
            }
            Files.delete(directory);
        }

        Object call(String name, Object request) throws Exception {
            switch (name) {
                case "startContainers": {
                    List<ContainerId> started = new ArrayList<>();
                    for (StartContainerRequest wanted : ((StartContainersRequest) request).getStartContainerRequests()) {
                        ByteBuffer identifier = wanted.getContainerToken().getIdentifier().duplicate();
                        // "container host": where the client has staged its files
                        String[] words = StandardCharsets.UTF_8.decode(identifier).toString().split(" ");
                        ContainerId container = ContainerId.fromString(words[0]);
                        start(container, words[1], wanted.getContainerLaunchContext());
                        started.add(container);
                    }
                    return StartContainersResponse.newInstance(new HashMap<>(), started, new HashMap<>());
                }
                case "stopContainers": {
                    List<ContainerId> ids = ((StopContainersRequest) request).getContainerIds();
                    ids.forEach(this::stop);
                    return StopContainersResponse.newInstance(ids, new HashMap<>());
                }
                case "getContainerStatuses": {
                    List<ContainerStatus> statuses = new ArrayList<>();
                    for (ContainerId container : ((GetContainerStatusesRequest) request).getContainerIds()) {
                        statuses.add(status(container));
                    }
                    return GetContainerStatusesResponse.newInstance(statuses, new HashMap<>());
                }
                default:
                    return null;
            }
        }

        ContainerStatus status(ContainerId container) {
            Process process = containers.get(container);
            if (process == null || process.isAlive()) {
                return ContainerStatus.newInstance(container, process == null ? ContainerState.NEW : ContainerState.RUNNING, "", -1000);
            }
            return ContainerStatus.newInstance(container, ContainerState.COMPLETE, "", process.exitValue());
        }

        void stop(ContainerId container) {
            Process process = containers.get(container);
            if (process != null) {
                process.descendants().forEach(ProcessHandle::destroyForcibly);
                process.destroyForcibly();
            }
        }

        void start(ContainerId container, String source, ContainerLaunchContext context) throws Exception {
            Path application = directory.resolve(container.getApplicationAttemptId().getApplicationId().toString());
            Path work = application.resolve(container.toString());
            Path logs = application.resolve(container + ".logs");
            Path local = application.resolve("local");
            for (Path path : List.of(work, logs, local)) {
                Files.createDirectories(path);
            }
            for (Map.Entry<String, LocalResource> resource : context.getLocalResources().entrySet()) {
                localize(resource.getValue(), source, work.resolve(resource.getKey()));
            }
            Map<String, String> environment = new LinkedHashMap<>();
            environment.put("JAVA_HOME", System.getProperty("java.home"));
            environment.put("HADOOP_CONF_DIR", String.valueOf(System.getenv("HADOOP_CONF_DIR")));
            environment.put("CONTAINER_ID", container.toString());
            environment.put("NM_HOST", id.getHost());
            environment.put("NM_PORT", "" + id.getPort());
            environment.put("NM_HTTP_PORT", "8042");
            environment.put("LOCAL_DIRS", local.toString());
            environment.put("LOG_DIRS", logs.toString());
            environment.put("PWD", work.toString());
            environment.put("APPLICATION_WEB_PROXY_BASE", "/proxy/x");
            if (context.getTokens() != null) {
                ByteBuffer tokens = context.getTokens().duplicate();
                byte[] bytes = new byte[tokens.remaining()];
                tokens.get(bytes);
                Files.write(work.resolve("container_tokens"), bytes);
                environment.put("HADOOP_TOKEN_FILE_LOCATION", work.resolve("container_tokens").toString());
            }
            environment.putAll(context.getEnvironment());
            StringBuilder script = new StringBuilder("#!/bin/bash\n");
            environment.forEach(
                    (name, value) -> script.append("export ").append(name).append("=\"").append(expanded(value, logs)).append("\"\n"));
            String command = expanded(String.join(" ", context.getCommands()), logs).replace("'", "'\\''");
            script.append("exec /bin/bash -c '").append(command).append("'\n");
            Path file = work.resolve("launch_container.sh");
            Files.writeString(file, script.toString());
            Process process = new ProcessBuilder("setsid", "-w", "nice", "bash", file.toString())
                    .directory(work.toFile())
                    .redirectErrorStream(true)
                    .redirectOutput(logs.resolve("launch.log").toFile())
                    .start();
            containers.put(container, process);
            log("start " + container);
            process.onExit().thenAccept(ended -> log("exit " + container + " " + ended.exitValue()));
        }

        /** Put a file, or what is in an archive, to its place in a container's directory. */
        void localize(LocalResource resource, String source, Path target) throws IOException {
            Path path = Paths.get(resource.getResource().getFile());
            if (!source.equals(id.getHost()) && !Files.exists(path)) {
                // To where it lies on its own host: application masters look there, too.
                Files.createDirectories(path.getParent());
                try (InputStream in = files(NodeId.newInstance(source, id.getPort()), path).toURL().openStream()) {
                    Files.copy(in, path, StandardCopyOption.REPLACE_EXISTING);
                }
            }
            if (resource.getType() != LocalResourceType.ARCHIVE) {
                Files.createSymbolicLink(target, path);
                return;
            }
            try (ZipInputStream zip = new ZipInputStream(Files.newInputStream(path))) {
                for (ZipEntry entry = zip.getNextEntry(); entry != null; entry = zip.getNextEntry()) {
                    Path file = target.resolve(entry.getName());
                    Files.createDirectories(entry.isDirectory() ? file : file.getParent());
                    if (!entry.isDirectory()) {
                        Files.copy(zip, file, StandardCopyOption.REPLACE_EXISTING);
                    }
                }
            }
        }

        static String expanded(String text, Path logs) {
            return text.replace("<LOG_DIR>", logs.toString()).replace("<CPS>", ":").replaceAll("\\{\\{(\\w+)\\}\\}", "\\$$1");
        }
    }

    // --- the manager ---------------------------------------------------------------------------------------------------------------------

    /** Tells application masters apart: each has a token with its attempt's name. */
    static final class Secrets extends SecretManager<AMRMTokenIdentifier> {
        private final SecretKey key = generateSecret();

        @Override
        protected byte[] createPassword(AMRMTokenIdentifier identifier) {
            return createPassword(identifier.getBytes(), key);
        }

        @Override
        public byte[] retrievePassword(AMRMTokenIdentifier identifier) {
            return createPassword(identifier.getBytes(), key);
        }

        @Override
        public AMRMTokenIdentifier createIdentifier() {
            return new AMRMTokenIdentifier();
        }

        /** The tokens of a launch context, and one for its attempt. */
        ByteBuffer with(ByteBuffer given, ApplicationAttemptId attempt) throws IOException {
            Credentials credentials = new Credentials();
            if (given != null) {
                DataInputByteBuffer in = new DataInputByteBuffer();
                in.reset(given.duplicate());
                credentials.readTokenStorageStream(in);
            }
            AMRMTokenIdentifier identifier = new AMRMTokenIdentifier(attempt, 1);
            credentials.addToken(new Text("amrm"), new org.apache.hadoop.security.token.Token<>(identifier, this));
            DataOutputBuffer out = new DataOutputBuffer();
            credentials.writeTokenStorageToStream(out);
            return ByteBuffer.wrap(out.getData(), 0, out.getLength());
        }
    }

    static final class Application {
        final ApplicationSubmissionContext context;
        final String user;
        final String source;
        final Path staging;
        final long begun = System.currentTimeMillis();
        final Map<ContainerId, NodeId> live = new LinkedHashMap<>();
        YarnApplicationState state = YarnApplicationState.ACCEPTED;
        FinalApplicationStatus result = FinalApplicationStatus.UNDEFINED;
        String diagnostics = "";
        String host = "N/A";
        String url = "N/A";
        int port = -1;
        int containers;
        int responses;
        long ended;
        ContainerId master;

        Application(ApplicationSubmissionContext context, String user, String source) {
            this.context = context;
            LocalResource any = context.getAMContainerSpec().getLocalResources().values().iterator().next();
            this.staging = Paths.get(any.getResource().getFile()).getParent();
            this.user = user;
            this.source = source;
        }

        ApplicationId id() {
            return context.getApplicationId();
        }

        ApplicationAttemptId attempt() {
            return ApplicationAttemptId.newInstance(id(), 1);
        }

        ApplicationReport report() {
            String queue = context.getQueue() == null ? "default" : context.getQueue();
            return ApplicationReport.newInstance(
                    id(), attempt(), user, queue, context.getApplicationName(), host, port, null, state, diagnostics, url, begun, begun,
                    ended, result, null, url, ended == 0 ? 0.5f : 1f, context.getApplicationType(), null);
        }
    }

    /** A ResourceManager: gives every container that is asked for to the next node. */
    static final class Manager {
        final Map<ApplicationId, Application> applications = new ConcurrentHashMap<>();
        final Map<NodeId, ContainerManagementProtocol> connections = new ConcurrentHashMap<>();
        final Secrets secrets = new Secrets();
        final Resource least = Resource.newInstance(128, 1);
        final Resource most = Resource.newInstance(8192, 8);
        final long started = System.currentTimeMillis();
        final List<NodeId> nodes;
        int numbers;
        int turn;

        Manager(List<NodeId> nodes) {
            this.nodes = nodes;
            InetSocketAddress clients =
                    CONF.getSocketAddr(YarnConfiguration.RM_ADDRESS, YarnConfiguration.DEFAULT_RM_ADDRESS, YarnConfiguration.DEFAULT_RM_PORT);
            InetSocketAddress masters = CONF.getSocketAddr(
                    YarnConfiguration.RM_SCHEDULER_ADDRESS,
                    YarnConfiguration.DEFAULT_RM_SCHEDULER_ADDRESS,
                    YarnConfiguration.DEFAULT_RM_SCHEDULER_PORT);
            serve(ApplicationClientProtocol.class, clients, null, this::ofClient);
            serve(ApplicationMasterProtocol.class, masters, secrets, this::ofMaster);
            Thread watching = new Thread(this::watch, "watch");
            watching.setDaemon(true);
            watching.start();
        }

        void watch() {
            while (true) {
                try {
                    Thread.sleep(300);
                    for (Application application : applications.values()) {
                        look(application);
                    }
                } catch (Exception error) {
                    log("watch: " + error);
                }
            }
        }

        synchronized void look(Application application) throws Exception {
            if (application.master == null || application.ended != 0) {
                return;
            }
            ContainerStatus status = statusOf(application, application.master);
            if (status.getState() == ContainerState.COMPLETE) {
                if (application.state != YarnApplicationState.FINISHED) {
                    application.state = YarnApplicationState.FAILED;
                    application.result = FinalApplicationStatus.FAILED;
                    application.diagnostics = "the application master exited with " + status.getExitStatus();
                }
                end(application);
            }
        }

        void end(Application application) {
            application.ended = System.currentTimeMillis();
            log("end " + application.id() + " " + application.state + " " + application.diagnostics);
            application.live.forEach((container, node) -> {
                try {
                    stop(container, node);
                } catch (Exception error) {
                    log("stop " + container + ": " + error);
                }
            });
            List<NodeId> all = new ArrayList<>(nodes);
            all.add(NodeId.newInstance(application.source, nodes.get(0).getPort()));
            for (NodeId node : all) {
                try {
                    HttpURLConnection request = (HttpURLConnection) files(node, application.staging).toURL().openConnection();
                    request.setRequestMethod("DELETE");
                    request.getResponseCode();
                } catch (IOException error) {
                    log("forget " + application.staging + " on " + node + ": " + error);
                }
            }
        }

        void stop(ContainerId container, NodeId node) throws Exception {
            connection(node).stopContainers(StopContainersRequest.newInstance(List.of(container)));
        }

        ContainerStatus statusOf(Application application, ContainerId container) throws Exception {
            GetContainerStatusesRequest request = GetContainerStatusesRequest.newInstance(List.of(container));
            return connection(application.live.get(container)).getContainerStatuses(request).getContainerStatuses().get(0);
        }

        ContainerManagementProtocol connection(NodeId node) {
            return connections.computeIfAbsent(node, id -> UserGroupInformation.createRemoteUser("manager")
                    .doAs((PrivilegedAction<ContainerManagementProtocol>) () -> (ContainerManagementProtocol) RPC.getProxy(
                            ContainerManagementProtocol.class, new InetSocketAddress(id.getHost(), id.getPort()), CONF)));
        }

        Container allocate(Application application, Resource resource, Priority priority) {
            NodeId node = nodes.get(turn++ % nodes.size());
            ContainerId container = ContainerId.newContainerId(application.attempt(), ++application.containers);
            application.live.put(container, node);
            return Container.newInstance(
                    container, node, node.getHost() + ":8042", resource, priority,
                    token(container + " " + application.source, "ContainerToken", node));
        }

        synchronized Object ofClient(String name, Object request) throws Exception {
            switch (name) {
                case "getClusterMetrics":
                    return GetClusterMetricsResponse.newInstance(YarnClusterMetrics.newInstance(nodes.size()));
                case "getNewApplication":
                    return GetNewApplicationResponse.newInstance(ApplicationId.newInstance(started, ++numbers), least, most);
                case "submitApplication":
                    submit(((SubmitApplicationRequest) request).getApplicationSubmissionContext());
                    return SubmitApplicationResponse.newInstance();
                case "getApplicationReport": {
                    Application application = applications.get(((GetApplicationReportRequest) request).getApplicationId());
                    if (application == null) {
                        throw new ApplicationNotFoundException("no such application");
                    }
                    return GetApplicationReportResponse.newInstance(application.report());
                }
                case "forceKillApplication": {
                    Application application = applications.get(((KillApplicationRequest) request).getApplicationId());
                    if (application.ended == 0) {
                        application.state = YarnApplicationState.KILLED;
                        application.result = FinalApplicationStatus.KILLED;
                        end(application);
                    }
                    return KillApplicationResponse.newInstance(true);
                }
                default:
                    return null;
            }
        }

        void submit(ApplicationSubmissionContext context) throws Exception {
            String source = Server.getRemoteIp().getHostName();
            Application application = new Application(context, Server.getRemoteUser().getShortUserName(), source);
            ContainerLaunchContext launch = context.getAMContainerSpec();
            launch.setTokens(secrets.with(launch.getTokens(), application.attempt()));
            Container container = allocate(application, context.getResource(), Priority.newInstance(0));
            StartContainerRequest start = StartContainerRequest.newInstance(launch, container.getContainerToken());
            connection(container.getNodeId()).startContainers(StartContainersRequest.newInstance(List.of(start)));
            application.master = container.getId();
            applications.put(application.id(), application);
            log("submit " + application.id() + " " + context.getApplicationName() + " by " + application.user + " on " + source);
        }

        synchronized Object ofMaster(String name, Object request) throws Exception {
            ApplicationAttemptId attempt = ApplicationAttemptId.fromString(Server.getRemoteUser().getUserName());
            Application application = applications.get(attempt.getApplicationId());
            switch (name) {
                case "registerApplicationMaster": {
                    RegisterApplicationMasterRequest told = (RegisterApplicationMasterRequest) request;
                    application.host = told.getHost();
                    application.port = told.getRpcPort();
                    application.url = told.getTrackingUrl();
                    application.state = YarnApplicationState.RUNNING;
                    return RegisterApplicationMasterResponse.newInstance(
                            least, most, new HashMap<>(), null, new ArrayList<>(), "default", new ArrayList<>());
                }
                case "allocate":
                    return answer(application, (AllocateRequest) request);
                case "finishApplicationMaster": {
                    FinishApplicationMasterRequest told = (FinishApplicationMasterRequest) request;
                    application.state = YarnApplicationState.FINISHED;
                    application.result = told.getFinalApplicationStatus();
                    application.diagnostics = String.valueOf(told.getDiagnostics());
                    return FinishApplicationMasterResponse.newInstance(true);
                }
                default:
                    return null;
            }
        }

        AllocateResponse answer(Application application, AllocateRequest request) throws Exception {
            List<ContainerStatus> completed = new ArrayList<>();
            for (ContainerId container : request.getReleaseList()) {
                if (application.live.containsKey(container)) {
                    stop(container, application.live.remove(container));
                    completed.add(ContainerStatus.newInstance(container, ContainerState.COMPLETE, "released", -100));
                }
            }
            for (ContainerId container : new ArrayList<>(application.live.keySet())) {
                if (!container.equals(application.master)) {
                    ContainerStatus status = statusOf(application, container);
                    if (status.getState() == ContainerState.COMPLETE) {
                        completed.add(status);
                        application.live.remove(container);
                    }
                }
            }
            List<Container> allocated = new ArrayList<>();
            for (ResourceRequest wanted : request.getAskList()) {
                for (int i = 0; wanted.getResourceName().equals(ResourceRequest.ANY) && i < wanted.getNumContainers(); i++) {
                    allocated.add(allocate(application, wanted.getCapability(), wanted.getPriority()));
                }
            }
            List<NMToken> tokens = new ArrayList<>();
            for (Container container : allocated) {
                NodeId node = container.getNodeId();
                byte[] identifier = new NMTokenIdentifier(application.attempt(), node, application.user, 1).getBytes();
                tokens.add(NMToken.newInstance(
                        node,
                        org.apache.hadoop.yarn.api.records.Token.newInstance(
                                identifier, "NMToken", new byte[] {1, 2, 3, 4}, node.toString())));
            }
            return AllocateResponse.newInstance(
                    ++application.responses, completed, allocated, Collections.emptyList(), most, null, nodes.size(), null, tokens);
        }
    }
}
