"""Kernels that know nothing of this package: any language, any kernelspec that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from jupyter_client.manager import AsyncKernelManager

from tests.applications.desk import Desk
from tests.applications.server import JupyterServer
from tests.cluster.real_kernels import host_of, provisioner_of, run, running, until

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

WHERE = "import socket; print(socket.gethostname())"


@pytest.fixture(scope="module")
def _bash(desk: Desk) -> None:
    """The kernelspec that bash_kernel installs, moved to hosts as a user would: by a stanza in kernel.json."""
    command = [sys.executable, "-m", "bash_kernel.install", "--prefix", str(desk.directory)]
    subprocess.run(command, check=True, capture_output=True, env=desk.environment())
    path = desk.kernels / "bash" / "kernel.json"
    spec = json.loads(path.read_text())
    assert "{connection_file}" in spec["argv"]
    spec.pop("codemirror_mode", None)  # jupyter_client warns of it: kernels say it themselves
    config = {"remote_hosts": ["host2"], "remote_python": sys.executable}
    stanza = {"provisioner_name": "distributed-provisioner", "config": config}
    path.write_text(json.dumps({**spec, "metadata": {"kernel_provisioner": stanza}}))


@pytest.fixture
def _no_configuration(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Iterator[None]:
    """No kernelspec of ours: the environment says it all."""
    for name, value in by_environment(cluster).items():
        monkeypatch.setenv(name, value)
    return iter([None])


def by_environment(cluster: Cluster) -> dict[str, str]:
    return {
        "JUPYTER_DEFAULT_PROVISIONER_NAME": "distributed-provisioner",
        "GP_REMOTE_HOSTS": f"host3, {cluster.user}@host1:22",
        "GP_REMOTE_PYTHON": sys.executable,
    }


@pytest.mark.usefixtures("_bash")
async def test_a_bash_kernel_runs_on_a_host() -> None:
    """If it fails: only Python kernels work."""
    async with running("bash") as (manager, client):
        assert host_of(manager) == "host2"
        assert await run(client, "echo $((6 * 7)) on $(hostname)") == "42 on host2"
        assert await run(client, "kept=5; echo $KERNEL_LANGUAGE") == "bash"
        await manager.interrupt_kernel()
        assert await run(client, "echo $kept") == "5"
        await manager.restart_kernel(now=True)
        await client.wait_for_ready(timeout=30)
        assert await run(client, 'echo "$kept" $(hostname)') == "host2"


@pytest.mark.usefixtures("_no_configuration")
async def test_the_plain_python_kernel_runs_on_hosts_by_environment_alone(cluster: Cluster) -> None:
    """If it fails: a site cannot send all its kernels to hosts without editing each kernelspec."""
    many = [AsyncKernelManager(kernel_name="python3") for _ in range(2)]
    for manager in many:
        assert manager.kernel_spec is not None
        assert "kernel_provisioner" not in manager.kernel_spec.metadata
        await manager.start_kernel()
    try:
        assert [host_of(manager) for manager in many] == ["host3", "host1"]
        assert f"{cluster.user}@host1:22" in repr(provisioner_of(many[1]).kernel)
        client = many[0].client()
        client.start_channels()
        await client.wait_for_ready(timeout=30)
        assert await run(client, WHERE) == "host3"
        client.stop_channels()
    finally:
        for manager in many:
            await manager.shutdown_kernel(now=True)


def test_a_server_sends_its_plain_kernels_to_hosts(
    cluster: Cluster, start_server: Callable[..., JupyterServer]
) -> None:
    """If it fails: the same, for everybody who uses a browser."""
    server = start_server(extra=by_environment(cluster))
    with server.kernel("python3") as (_, channels):
        assert channels.run(WHERE) == "host3"


async def test_a_kernel_class_of_ones_own_runs_on_a_host(cluster: Cluster, desk: Desk) -> None:
    """If it fails: `--ipykernel-subclass-name` installs kernelspecs that do not start."""
    module = (
        "import ipykernel.ipkernel\nclass Mine(ipykernel.ipkernel.IPythonKernel):\n    banner = 'my own'\n"
    )
    directory = cluster["host1"].path(f"/home/{cluster.user}/classes")
    directory.mkdir(exist_ok=True)
    (directory / "own_kernel.py").write_text(module)
    name = desk.install(
        "own_class", "--remote-hosts", "host1", "--ipykernel-subclass-name", "own_kernel.Mine"
    )
    desk.change(name, env={"PYTHONPATH": "${HOME}/classes"})
    async with running(name) as (_, client):
        assert await run(client, "print(type(get_ipython().kernel).__name__)") == "Mine"
        pid = int(await run(client, "import os; print(os.getpid())"))
    await until(lambda: not [p for p in cluster["host1"].processes() if p.pid == pid])
