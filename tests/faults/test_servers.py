"""Processes that have kernels are killed in the middle of something; another process goes on with what they had, or nothing is left.

The servers here are scripts that keep `get_provisioner_info()`, as gateways do. Jupyter Server's own restarts are in
tests/applications/test_server_restart.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

import distributed_provisioner
from distributed_provisioner.models import KernelState
from distributed_provisioner.provisioner import DistributedProvisioner
from tests.cluster.real_kernels import kernels_on, provisioner_of, until, write_spec
from tests.faults.work import (
    Cell,
    Notebook,
    at_work,
    difference,
    do,
    kill,
    listeners,
    pid_of,
    steady,
    until_state,
)

if TYPE_CHECKING:
    from jupyter_client.connect import KernelConnectionInfo

    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

LINES = 10_000


class Script:
    """A script server that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def said(self, name: str) -> Any:
        """The next value that it says under this name."""
        assert self.process.stdout is not None
        while line := await asyncio.wait_for(self.process.stdout.readline(), 60):
            values = json.loads(line)
            if name in values:
                self.values = values
                return values[name]
        raise AssertionError("the script has ended")

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def script(spec: str, what: str = "", clock: float = 0.0, **environment: str) -> AsyncIterator[Script]:
    """A script server that is killed at the end, if not before."""
    argv = [sys.executable, str(Path(__file__).with_name("script_server.py")), spec, what, str(clock)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, limit=1 << 20, env={**os.environ, **environment}
    )
    running = Script(process)
    try:
        yield running
    finally:
        await running.kill()


@contextlib.asynccontextmanager
async def successor(info: dict[str, Any], spec: str) -> AsyncIterator[AsyncKernelManager]:
    """A manager in this process that goes on with a kernel; it ends it afterwards."""
    manager = AsyncKernelManager(kernel_name=spec)
    kernel_spec = manager.kernel_spec
    assert kernel_spec is not None
    provisioner = DistributedProvisioner(
        kernel_id=info["kernel_id"],
        kernel_spec=kernel_spec,
        parent=manager,
        **kernel_spec.metadata["kernel_provisioner"]["config"],
    )
    async with steady():
        await provisioner.load_provisioner_info(info)
        manager.provisioner = provisioner
        manager.kernel_id = info["kernel_id"]
        manager.load_connection_info(provisioner.connection_info)
        manager._attempted_start = True
        manager._launch_args = {"env": dict(os.environ)}  # type: ignore[dict-item]
        try:
            yield manager
        finally:
            await manager.shutdown_kernel(now=True)


def notebook_of(script: Script) -> Notebook:
    """A notebook in this process on the kernel of a script."""
    client = AsyncKernelClient()
    connection: KernelConnectionInfo = script.values["connection"]
    client.load_connection_info(connection)
    return Notebook(client)


