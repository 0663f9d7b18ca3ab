"""What tests do with servers that are killed and started again, and ask of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.applications.server import JupyterServer

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

START = Callable[..., JupyterServer]
COUNT = "import time\nfor n in range(1000000):\n    x = n\n    time.sleep(0.05)"


def kill(server: JupyterServer) -> None:
    """As a crash, or the OOM killer, ends it."""
    server.process.kill()
    server.process.wait()


def kernels(server: JupyterServer) -> dict[str, Any]:
    """The kernels that the server says it has, by their ids."""
    return {kernel["id"]: kernel for kernel in server.request("GET", "/api/kernels")[1]}


def running(cluster: Cluster, text: str) -> list[int]:
    """Processes on the hosts, as this machine counts, whose command has the text."""
    return [
        process.outer_pid for host in cluster.hosts for process in host.processes() if text in process.command
    ]


def open_notebook(server: JupyterServer, path: str, kernel: str = "ssh_python") -> dict[str, Any]:
    """What JupyterLab does for a notebook; the session."""
    body = {"kernel": {"name": kernel}, "name": Path(path).name, "path": path, "type": "notebook"}
    status, session = server.request("POST", "/api/sessions", body)
    assert status == 201, session
    assert isinstance(session, dict)
    return session
