"""What idle kernels cost: CPU of this process (the server), CPU and memory of the hosts' listeners."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager

from benchmarks._command import Scale, main
from benchmarks._kernels import Subject
from benchmarks._numbers import Spread
from benchmarks._report import Report, Row
from benchmarks._world import (
    HOSTS,
    MUTE,
    RELAY,
    World,
    own_name,
    precise_cpu_seconds,
    proportional_megabytes,
    resident_megabytes,
)

TITLE = "idle kernels, as Jupyter Server keeps them (its restarter asks each of them every 3 s)"
AT_ONCE = 10


async def measure(world: World, scale: Scale, report: Report) -> None:
    count, seconds = int(scale.pick(100, 12)), scale.pick(300, 5)
    bare = await server_share(min(seconds, 10))
    async with kernels(
        Subject("local stub", [world.stub("mute_local", program=MUTE)]), count, transport="ipc"
    ):
        local = await server_share(min(seconds, 60))
    async with kernels(Subject("stub", [world.stub("mute_remote", HOSTS, MUTE)]), count):
        names = {
            process.outer_pid: own_name(process.outer_pid) for host in world.cluster.hosts for process in host.processes()
            if "server_listener.py serve" in process.command
        }  # fmt: skip
        relays = [pid for pid, name in names.items() if name == RELAY]
        listeners = [pid for pid in names if pid not in relays]
        before, began = {pid: precise_cpu_seconds(pid) for pid in names}, time.monotonic()
        server = await server_share(seconds)
        elapsed = time.monotonic() - began
        shares = {pid: (precise_cpu_seconds(pid) - before[pid]) / elapsed * 100 for pid in names}
        memory = [resident_megabytes(pid) for pid in listeners]
        relay_memory = Spread.of(proportional_megabytes(pid) for pid in relays)
    detail = f"over {elapsed:.0f} s; with as many local kernels {local:.2f} %, with none {bare:.2f} %"
    report.rows.append(Row(f"server with {count} idle kernels", server, "% of a core", 1.0, detail=detail))
    each = f"{count // len(listeners)} kernels each"
    report.rows.append(
        Row.spread("listener, CPU", Spread.of(shares[pid] for pid in listeners), "% of a core", 0.1, each)
    )
    report.rows.append(Row.spread("listener, resident memory", Spread.of(memory), "MB", 20.0, each))
    report.rows.append(
        Row.spread("a kernel's relay, CPU", Spread.of(shares[pid] for pid in relays), "% of a core")
    )
    report.rows.append(Row.spread("a kernel's relay, proportional memory (PSS)", relay_memory, "MB"))
    report.notes.append(
        "The kernels bind ZMQ sockets and sleep. Jupyter's own connection to each of them is open; no client is connected."
    )


@asynccontextmanager
async def kernels(subject: Subject, count: int, transport: str = "tcp") -> AsyncIterator[None]:
    """Kernels with Jupyter's restarter; settled."""
    managers = []
    gate = asyncio.Semaphore(AT_ONCE)

    async def start(number: int) -> None:
        async with gate:
            file = Path(os.environ["JUPYTER_RUNTIME_DIR"], f"{subject.name}-{number}.json")
            manager = AsyncIOLoopKernelManager(
                kernel_name=subject.specs[0], transport=transport, connection_file=str(file)
            )
            managers.append(manager)
            await manager.start_kernel(env=subject.environment())

    try:
        await asyncio.gather(*(start(number) for number in range(count)))
        await asyncio.sleep(5)  # what a launch leaves to do is done
        yield
    finally:
        await asyncio.gather(
            *(manager.shutdown_kernel(now=True) for manager in managers if manager.has_kernel)
        )


async def server_share(seconds: float) -> float:
    """Per cent of a core that this process takes, with all its threads, while nobody asks it anything."""
    before, began = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    return (time.process_time() - before) / (time.monotonic() - began) * 100


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
