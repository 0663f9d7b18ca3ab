"""Host applications as users start them, against a cluster of real hosts."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.hosts import HostPool
from tests.applications.desk import Desk
from tests.applications.server import JupyterServer

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

ALL_HOSTS = ("--remote-hosts", "host1", "--remote-hosts", "host2", "--remote-hosts", "host3")


@pytest.fixture(scope="module")
def desk(cluster: Cluster, session_directory: Path) -> Desk:
    """A desk with `ssh_python` on all hosts, as the page installs it."""
    # Not tmp_path: the sockets of kernels lie below, and their paths are short.
    desk = Desk(Path(tempfile.mkdtemp(prefix="desk-", dir=session_directory)), cluster.home, cluster.user)
    desk.install("ssh_python", *ALL_HOSTS)
    return desk


@pytest.fixture(autouse=True)
def at_the_desk(isolated: Path, cluster: Cluster, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a host application, too: it sees the desk's kernelspecs, and its balancing begins anew."""
    HostPool._current = None
    for name, value in desk.settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def no_kernels_left(cluster: Cluster) -> Iterator[None]:
    """A kernel that a test leaves is ended, so that the next test's server does not go on with it."""
    yield
    for host in cluster.hosts:
        for process in host.processes():
            if "kernel" in process.command and "server_listener" not in process.command:
                with contextlib.suppress(OSError):
                    os.kill(process.outer_pid, signal.SIGKILL)


@pytest.fixture
def start_server(desk: Desk) -> Iterator[Callable[..., JupyterServer]]:
    """Start Jupyter Servers (`JupyterServer`'s arguments) that end with the test."""
    servers: list[JupyterServer] = []

    def start(*options: str, **arguments: object) -> JupyterServer:
        servers.append(JupyterServer(desk, *options, **arguments))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(desk: Desk) -> Iterator[JupyterServer]:
    """One Jupyter Server for all tests of a module."""
    running = JupyterServer(desk)
    yield running
    running.stop()
