"""What every test gets: a home of its own, clusters of hosts, and a look afterwards for what it left behind.

A test that cannot run on this machine is skipped with the exact reason. Where `CI` is `true` such a skip is a failure, unless its
reason begins with `other platform`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from blockbuster import BlockBuster

    from distributed_provisioner.testing.embedded import EmbeddedCluster
    from distributed_provisioner.testing.namespaces import Cluster

os.environ["JUPYTER_PLATFORM_DIRS"] = (
    "1"  # older versions of jupyter_core warn without it, at the first import
)
IN_CI = os.environ.get("CI") == "true"
OTHER_PLATFORM = "other platform"
OWN_DIRECTORIES: set[str] = set()
SETTLE_SECONDS = 3.0
"""How long an exit may take to arrive before it counts as a leak."""


# --- a skip is a failure in CI -------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if OTHER_PLATFORM not in reason:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} may not be skipped in CI: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped and OTHER_PLATFORM not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} may not be skipped in CI: {report.longrepr}"
    return report


# --- clusters ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three hosts with a real sshd each, in namespaces; a test that breaks one of them mends it."""
    from distributed_provisioner.testing.errors import Unsupported
    from distributed_provisioner.testing.namespaces import Cluster

    running = Cluster(3)
    try:
        running.start()
    except Unsupported as reason:
        pytest.skip(f"no hosts in namespaces: {reason}")
    yield running
    running.stop()


@pytest.fixture
def embedded() -> Iterator[EmbeddedCluster]:
    """Three SSH servers on loopback in this process."""
    from distributed_provisioner.testing.embedded import EmbeddedCluster

    with EmbeddedCluster(3) as running:
        yield running


@pytest.fixture
def blockbuster() -> Iterator[BlockBuster]:
    """Every blocking call inside an event loop raises while the test runs."""
    from blockbuster import blockbuster_ctx

    with blockbuster_ctx("distributed_provisioner") as active:
        yield active


# --- isolation -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def session_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all temporary files of this run lie; by this directory its detached processes are known, too."""
    bases = (tmp_path_factory.getbasetemp(), Path(tempfile.mkdtemp(prefix="dpt-")))
    before, tempfile.tempdir = tempfile.tempdir, str(bases[1])
    os.environ["TMPDIR"] = str(bases[1])
    OWN_DIRECTORIES.update(map(str, bases))
    yield bases[1]
    tempfile.tempdir = before
    for pid in own_processes():
        kill(pid)
    wait_until(lambda: not own_processes())
    from distributed_provisioner.testing.leftovers import remove_socket_directories

    for base in bases:
        for state in base.rglob(".local/state/distributed-provisioner"):
            remove_socket_directories(state.parents[2])
    shutil.rmtree(bases[1], ignore_errors=True)


@pytest.fixture(scope="session")
def session_home(session_directory: Path) -> Path:
    """The home of all tests without a cluster: one, so that they share one listener on this machine, which ends with them."""
    home = session_directory / "home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture(autouse=True)
def isolated(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, session_home: Path
) -> Iterator[Path]:
    """The user's own files, options and kernels neither reach a test nor are touched by one; gives HOME."""
    home = session_home
    for name in ("cluster", "embedded"):
        if name in request.fixturenames:
            home = Path(getattr(request.getfixturevalue(name), "home", home))
    for name in list(os.environ):
        if name.startswith(("GP_", "KERNEL_", "JUPYTER_", "SSH_", "IPYTHON")):
            monkeypatch.delenv(name)
    # Not tmp_path: the sockets of kernels lie below the runtime directory, and a path of theirs has at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="dp-"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(directory / name.lower()))
    monkeypatch.setenv("IPYTHONDIR", str(directory / "ipython"))
    yield home
    shutil.rmtree(directory, ignore_errors=True)


# --- what a test left behind ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, isolated: Path) -> Iterator[None]:
    """A kernel process or a listening socket (a forward) that was not there before the test is not there after it."""
    if sys.platform != "linux":
        yield
        return
    kernels, listening = own_processes("KERNEL_ID="), listening_sockets()
    yield
    leaks: list[str] = []

    def settled() -> bool:
        leaks[:] = [
            *(f"process {pid}: {command(pid)}" for pid in sorted(own_processes("KERNEL_ID=") - kernels)),
            *(f"listening socket {name}" for name in sorted(listening_sockets() - listening)),
        ]
        return not leaks

    if not wait_until(settled):
        for pid in own_processes("KERNEL_ID=") - kernels:
            kill(pid)  # so that the next test is not blamed
        pytest.fail("left behind: " + "; ".join(leaks))


def wait_until(condition: Callable[[], bool], seconds: float = SETTLE_SECONDS) -> bool:
    """Ask until the answer is yes, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def own_processes(variable: str = "") -> set[int]:
    """Processes of this test run, of hosts in namespaces too, whose environment has an item that begins with `variable`.

    Several runs may go on at the same time: ours are our descent, and those whose home lies in our directories.
    """
    if sys.platform != "linux":
        return set()
    begins = variable.encode()

    def parent(pid: int) -> int:
        with contextlib.suppress(OSError):  # it has ended
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return 0

    def is_ours(pid: int, environment: list[bytes]) -> bool:
        homes = [os.fsdecode(item[5:]) for item in environment if item.startswith(b"HOME=")]
        if any(home.startswith(tuple(OWN_DIRECTORIES)) for home in homes):
            return True
        while variable and pid not in (0, os.getpid()):
            pid = parent(pid)
        return bool(variable) and pid == os.getpid()

    found = set()
    for name in os.listdir("/proc"):  # before and after each test, so nothing is read that does not matter
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended, or belongs to somebody else
                text = Path(f"/proc/{name}/environ").read_bytes()  # empty for a zombie
                environment = text.split(b"\0") if begins in text else []
                if any(item.startswith(begins) for item in environment) and is_ours(int(name), environment):
                    found.add(int(name))
    return found


def command(pid: int) -> str:
    """The argv of a process, for people."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "gone"


def kill(pid: int) -> None:
    with contextlib.suppress(OSError):  # it ended by itself, or belongs to somebody else
        os.kill(pid, signal.SIGKILL)


def listening_sockets() -> set[str]:
    """Addresses and paths on which this process listens."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            copy = os.dup(int(name))
            try:
                each = socket.socket(fileno=copy)
            except OSError:  # another thread has made it something else
                os.close(copy)
                continue
            with each:
                if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found.add(f"{each.family.name} {each.getsockname()}")
    return found
