"""Lines that are cut, silent or refused, and an sshd that is killed or stopped: the kernel computes on, and all of it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager

from distributed_provisioner.models import KernelState
from tests.cluster.real_kernels import kernels_on, until, write_spec
from tests.faults.work import Cell, another_page, at_work, do, pid_of, until_state

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

SECONDS = 20.0
"""Of the long silence; a night is no different."""


SILENCES: dict[str, tuple[Callable[[Host], None], Callable[[Host], None]]] = {
    "cut": (lambda host: host.cut(), lambda host: host.heal()),
    "blackhole": (lambda host: host.blackhole(), lambda host: host.heal()),
    "sshd killed": (lambda host: host.kill_sshd(), lambda host: host.start_sshd()),
    "sshd stopped": (lambda host: host.pause_sshd(), lambda host: host.resume_sshd()),
}
"""How a host becomes silent, and what ends it. While sshd is killed, connections are refused."""


async def compute_through(host: Host, fault: str, seconds: float) -> None:
    """Two kernels: the cell of one ends while the host is away, that of the other runs on; another cell is sent to each meanwhile."""
    away, back = SILENCES[fault]
    spec = write_spec(f"on_{host.name}", remote_hosts=[host.name])
    async with at_work(spec) as first, at_work(spec) as second:
        pids = [pid_of(manager) for manager, _ in (first, second)]
        short, long = (
            first[1].run(int(seconds / 2 / 0.04), 0.04),
            second[1].run(int((seconds + 2) / 0.04), 0.04),
        )
        await short.until_line(5)
        await long.until_line(5)
        await do(away, host)
        await asyncio.sleep(seconds / 3)
        meanwhile = [notebook.run(20, 0.02) for _, notebook in (first, second)]
        await asyncio.sleep(seconds * 2 / 3)
        await do(back, host)
        for cell in (short, long, *meanwhile):
            await cell.check()
        for manager, notebook in (first, second):
            await until_state(manager, KernelState.RUNNING)
            await notebook.run(3, 0).check()
        assert pids == [pid_of(manager) for manager, _ in (first, second)]


@pytest.mark.parametrize("fault", SILENCES)
async def test_a_few_seconds_of_silence_lose_nothing(cluster: Cluster, fault: str) -> None:
    """If it fails: lines are missing or there twice, a cell stays busy for ever, or one that was sent meanwhile runs twice."""
    await compute_through(cluster["host1"], fault, 4)


@pytest.mark.slow
async def test_a_long_silence_loses_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: what is noticed with the default interval, and told in the cell, costs messages."""
    monkeypatch.delenv("GP_KEEPALIVE_INTERVAL")
    faults = zip(cluster.hosts, ("cut", "blackhole", "sshd stopped"), strict=True)
    await asyncio.gather(*(compute_through(host, fault, SECONDS) for host, fault in faults))


async def test_a_host_that_is_away_for_longer_than_is_allowed_is_given_up(cluster: Cluster) -> None:
    """If it fails: the administrator's limit does nothing, a second kernel is started, or the first one is never ended."""
    host = cluster["host1"]
    manager = AsyncIOLoopKernelManager(kernel_name=write_spec(unreachable_timeout=2))
    manager.config.KernelRestarter.time_to_dead = 0.3
    told: list[str] = []
    async with at_work("", manager) as (_, notebook):
        for event in ("restart", "dead"):
            manager.add_restart_callback(lambda event=event: told.append(event), event)
        cell = notebook.run(400, 0.05)
        await cell.until_line(5)
        await do(host.cut)
        await until_state(manager, KernelState.EXITED, 20)
        await until(lambda: told == ["dead"], 20)
        assert kernels_on(host)
        await do(host.heal)
        await until(lambda: not kernels_on(host), 30)
        printed = cell.printed
        assert printed == [str(number) for number in range(len(printed))]
        assert told == ["dead"]


async def test_two_notebooks_on_one_kernel_lose_nothing(cluster: Cluster) -> None:
    """If it fails: of a notebook that is open twice one page misses lines, or gets the other's replies."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (manager, first):
        second = another_page(manager)
        await second.open()
        cells = [first.execute(COUNT.format("a", 60), 60), second.execute(COUNT.format("b", 60), 60)]
        await cells[0].until_line(5)
        await do(host.cut)
        await asyncio.sleep(4)
        cells.append(second.execute(COUNT.format("c", 20), 20))
        await do(host.heal)
        for cell in cells:
            await cell.check()
            for notebook in (first, second):
                seen = Cell(notebook, cell.request, cell.lines)
                await until(lambda seen=seen: "idle" in seen.states)  # type: ignore[misc]
                assert seen.printed == cell.printed
                assert bool(seen.replies) == (notebook is cell.notebook)
        assert not second.doubled
        await second.close()


async def test_requests_that_are_under_way_when_the_line_goes_run_once_and_in_order(
    cluster: Cluster,
) -> None:
    """If it fails: a cell whose confirmation was lost with the line runs a second time."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (manager, notebook):
        await notebook.execute("ran = []").check()
        await do(host.delay, 300)  # so that much is under way, also of what confirms it
        cells = []
        try:
            for number in range(60):
                cells.append(notebook.execute(f"ran.append({number})"))
                await asyncio.sleep(0.01)
                if number in (29, 59):
                    await asyncio.sleep(0.15)
                    await do(host.cut)
                    await until_state(manager, KernelState.UNREACHABLE)
                    await do(host.heal)
            await until(lambda: all(cell.is_over for cell in cells), 60)
        finally:
            await do(host.delay, 0)
        await until_state(manager, KernelState.RUNNING)
        last = notebook.execute("print(*ran, sep='\\n')", len(cells))
        await last.check()


COUNT = "import time\nfor {0} in range({1}):\n    print({0}, flush=True)\n    time.sleep(0.05)"
