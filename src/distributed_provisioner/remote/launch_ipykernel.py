"""Launch an IPython kernel, or a subclass of it, and report its connection information.

With `--response-address` (the path of the listener's Unix socket for this kernel) the listener says which key, transport and
endpoints to use, and is told when the kernel's sockets are bound. By hand, without it, the launcher makes its own and prints where the
connection file is:

    python launch_ipykernel.py --kernel-id test --port-range 40000..41000
    jupyter console --existing /path/that/was/printed.json

Below spark-submit (`bin/run.sh` of a kernelspec made with --spark), `--spark-context-initialization-mode` says when the session is made.

This file is shipped verbatim together with `server_listener.py`; it needs Python 3.8 or newer and ipykernel.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import signal
import sys
import threading
import uuid
from concurrent.futures import Future

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from types import FrameType, ModuleType
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
MAX_UNREAD = 100_000
"""Messages of output that the kernel keeps for each of its readers."""
CANCEL_TIMEOUT = 5.0
"""Seconds that an interrupt waits for Spark to cancel its jobs."""


def main(argv: list[str] | None = None) -> None:
    sys.path.insert(0, HERE)
    import server_listener

    options, extra = parse(argv, server_listener)
    # A notebook must not be able to import what lies beside the launcher.
    for place in (HERE, os.path.realpath(HERE)):
        while place in sys.path:
            sys.path.remove(place)
    # The listener decides when a kernel ends, not the life of some parent.
    os.environ.pop("JPY_PARENT_PID", None)
    if options.kernel_id:
        os.environ.setdefault("KERNEL_ID", options.kernel_id)
    kernel_class = load_class(options.kernel_class_name)
    if options.response_address:
        report = server_listener.Report(options.response_address)
        given = report.given
        path = os.path.join(given["directory"], "connection.json")
    else:
        report = None
        given = own_connection(server_listener, options)
        path = own_path(options)
    info = {name: given[name] for name in given if name not in ("kernel_id", "directory", "ports")}
    server_listener.write_connection_file(path, info)
    terminal = os.dup(1)  # once it is initialized, what the application prints goes to its clients
    if options.response_address and os.getpgrp() != os.getpid():
        # Below spark-submit: an interrupt is for the kernel and what it has started, not for the JVM, which would end.
        os.setpgid(0, 0)
    application = make_application(kernel_class, path, extra)
    cancel_jobs_on_interrupt(application.kernel)
    if options.spark_context_initialization_mode != "none":
        provide_spark(application.shell, eager=options.spark_context_initialization_mode == "eager")
    if report is not None:
        report.send(dict(info, **bound_ports(application)))
    else:
        text = f"The connection file is {path}\nTo use the kernel: jupyter console --existing {path}\n"
        os.write(terminal, text.encode())
    os.close(terminal)
    application.start()


EARLY = (
    "ipykernel.debugger", "ipykernel.zmqshell", "IPython.core.completerlib", "IPython.core.debugger", "IPython.core.oinspect",
    "IPython.extensions.storemagic", "faulthandler", "pdb", "psutil", "sqlite3",
    "tornado.platform.asyncio",
)  # fmt: skip
"""What a kernel imports when it is made, or at its first request."""


def import_early(kernel_class_name: str) -> type[Any]:
    """Import what every kernel imports, for a process that forks them (`prefork_template.py`), and make nothing. The kernel's class."""
    sys.path.insert(0, HERE)
    import server_listener  # noqa: F401 # main() takes it from sys.modules, or from here

    while HERE in sys.path:
        sys.path.remove(HERE)
    found = load_class(kernel_class_name)
    for name in ("ipykernel.kernelapp", *EARLY):
        with contextlib.suppress(ImportError):  # another version has it elsewhere
            importlib.import_module(name)
    application_class()
    return found


