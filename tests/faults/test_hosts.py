"""Hosts whose disk is full, whose files somebody has cleared away, or whose clock is set: kernels compute on, and their messages arrive."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.local_endpoints import private_directory
from distributed_provisioner.models import KernelState
from tests.cluster.real_kernels import kernels_on, until, write_spec
from tests.faults.work import CLEAR_SOCKETS, another_page, at_work, do, kill, listeners, pid_of, until_state

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

DISKS = ("/tmp", "/run", "/dev/shm", "/")


def fill(host: Host) -> None:
    for path in DISKS:
        host.fill_disk(path)


def free(host: Host) -> None:
    for path in DISKS:
        host.free_disk(path)


# --- disks ----------------------------------------------------------------------------------------------------------------------------


async def test_a_full_disk_costs_no_kernel_and_no_line(cluster: Cluster) -> None:
    """If it fails: somebody else's large file ends the work of everybody on that host."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (manager, notebook):
        # IPython would say in a cell that it cannot write its history.
        await notebook.execute("get_ipython().history_manager.enabled = False").check()
        cell = notebook.run(100, 0.05)
        await cell.until_line(5)
        await do(fill, host)
        try:
            await asyncio.sleep(0.5)
            await do(host.cut)
            await until_state(manager, KernelState.UNREACHABLE)
            await asyncio.sleep(1)
            await do(host.heal)
            await cell.check()
            await until_state(manager, KernelState.RUNNING)
            await notebook.run(20, 0.01).check()
            await manager.interrupt_kernel()
        finally:
            await do(free, host)
        await notebook.run(20, 0.01).check()


async def test_what_a_full_disk_cannot_keep_is_told(cluster: Cluster) -> None:
    """If it fails: a large output that nobody could keep is missing without a word, or takes the reply along."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (manager, notebook):
        await notebook.run(3, 0).check()
        cell = notebook.execute(
            "import time\ntime.sleep(3)\nfor n in range(300): print(n, 'x' * 100_000, flush=True)\nprint('end')"
        )
        await do(fill, host)
        try:
            await do(host.cut)
            await until_state(manager, KernelState.UNREACHABLE)
            await asyncio.sleep(5)
            await do(host.heal)
            await until(lambda: cell.is_over, 60)
        finally:
            await do(free, host)
        numbers = [int(line.split()[0]) for line in cell.printed if "x" in line]
        assert numbers == sorted(set(numbers))
        assert 0 < len(numbers) < 300
        assert "output could not be kept" in cell.errors
        assert [reply["content"]["status"] for reply in cell.replies] == ["ok"]
        await notebook.run(20, 0.01).check()


# --- files that somebody clears away ------------------------------------------------------------------------------------------------


def clear_sockets(host: Host) -> None:
    host.run("sh", "-c", CLEAR_SOCKETS)


def clear_state(host: Host) -> None:
    host.run("sh", "-c", "rm -rf ~/.local/state/distributed-provisioner ~/.cache/distributed-provisioner")


def clear_both(host: Host) -> None:
    clear_sockets(host)
    clear_state(host)


@pytest.mark.parametrize("clear", [clear_sockets, clear_state, clear_both])
async def test_files_that_are_cleared_away_on_the_host_cost_no_kernel(
    cluster: Cluster, clear: Callable[[Host], None]
) -> None:
    """If it fails: a cleaner of /tmp, or a user who tidies up, ends the work of a day."""
    host = cluster["host1"]
    async with at_work(write_spec()) as (manager, notebook):
        pid = pid_of(manager)
        cell = notebook.run(90, 0.05)
        await cell.until_line(5)
        await do(clear, host)
        await asyncio.sleep(0.5)
        await do(host.kill_sshd)
        await until_state(manager, KernelState.UNREACHABLE)
        await asyncio.sleep(1)
        await do(host.start_sshd)
        await cell.check()
        await until_state(manager, KernelState.RUNNING)
        await notebook.run(20, 0.01).check()
        assert pid_of(manager) == pid
        assert len(listeners(host)) == 1
        page = another_page(manager)
        await page.open()
        await page.execute("print(0)", 1).check()
        await page.close()
        await manager.restart_kernel(now=True)
        notebook.runs = notebook.total = 0
        await notebook.run(20, 0.01).check()
        assert len(kernels_on(host)) == 1


async def test_near_ends_that_are_cleared_away_here_cost_no_kernel(cluster: Cluster) -> None:
    """If it fails: a cleaner of /tmp on the server's machine cuts every notebook off, and a restart does not mend it."""
    async with at_work(write_spec()) as (manager, notebook):
        cell = notebook.run(60, 0.05)
        await cell.until_line(5)
        await do(shutil.rmtree, private_directory())
        await cell.check()
        await notebook.run(10, 0.01).check()
        await manager.restart_kernel(now=True)
        notebook.runs = notebook.total = 0
        await notebook.run(10, 0.01).check()
        later = another_page(manager)
        await later.open()
        await later.execute("print(0)", 1).check()
        await later.close()


# --- clocks -------------------------------------------------------------------------------------------------------------------------------

CLOCK = "/tmp/.seconds-by-which-the-clock-is-wrong"
SET_CLOCK = f"""
import time as _time
_right = _time.time
def _wrong():
    try:
        with open("{CLOCK}") as file:
            return _right() + float(file.read())
    except (OSError, ValueError):
        return _right()
_time.time = _wrong
"""
"""No namespace has a clock of its own. All that runs here has the time from Python: listener, relay, launcher, kernel."""


@pytest.fixture
def clock(cluster: Cluster) -> Iterator[Callable[[float], None]]:
    """Set the clock of host3, by seconds."""
    host = cluster["host3"]
    found = host.run("python3", "-I", "-S", "-c", "import json; print(json.__file__)").stdout.strip()
    modules = {host.path(path) for path in (found, json.__file__)}
    before = {path: path.read_text() for path in modules}
    for path, text in before.items():
        path.write_text(text + SET_CLOCK)
    kill(host, *listeners(host))

    def set_clock(seconds: float) -> None:
        host.path(CLOCK).write_text(str(seconds))

    yield set_clock
    for path, text in before.items():
        path.write_text(text)
    host.path(CLOCK).unlink(missing_ok=True)
    kill(host, *listeners(host))


@pytest.mark.parametrize("days", [-400, 400])
async def test_a_clock_that_is_set_costs_no_kernel_and_no_line(
    cluster: Cluster, clock: Callable[[float], None], days: int
) -> None:
    """If it fails: a machine that learns the time late takes leases for run out, files for old, or kernels for other ones."""
    host = cluster["host3"]
    async with at_work(write_spec(remote_hosts=["host3"], orphan_timeout=3600)) as (manager, notebook):
        pid = pid_of(manager)
        now = notebook.execute("import time\nprint(0)\nstart = time.time()", 1)
        await now.check()
        cell = notebook.run(100, 0.05)
        await cell.until_line(5)
        await do(clock, days * 86400.0)
        await do(host.cut)
        await asyncio.sleep(3)
        await do(host.heal)
        await cell.check()
        moved = notebook.execute("print(round((time.time() - start) / 86400))")
        await until(lambda: moved.is_over)
        assert moved.printed == [str(days)]  # it was set
        await do(kill, host, *listeners(host))
        await until(lambda: listeners(host))
        await notebook.run(20, 0.01).check()
        await until_state(manager, KernelState.RUNNING)
        assert pid_of(manager) == pid
        await manager.restart_kernel(now=True)
        notebook.runs = notebook.total = 0
        await notebook.run(20, 0.01).check()
        assert len(kernels_on(host)) == 1
