"""Programs that use jupyter_client themselves: many kernels, several loops and threads, a loop that stands still, a fork."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager, MultiKernelManager

from tests.applications.desk import Desk
from tests.cluster.real_kernels import kernels_on, run, running
from tests.conftest import wait_until

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

WHERE = "import socket; print(socket.gethostname())"
HOSTS = ["host1", "host2", "host3"]


def run_blocking(client: BlockingKernelClient, code: str) -> str:
    """What the code printed."""
    printed: list[str] = []
    reply = client.execute_interactive(
        code, timeout=30, output_hook=lambda message: printed.append(message["content"].get("text", ""))
    )
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(printed).strip()


def connected(manager: KernelManager) -> BlockingKernelClient:
    client = manager.client()
    assert isinstance(client, BlockingKernelClient)
    client.start_channels()
    client.wait_for_ready(timeout=30)
    return client


async def test_an_asynchronous_program_has_a_kernel_on_each_host() -> None:
    """If it fails: programs with many kernels have them all on one host, or mix them up."""
    many = AsyncMultiKernelManager()
    ids = await asyncio.gather(*(many.start_kernel(kernel_name="ssh_python") for _ in HOSTS))
    try:
        clients = [cast(AsyncKernelClient, many.get_kernel(kernel_id).client()) for kernel_id in ids]
        for client in clients:
            client.start_channels()
            await client.wait_for_ready(timeout=30)
        assert sorted(await asyncio.gather(*(run(client, WHERE) for client in clients))) == HOSTS
        await asyncio.gather(*(run(client, f"mine = {number}") for number, client in enumerate(clients)))
        numbers = await asyncio.gather(*(run(client, "print(mine)") for client in clients))
        assert numbers == ["0", "1", "2"]
        await many.restart_kernel(ids[1])
        assert await many.is_alive(ids[1])
        for client in clients:
            client.stop_channels()
    finally:
        await many.shutdown_all(now=True)


async def test_a_client_that_was_connected_loses_nothing_by_a_restart() -> None:
    """If it fails: the first cell after a restart prints nothing, and its client waits for it for ever."""
    async with running("ssh_python") as (manager, client):
        for number in range(8):
            await manager.restart_kernel(now=True)
            assert await run(client, f"print({number})", timeout=10) == str(number)


def test_a_synchronous_program_has_a_kernel_on_each_host() -> None:
    """If it fails: programs without asyncio cannot have several kernels."""
    many = MultiKernelManager()
    ids = [many.start_kernel(kernel_name="ssh_python") for _ in HOSTS]
    try:
        clients = [connected(many.get_kernel(kernel_id)) for kernel_id in ids]
        assert sorted(run_blocking(client, WHERE) for client in clients) == HOSTS
        many.restart_kernel(ids[0], now=True)
        clients[0].wait_for_ready(timeout=30)
        many.interrupt_kernel(ids[1])
        many.shutdown_kernel(ids[2])
        assert [many.is_alive(kernel_id) for kernel_id in many.list_kernel_ids()] == [True, True]
        for client in clients:
            client.stop_channels()
    finally:
        many.shutdown_all(now=True)


def test_output_goes_on_while_the_synchronous_program_does_something_else() -> None:
    """If it fails: a script that computes between two cells waits 60 seconds for its kernel, and gives up."""
    manager = KernelManager(kernel_name="ssh_python")
    manager.start_kernel()
    try:
        time.sleep(1)
        client = connected(manager)
        client.execute("import time\nfor n in range(20): print('x' * 100_000); time.sleep(0.05)")
        time.sleep(2)  # no loop of this thread turns; two megabytes come in
        begun = time.monotonic()
        sizes = 0
        while sizes < 20 * 100_000:
            sizes += len(client.get_iopub_msg(timeout=5)["content"].get("text", ""))
        assert time.monotonic() - begun < 1
        time.sleep(1)
        assert manager.is_alive()
        assert run_blocking(client, "print(1)") == "1"
        client.stop_channels()
    finally:
        manager.shutdown_kernel(now=True)


def test_two_threads_with_loops_of_their_own_at_the_same_time() -> None:
    """If it fails: an application that runs each notebook in a thread hangs or mixes them up."""
    meeting = threading.Barrier(2, timeout=60)
    results: dict[int, str] = {}

    async def work(number: int) -> None:
        async with running("ssh_python") as (manager, client):
            await run(client, f"mine = {number}")
            await asyncio.to_thread(meeting.wait)  # now both have a kernel
            results[number] = await run(client, "print(mine)")
            await manager.restart_kernel(now=True)
            await client.wait_for_ready(timeout=30)
            await asyncio.to_thread(meeting.wait)

    threads = [threading.Thread(target=lambda n=n: asyncio.run(work(n))) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {0: "0", 1: "1"}


async def elsewhere(call: Callable[[], Any]) -> None:
    """Await what `call` gives on a loop of its own, in a thread of its own."""

    async def once() -> None:
        await call()

    await asyncio.to_thread(lambda: asyncio.run(once()))


async def test_one_loop_starts_a_kernel_and_another_ends_it(cluster: Cluster) -> None:
    """If it fails: `asyncio.run()` twice with the same manager, as in scripts and notebooks, breaks."""
    manager = AsyncKernelManager(kernel_name="ssh_python")
    await elsewhere(manager.start_kernel)
    assert await manager.is_alive()
    await elsewhere(manager.interrupt_kernel)
    await elsewhere(lambda: manager.restart_kernel(now=True))
    await elsewhere(lambda: manager.shutdown_kernel(now=True))
    assert not await manager.is_alive()
    assert not kernels(cluster)


LAST_WORDS = """
from tests.applications.test_managers import connected
from jupyter_client.manager import KernelManager

