"""The server of `scale`, in a process of its own so that what it costs can be told: kernels through Jupyter's managers and our provisioner.

    python -m benchmarks._scale_server KERNELS PORTS IDLE_SECONDS

in the environment that `scale` makes. Prints its findings as one line of JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.manager import AsyncKernelManager

from benchmarks._kernels import BEAT, Heartbeat, answer, start
from benchmarks._numbers import Spread
from benchmarks._world import resident_megabytes
from distributed_provisioner.hosts import HostPool
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import HostAddress, LaunchRequest, Login, Policy
from distributed_provisioner.server_hosts import HostHints, use_hints
from distributed_provisioner.server_kernels import KnownKernels, use_known
from distributed_provisioner.ssh import Connections

AT_ONCE = 50
"""Launches that are under way at the same time."""
SPEC = "stub"
CONNECTED = 20
"""Kernels that have a notebook open while it is counted what that takes."""
QUESTIONS = 200
RESTARTER = 3.0
"""Seconds between two questions of Jupyter's restarter."""


@dataclass
class Found:
    """What one size has cost. Times are seconds, memory is in bytes."""

    kernels: int
    hosts: int
    failures: list[str] = field(default_factory=list)
    connect: float = 0.0
    connect_cpu: float = 0.0
    launch: float = 0.0
    launch_cpu: float = 0.0
    stall: float = 0.0
    io_stall: float = 0.0
    collection: float = 0.0
    """The longest of Python's garbage collections while kernels were launched; nothing else of the process runs meanwhile."""
    idle_share: float = 0.0
    """Per cent of a core."""
    reserve: dict[str, float] = field(default_factory=dict)
    """By policy: the median of one choice."""
    answers: float = 0.0
    answers_cpu: float = 0.0
    end: float = 0.0
    end_cpu: float = 0.0
    memory: dict[str, float] = field(default_factory=dict)
    """By stage: resident."""
    handles: dict[str, int] = field(default_factory=dict)
    """By stage: open file descriptors."""
    threads: int = 0

    def look(self, stage: str) -> None:
        gc.collect()
        self.memory[stage] = resident_megabytes(os.getpid()) * 1e6
        self.handles[stage] = len(os.listdir("/proc/self/fd"))
        self.threads = max(self.threads, threading.active_count())


class Timed:
    """Seconds, and seconds of CPU of the whole process, that a block took."""

    async def of(self, work: Awaitable[Any]) -> tuple[float, float]:
        began, cpu = time.perf_counter(), time.process_time()
        await work
        return time.perf_counter() - began, time.process_time() - cpu


async def measure(kernels: int, hosts: list[HostAddress], idle: float) -> Found:
    """Connect, launch, wait, ask, end."""
    found = Found(kernels, len(hosts))
    directory = Path(os.environ["JUPYTER_DATA_DIR"])
    # As Jupyter Server's extension has it, so that what is written down for its next start counts.
    use_known(KnownKernels(directory / "kernels.json"))
    use_hints(HostHints(directory / "hosts.json"))
    timed, io = Timed(), IOThread.current()
    found.look("nothing")
    found.connect, found.connect_cpu = await timed.of(io.run(connect_all(hosts)))
    found.look("connected")
    context = zmq.asyncio.Context()
    context.set(zmq.MAX_SOCKETS, 4 * kernels + 1000)  # the default is 1023
    managers = [manager_of(context) for _ in range(kernels)]
    beat, collections = Beat(), Collections()
    await io.run(beat.begin())
    async with Heartbeat() as own:
        gc.callbacks.append(collections)
        work = each(managers, lambda manager: launched(manager, found.failures))
        found.launch, found.launch_cpu = await timed.of(work)
    gc.callbacks.remove(collections)
    found.stall, found.io_stall, found.collection = own.longest, await io.run(beat.end()), collections.longest
    running = [manager for manager in managers if manager.has_kernel]
    await asyncio.sleep(2)  # what a launch leaves to do is done
    found.look("launched")
    found.reserve = {
        policy: await io.run(choosing(hosts, policy)) for policy in ("round-robin", "least-connection")
    }
    found.idle_share = await idle_share(running, idle)
    found.answers, found.answers_cpu = await timed.of(
        each(running, lambda manager: asked(manager, found.failures), 10)
    )
    notebooks = [socket for manager in running[:CONNECTED] for socket in notebook(manager)]
    await asyncio.sleep(1)
    found.look("notebooks")
    for socket in notebooks:
        socket.close(linger=0)
    async with Heartbeat() as own:
        found.end, found.end_cpu = await timed.of(
            each(running, lambda manager: ended(manager, found.failures))
        )
    found.stall = max(found.stall, own.longest)
    await asyncio.sleep(1)
    found.look("ended")
    return found