def parse(argv: list[str] | None, server_listener: ModuleType) -> tuple[argparse.Namespace, list[str]]:
    parser = server_listener.launcher_parser(__doc__.partition("\n")[0])
    parser.epilog = "Other arguments go to the kernel application."
    parser.add_argument(
        "--kernel-class-name",
        default="ipykernel.ipkernel.IPythonKernel",
        metavar="MODULE.CLASS",
        help="a subclass of the IPython kernel to run",
    )
    found: tuple[argparse.Namespace, list[str]] = parser.parse_known_args(argv)
    return found


def load_class(name: str) -> type[Any]:
    """The kernel's class. Exits with one sentence when there is none of that name."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        sys.exit(
            f"The kernel class {name} cannot be loaded by {sys.executable}: {error}. "
            "Install its package on this host, or correct --kernel-class-name."
        )
    from ipykernel.kernelbase import Kernel

    if not (isinstance(found, type) and issubclass(found, Kernel)):
        sys.exit(f"{name} is not a kernel class: it must be a subclass of ipykernel.kernelbase.Kernel.")
    return found


def own_connection(server_listener: ModuleType, options: argparse.Namespace) -> dict[str, Any]:
    low, high = options.port_range
    try:
        ports = server_listener.choose_ports(5, low, high)
    except server_listener.PortsExhausted as error:
        sys.exit(f"The kernel needs five ports: {error}.")
    info = {f"{channel}_port": port for channel, port in zip(server_listener.CHANNELS, ports)}
    return dict(info, transport="tcp", ip="127.0.0.1", key=uuid.uuid4().hex, signature_scheme="hmac-sha256")


def own_path(options: argparse.Namespace) -> str:
    from jupyter_core.paths import jupyter_runtime_dir
    from jupyter_core.utils import ensure_dir_exists

    ensure_dir_exists(jupyter_runtime_dir(), 0o700)
    return os.path.join(jupyter_runtime_dir(), f"kernel-{options.kernel_id or uuid.uuid4()}.json")


def make_application(kernel_class: type[Any], path: str, extra: list[str]) -> Any:
    sys.argv[1:] = ["-f", path, *extra]
    application = application_class().instance(kernel_class=kernel_class)
    application.initialize(sys.argv[1:])
    return application


@functools.lru_cache(maxsize=None)
def application_class() -> Any:
    """The kernel application. A process that forks kernels has made the class for all of them."""
    from ipykernel.kernelapp import IPKernelApp
    from traitlets.config import Config

    class LaunchedKernelApp(IPKernelApp):
        def log_connection_info(self) -> None:
            """How to connect is the launcher's to say; the advice about Ctrl-C does not hold here."""

        def init_iopub(self, context: Any) -> None:
            """ZMQ drops what a loop prints faster than the relay reads, beyond 1000 messages by default."""
            context.sndhwm = MAX_UNREAD
            super().init_iopub(context)  # type: ignore[no-untyped-call]
            del context.sndhwm

        def parse_command_line(self, argv: list[str] | None = None) -> None:
            """Do at once what comes of `-f PATH` alone: a parser of all options that there are takes a tenth of a forked kernel's start."""
            if argv is None or len(argv) != 2 or argv[0] != "-f":
                super().parse_command_line(argv)
                return
            self.argv, self.extra_args = list(argv), []
            self.cli_config = Config({type(self).__name__: {"connection_file": argv[1]}})
            self.update_config(self.cli_config)

    return LaunchedKernelApp


def bound_ports(application: Any) -> dict[str, int]:
    return {
        f"{channel}_port": getattr(application, f"{channel}_port")
        for channel in ("shell", "iopub", "stdin", "control", "hb")
    }


# --- Spark ------------------------------------------------------------------------------------------------------------------------------


def provide_spark(shell: Any, eager: bool) -> None:
    """Put `spark`, `sc` and `sql` into the namespace; the first use of one makes the session, or waits for the one that is being made."""
    spark = Spark(shell.user_ns)

    def sql(query: str, *arguments: Any, **options: Any) -> Any:
        """Run a query in the Spark session: a DataFrame of its result."""
        return spark.session().sql(query, *arguments, **options)

    spark.placeholders = {"spark": Later(spark, "spark"), "sc": Later(spark, "sc")}
    shell.push(dict(spark.placeholders, sql=sql), interactive=False)
    if eager:
        spark.begin()