manager = KernelManager(kernel_name="ssh_python")
manager.start_kernel()
connected(manager).shutdown()
"""


def test_the_last_message_of_a_program_arrives(cluster: Cluster, desk: Desk) -> None:
    """If it fails: `jupyter console`, which asks its kernel to end and is gone, leaves it on the host for a day."""
    with ThreadPoolExecutor() as pool:  # several, as one of them may have luck
        list(pool.map(lambda _: program(desk, LAST_WORDS), range(6)))
    assert wait_until(lambda: not kernels(cluster))


FORK_LOOP = """
import asyncio, os
import distributed_provisioner.provisioner
from distributed_provisioner.io_thread import IOThread
from jupyter_core.utils import ensure_event_loop

def ask_often(times):
    loop = ensure_event_loop()  # of all synchronous calls
    for _ in range(times):
        loop.run_until_complete(IOThread.current().run(asyncio.sleep(0)))

ask_often(1)
child = os.fork()
ask_often(10_000)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_forked_processes_do_not_take_each_others_wake_ups(desk: Desk) -> None:
    """If it fails: papermill in a multiprocessing pool hangs now and then, for ever."""
    program(desk, FORK_LOOP, timeout=30)


FORK = f"""
import os, sys
from tests.applications.test_managers import connected, run_blocking
from jupyter_client.manager import KernelManager

def started():
    manager = KernelManager(kernel_name="ssh_python")
    manager.start_kernel()
    return manager, connected(manager)

mine = started()
assert run_blocking(mine[1], "kept = 1; {WHERE}") == "host1"
child = os.fork()
manager, client = started()  # both the parent and the child, at the same time
run_blocking(client, f"kept = {{child}}")
assert run_blocking(client, "print(kept)") == str(child)
client.stop_channels()
manager.shutdown_kernel(now=True)
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert run_blocking(mine[1], "print(kept)") == "1"
    mine[1].stop_channels()
    mine[0].shutdown_kernel(now=True)
    print("both are well")
"""


def test_after_a_fork_parent_and_child_use_kernels_of_their_own(cluster: Cluster, desk: Desk) -> None:
    """If it fails: multiprocessing and servers that fork break the kernels of their parent."""
    assert program(desk, FORK) == "both are well\n"
    assert not kernels(cluster)


def program(desk: Desk, text: str, timeout: float = 60) -> str:
    """Run a program of its own, and processes that it forks, to their end; what it printed."""
    with subprocess.Popen(
        [sys.executable, "-c", text],
        env=desk.environment(),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, complaints = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, complaints
    return printed


def kernels(cluster: Cluster) -> list[str]:
    return [command for host in cluster.hosts for command in kernels_on(host)]