async def connect_all(hosts: list[HostAddress]) -> None:
    connections = Connections.current()
    login = Login(connect_timeout=120.0)
    await asyncio.gather(*(connections.get(host, login).connect() for host in hosts))


def manager_of(context: zmq.asyncio.Context) -> AsyncKernelManager:
    file = Path(os.environ["JUPYTER_RUNTIME_DIR"], f"kernel-{uuid.uuid4()}.json")
    return AsyncKernelManager(kernel_name=SPEC, connection_file=str(file), context=context)


async def each(
    managers: list[AsyncKernelManager],
    work: Callable[[AsyncKernelManager], Coroutine[Any, Any, None]],
    at_once: int = AT_ONCE,
) -> None:
    """Do something with all of them, so many at a time."""
    gate = asyncio.Semaphore(at_once)

    async def one(manager: AsyncKernelManager) -> None:
        async with gate:
            await work(manager)

    await asyncio.gather(*map(one, managers))


async def launched(manager: AsyncKernelManager, failures: list[str]) -> None:
    try:
        await manager.start_kernel(env=dict(os.environ))
    except Exception as error:
        failures.append(f"launch: {type(error).__name__}: {error}")


async def asked(manager: AsyncKernelManager, failures: list[str]) -> None:
    client = connected(manager)
    try:
        await asyncio.wait_for(answer(client), 30)
    except Exception as error:
        failures.append(f"question: {type(error).__name__}: {error}")
    finally:
        client.stop_channels()


async def ended(manager: AsyncKernelManager, failures: list[str]) -> None:
    try:
        await manager.shutdown_kernel(now=True)
    except Exception as error:
        failures.append(f"end: {type(error).__name__}: {error}")


def connected(manager: AsyncKernelManager) -> Any:
    client = manager.client()
    start(client)
    return client


def notebook(manager: AsyncKernelManager) -> list[Any]:
    """What Jupyter Server connects for an open page."""
    return [
        manager.connect_shell(),
        manager.connect_iopub(),
        manager.connect_stdin(),
        manager.connect_control(),
    ]


async def idle_share(managers: list[AsyncKernelManager], seconds: float) -> float:
    """Per cent of a core while nothing happens but Jupyter's restarter asking whether the kernels live."""
    cpu, began = time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        for manager in managers:
            if not await manager.is_alive():
                raise RuntimeError("a living kernel was called dead")
        await asyncio.sleep(RESTARTER)
    return (time.process_time() - cpu) / (time.perf_counter() - began) * 100


async def choosing(hosts: list[HostAddress], policy: Policy) -> float:
    """Seconds to choose a host, on the I/O loop, as a launch does it."""
    pool = HostPool.current()
    login = Login(connect_timeout=120.0)
    taken = []
    for _ in range(QUESTIONS):
        again = tuple(
            HostAddress(host.host, host.user, host.port) for host in hosts
        )  # each launch reads its options anew
        request = LaunchRequest("k", again, ("python",), "key", policy=policy, login=login)
        began = time.perf_counter()
        reservation = pool.reserve(request)
        taken.append(time.perf_counter() - began)
        assert reservation is not None
        reservation.release()
    return Spread.of(taken).median


class Beat:
    """The longest stall of the I/O loop."""

    async def begin(self) -> None:
        self._longest = 0.0
        self._task = asyncio.ensure_future(self._beat())

    async def end(self) -> float:
        self._task.cancel()
        return self._longest

    async def _beat(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(BEAT)
            self._longest = max(self._longest, time.perf_counter() - before - BEAT)


class Collections:
    """The longest of Python's garbage collections; one is put into `gc.callbacks`."""

    def __init__(self) -> None:
        self.longest = self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()  # others may have the machine meanwhile
        else:
            self.longest = max(self.longest, time.thread_time() - self._began)


def main(argv: list[str]) -> int:
    kernels, ports, idle = int(argv[1]), json.loads(argv[2]), float(argv[3])
    hosts = [HostAddress("127.0.0.1", None, port) for port in ports]
    found = asyncio.run(measure(kernels, hosts, idle))
    print(json.dumps(asdict(found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
