"""Processes on the host that end from outside: the listener, a relay, a launcher, the kernel itself, and all of them with their host."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import pytest
from jupyter_client.manager import AsyncKernelManager

from distributed_provisioner import errors
from distributed_provisioner.models import KernelState
from tests.cluster.real_kernels import kernels_on, provisioner_of, until, write_spec
from tests.faults.work import CLEAR_SOCKETS, at_work, do, kill, listeners, named, pid_of, until_state
from tests.unit.remote.test_oom import memory_cgroup

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

LIMIT = 512 << 20


async def test_a_killed_listener_costs_no_line_and_exits_are_noticed_after_it(cluster: Cluster) -> None:
    """If it fails: one process that is killed on the host takes kernels with it, or their later end is not told."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (manager, notebook):
        cell = notebook.run(80, 0.05)
        await cell.until_line(10)
        before = listeners(host)
        assert before
        await do(kill, host, *before)
        await cell.check()
        await until_state(manager, KernelState.RUNNING)
        await until(lambda: listeners(host) not in ([], before))
        last = notebook.run(600, 0.05)
        await last.until_line(5)
        await do(kill, host, pid_of(manager))
        await until_state(manager, KernelState.EXITED, 10)
        await until(lambda: "has ended" in last.told)
        assert "host1" in last.told


async def test_a_killed_relay_costs_no_kernel_and_is_told(cluster: Cluster) -> None:
    """If it fails: the kernel is lost with the process that carries its messages, or lines are missing and nobody says so."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (manager, notebook):
        cell = notebook.run(80, 0.05)
        await cell.until_line(20)
        before = named(host, "dp-relay")
        await do(kill, host, *before)
        await until(lambda: cell.is_over, 30)
        printed = list(map(int, cell.printed))
        assert printed == sorted(set(printed))  # some may be lost, none comes twice
        assert printed[-1] == 79
        assert printed[:15] == list(range(15))
        assert "some of its output may be missing" in cell.told
        assert [reply["content"]["status"] for reply in cell.replies] == ["ok"]
        await notebook.run(20, 0.01).check()  # which knows how often cells have run
        assert len(named(host, "dp-relay")) == 1
        assert named(host, "dp-relay") != before
        assert provisioner_of(manager).kernel.state is KernelState.RUNNING


async def test_a_cell_that_went_with_its_relay_is_ended_and_says_so(cluster: Cluster) -> None:
    """If it fails: the cell stays busy for ever, since the kernel never heard of it, or it is run behind the user's back."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (_, notebook):
        await notebook.run(5, 0.0).check()
        relays = named(host, "dp-relay")
        await do(kill, host, *relays, signal="STOP")
        lost = notebook.execute("runs += 100")
        await asyncio.sleep(0.3)
        await do(kill, host, *relays)
        await until(lambda: lost.is_over, 20)
        assert [reply["content"]["status"] for reply in lost.replies] == ["error"]
        assert "was not run. Run it again" in lost.told
        await notebook.run(5, 0.0).check()  # which knows how often cells have run