async def test_a_server_that_is_killed_while_a_cell_prints_ten_thousand_lines_loses_none(
    cluster: Cluster,
) -> None:
    """If it fails: of what was printed while no server was there, something is missing, or in the wrong order."""
    spec = write_spec(remote_hosts=["host1"])
    async with script(spec) as server:
        info = await server.said("info")
        first = notebook_of(server)
        await first.open()
        cell = first.run(LINES, 0.0003)
        await cell.until_line(LINES // 5)
        await server.kill()
        await asyncio.sleep(1)
        await first.close()
    async with successor(info, spec) as manager:
        manager.session.session = first.client.session.session  # as a page that stayed open has it
        second = Notebook(manager.client())
        await second.open(ready=False)
        rest = Cell(second, cell.request, LINES)
        await until(lambda: rest.is_over, 90)
        assert not first.doubled
        assert not second.doubled
        heard = {m["header"]["msg_id"] for m in cell.messages}
        again = [m for m in rest.messages if m["header"]["msg_id"] in heard]
        assert len(again) < LINES / 20, "what was heard before the server's end was told again"
        # What the last milliseconds before the end brought may come again, and only that.
        assert again == rest.messages[: len(again)]
        first.published[cell.request] += rest.messages[len(again) :]
        assert cell.printed == list(map(str, range(LINES))), difference(
            cell.printed, list(map(str, range(LINES)))
        )
        assert [reply["content"]["status"] for reply in rest.replies] == ["ok"]
        second.runs, second.total = first.runs, first.total
        await second.run(10, 0.01).check()
        await second.close()


async def test_a_server_that_is_killed_while_it_launches_leaves_nothing(cluster: Cluster) -> None:
    """If it fails: kernels that nobody knows of fill the hosts."""
    host = cluster["host1"]
    argv = ["/bin/sh", "-c", "sleep 300; :", "launch_ipykernel", "{connection_file}", "{kernel_id}"]
    async with script(write_spec("slow", argv=argv, launch_timeout=60), "launch") as server:
        await server.said("about_to")
        await until(lambda: kernels_on(host), 30)
        await server.kill()
        await until(lambda: not kernels_on(host))
        assert not [p for p in host.processes() if "sleep 300" in p.command]


async def test_a_server_that_is_killed_while_it_interrupts_costs_no_kernel(cluster: Cluster) -> None:
    """If it fails: an interrupt whose server dies of it takes the kernel along, or can never be made again."""
    spec = write_spec(remote_hosts=["host1"])
    async with script(spec, "interrupt") as server:
        info = await server.said("info")
        await server.said("about_to")
        await server.kill()
    async with successor(info, spec) as manager:
        await until_state(manager, KernelState.RUNNING)
        await manager.interrupt_kernel()
        notebook = Notebook(manager.client())
        await notebook.open()
        cell = notebook.execute("print(x - 5)", 1)
        await cell.check()
        await notebook.close()


@pytest.mark.parametrize(("what", "pause"), [("restart", 0.0), ("restart now", 0.2), ("restart now", 0.5)])
async def test_a_server_that_is_killed_while_it_restarts_leaves_at_most_one_kernel_for_its_lease(
    cluster: Cluster, what: str, pause: float
) -> None:
    """If it fails: two kernels of one id run, or one that nobody comes back for stays for ever."""
    host = cluster["host1"]
    spec = write_spec(remote_hosts=["host1"], orphan_timeout=2)
    async with script(spec, what) as server:
        kernel_id = (await server.said("info"))["kernel_id"]
        await server.said("about_to")
        await asyncio.sleep(pause)
        await server.kill()
        await until(lambda: len(kernels_on(host)) <= 1, 5)
        await until(lambda: not kernels_on(host), 20)
        await until(lambda: not [name for name in host.files() if kernel_id in name], 10)


async def test_two_servers_on_the_same_hosts_do_not_feel_each_others_end(cluster: Cluster) -> None:
    """If it fails: who kills a script ends the kernels of somebody else's notebook, or of nobody's who comes back."""
    spec = write_spec(remote_hosts=["host1"])
    async with at_work(spec) as (manager, notebook), script(spec) as other:
        info = await other.said("info")
        cell = notebook.run(100, 0.03)
        theirs = notebook_of(other)
        await theirs.open()
        await theirs.run(10, 0.01).check()
        await cell.until_line(10)
        await other.kill()
        await theirs.close()
        await cell.check()
        assert len(kernels_on(cluster["host1"])) == 2
        async with successor(info, spec) as found:
            again = Notebook(found.client())
            await again.open()
            again.runs, again.total = theirs.runs, theirs.total
            await again.run(10, 0.01).check()
            await again.close()
        await notebook.run(10, 0.01).check()
        assert [pid_of(manager)] == [
            p.pid for p in cluster["host1"].processes() if "launch_ipykernel" in p.command
        ]


@pytest.mark.parametrize("wrong", [-86400.0, 86400.0])
async def test_a_server_whose_clock_was_wrong_is_gone_on_with(cluster: Cluster, wrong: float) -> None:
    """If it fails: after a clock was set right, a restart is refused as an old one, or two kernels of one id run."""
    spec = write_spec(remote_hosts=["host1"])
    async with script(spec, clock=wrong) as server:
        info = await server.said("info")
        await server.kill()
    async with successor(info, spec) as manager:
        await until_state(manager, KernelState.RUNNING)
        generation = provisioner_of(manager).kernel.generation
        notebook = Notebook(manager.client())
        await notebook.open()
        await notebook.run(10, 0.01).check()
        before = pid_of(manager)
        await manager.restart_kernel(now=True)
        notebook.runs = notebook.total = 0
        await notebook.run(10, 0.01).check()
        assert pid_of(manager) != before
        assert len(kernels_on(cluster["host1"])) == 1
        assert provisioner_of(manager).kernel.generation > generation
        await notebook.close()


async def test_a_newer_version_goes_on_with_the_kernels_of_an_older_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    """If it fails: an upgrade of the package ends kernels, or leaves two listeners that do not know of each other's."""
    host = cluster["host2"]
    spec = write_spec(remote_hosts=["host2"])
    await do(kill, host, *listeners(host))  # else the one that is there serves the older version, too
    package = shutil.copytree(
        Path(distributed_provisioner.__file__).parent, tmp_path / "distributed_provisioner"
    )
    with (package / "remote" / "listener.py").open("a") as file:
        file.write("# another version\n")
    async with script(spec, PYTHONPATH=str(tmp_path)) as server:
        info = await server.said("info")
        older = listeners(host)
        await server.kill()
    async with successor(info, spec) as manager, at_work(spec) as (_, notebook):
        await until_state(manager, KernelState.RUNNING)
        assert listeners(host) == older
        went_on = Notebook(manager.client())
        await went_on.open()
        await went_on.run(10, 0.01).check()
        await notebook.run(10, 0.01).check()
        await manager.restart_kernel(now=True)
        went_on.runs = went_on.total = 0
        await went_on.run(10, 0.01).check()
        await went_on.close()