class Spark:
    """The session: made in a thread of its own, so that whoever waits for it can be interrupted, and again after a failure."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.placeholders: dict[str, Later] = {}
        self.lock = threading.Lock()
        self.attempt: Future[Any] | None = None

    def begin(self) -> Future[Any]:
        with self.lock:
            if self.attempt is None or (self.attempt.done() and self.attempt.exception() is not None):
                self.attempt = Future()
                threading.Thread(
                    target=self.make, args=(self.attempt,), name="spark session", daemon=True
                ).start()
            return self.attempt

    def make(self, attempt: Future[Any]) -> None:
        try:
            from pyspark.sql import SparkSession

            attempt.set_result(SparkSession.builder.getOrCreate())
        except BaseException as error:
            attempt.set_exception(error)

    def session(self) -> Any:
        """The session. Raises SparkSessionError with Spark's own reason."""
        try:
            session = self.begin().result()
        except Exception as error:
            raise SparkSessionError(reason_of(error)) from None
        for name, value in {"spark": session, "sc": session.sparkContext}.items():
            if self.namespace.get(name) is self.placeholders[name]:
                self.namespace[name] = value
        return session


class SparkSessionError(RuntimeError):
    """There is no Spark session, and why."""


def reason_of(error: Exception) -> str:
    """Spark's words without the stack traces of Java, which are in the kernel's log."""
    lines = [
        line.strip().lstrip(": ")
        for line in str(error).splitlines()
        if not line.startswith(("\tat ", "\t..."))
    ]
    words = "\n".join(
        line for line in lines if line and not line.startswith("An error occurred while calling")
    )
    return f"the Spark session could not be created: {words or type(error).__name__}"


class Later:
    """`spark` or `sc` before there is a session: whatever is asked of it is asked of the real one."""

    def __init__(self, spark: Spark, name: str) -> None:
        self.__dict__.update(_spark=spark, _name=name)

    def _real(self) -> Any:
        session = self._spark.session()
        return session if self._name == "spark" else session.sparkContext

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real(), name, value)

    def __repr__(self) -> str:
        return repr(self._real())

    def __dir__(self) -> list[str]:
        return dir(self.__class__)  # completing a name starts nothing

    @property  # type: ignore[misc] # isinstance() believes it
    def __class__(self) -> type:
        module = sys.modules.get("pyspark.sql" if self._name == "spark" else "pyspark")
        return getattr(module, "SparkSession" if self._name == "spark" else "SparkContext", Later)


def cancel_jobs_on_interrupt(kernel: Any) -> None:
    """Have an interrupt cancel Spark's running jobs, too, whoever has made the session."""
    before = kernel.pre_handler_hook

    def hook() -> None:
        before()
        signal.signal(signal.SIGINT, interrupted)

    kernel.pre_handler_hook = hook
    # py4j writes a traceback into the cell, beside that of the interrupt.
    words = "KeyboardInterrupt while sending command."
    logging.getLogger().addFilter(lambda record: record.msg != words)


def interrupted(number: int, frame: FrameType | None) -> None:
    context = getattr(
        getattr(sys.modules.get("pyspark"), "SparkContext", None), "_active_spark_context", None
    )
    if context is not None:
        # Not in this thread, whose connection to the JVM waits for an answer.
        canceller = threading.Thread(target=cancel_jobs, args=(context,), daemon=True)
        canceller.start()
        canceller.join(CANCEL_TIMEOUT)  # else it might cancel the next cell's jobs
    raise KeyboardInterrupt


def cancel_jobs(context: Any) -> None:
    try:
        context.cancelAllJobs()
    except Exception as error:
        print(f"Spark's jobs could not be cancelled: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