async def test_a_cell_whose_end_went_with_its_relay_is_ended_and_one_that_waits_is_left_alone(
    cluster: Cluster,
) -> None:
    """If it fails: a cell that has ended looks busy for ever, or one that waits for its turn is called lost."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (_, notebook):
        ended = notebook.execute("import time; time.sleep(1); print('done')")
        await until(lambda: "busy" in ended.states)
        runs, waits = notebook.run(30, 0.1), notebook.run(5, 0.0)
        await asyncio.sleep(0.1)
        relays = named(host, "dp-relay")
        await do(kill, host, *relays, signal="STOP")
        await asyncio.sleep(1.5)
        await do(kill, host, *relays)
        await until(lambda: ended.is_over and runs.is_over and waits.is_over, 20)
        assert "The end of this cell was lost" in ended.told
        assert [reply["content"]["status"] for reply in waits.replies] == ["ok"]
        assert "lost" not in waits.told
        assert [reply["content"]["status"] for reply in runs.replies] == ["ok"]
        await notebook.run(5, 0.0).check()


async def test_a_kernel_restarts_after_its_sockets_were_cleared_away(cluster: Cluster) -> None:
    """If it fails: after a cleaner of /tmp a restart says that there is no such file, and each new kernel fails until the next minute."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (manager, notebook):
        await notebook.run(5, 0.0).check()
        await do(host.run, "sh", "-c", CLEAR_SOCKETS)
        await manager.restart_kernel(now=True)
        notebook.runs = notebook.total = 0
        await notebook.run(5, 0.0).check()
        assert len(named(host, "dp-relay")) == len(listeners(host)) == 1
        await do(host.run, "sh", "-c", CLEAR_SOCKETS)
        async with at_work(write_spec("second")) as (_, other):
            await other.run(5, 0.0).check()
        await notebook.run(5, 0.0).check()


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
async def test_a_launcher_that_is_killed_while_it_launches_is_told_and_leaves_nothing(
    cluster: Cluster, signal: str
) -> None:
    """If it fails: a launch hangs until its time-out, or what a half-made kernel was stays on the host."""
    host = cluster["host1"]
    argv = ["/bin/sh", "-c", "sleep 300; :", "launch_ipykernel", "{connection_file}", "{kernel_id}"]
    manager = AsyncKernelManager(kernel_name=write_spec("slow", argv=argv, launch_timeout=60))
    launching = asyncio.ensure_future(manager.start_kernel())
    await until(lambda: kernels_on(host))
    (launcher,) = [p.pid for p in host.processes() if "launch_ipykernel" in p.command]
    await do(kill, host, launcher, signal=signal)
    with pytest.raises(errors.LauncherExitedError, match=f"SIG{signal}"):
        await asyncio.wait_for(launching, 15)
    await until(lambda: not [p for p in host.processes() if "sleep 300" in p.command])
    assert not [name for name in host.files() if manager.kernel_id in name]


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
async def test_a_killed_kernel_is_told_with_its_signal_and_starts_again(
    cluster: Cluster, signal: str
) -> None:
    """If it fails: the notebook says "kernel died", and nobody learns that somebody killed it."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (manager, notebook):
        cell = notebook.run(400, 0.05)
        await cell.until_line(10)
        await do(kill, host, pid_of(manager), signal=signal)
        await until_state(manager, KernelState.EXITED, 10)
        await until(lambda: "has ended" in cell.told)
        assert f"SIG{signal}" in cell.told
        printed = cell.printed
        assert printed == [str(number) for number in range(len(printed))]
        await manager.restart_kernel(now=True)
        notebook.runs = notebook.total = 0
        await notebook.run(20, 0.01).check()


async def test_a_kernel_that_is_killed_for_memory_is_told_so(cluster: Cluster) -> None:
    """If it fails: people look for a bug where they need more memory."""
    host = cluster["host2"]
    spec = write_spec(remote_hosts=["host2"])
    with memory_cgroup() as cgroup:
        for name in ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes", "memory.max"):
            with contextlib.suppress(OSError):  # that of the other version, or no swap is counted here
                (cgroup / name).write_text(str(LIMIT))
        async with at_work(spec):
            pass  # there is a listener
        try:
            for process in host.processes():
                if " serve " in process.command:
                    (cgroup / "cgroup.procs").write_text(str(process.outer_pid))
            async with at_work(spec) as (manager, notebook):
                cell = notebook.execute("held = []\nwhile True: held.append(bytearray(b'x') * (8 << 20))")
                await until_state(manager, KernelState.EXITED, 60)
                await until(lambda: "has ended" in cell.told)
                assert "killed for want of memory" in cell.told
                await manager.restart_kernel(now=True)
                await notebook.run(10, 0.01).check()
        finally:
            for process in host.processes():
                if " serve " in process.command:
                    os.kill(process.outer_pid, 9)


async def test_a_host_that_loses_power_is_told_as_such_and_the_kernel_starts_again(cluster: Cluster) -> None:
    """If it fails: a kernel is waited for that is no more, or the one that is started has lost its notebook."""
    host = cluster["host3"]
    async with at_work(write_spec(remote_hosts=["host3"])) as (manager, notebook):
        cell = notebook.run(1000, 0.05)
        await cell.until_line(10)
        await do(host.power_off)
        await until_state(manager, KernelState.UNREACHABLE, 20)
        await do(host.boot)
        await until_state(manager, KernelState.EXITED, 30)
        await until(lambda: "has ended" in cell.told)
        assert "its host was restarted" in cell.told
        printed = cell.printed
        assert printed == [str(number) for number in range(len(printed))]
        await manager.restart_kernel(now=True)
        notebook.runs = notebook.total = 0
        await notebook.run(20, 0.01).check()
