"""One kernel floods its output; what that does to the server's loops, and to another kernel on the same connection."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jupyter_client.asynchronous.client import AsyncKernelClient

from benchmarks._command import Scale, main
from benchmarks._kernels import Heartbeat, Running, Subject, checked, launch, subscribed
from benchmarks._numbers import Spread, in_turn, ms, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import World, descent
from benchmarks.roundtrip import cells
from distributed_provisioner.io_thread import IOThread

TITLE = "one kernel floods its output"
STALL = 50.0
"""Milliseconds that a loop may stand still."""
STARVES = 1.5
"""Times what a local kernel's flood does to another local kernel's cell."""
SMALL = """
import time
kernel = get_ipython().kernel
content = {'data': {'text/plain': 'x' * 50}, 'metadata': {}, 'transient': {}}
message = kernel.session.msg('display_data', content, parent=kernel.get_parent())
topic, delimiter, _, header, *rest = kernel.session.serialize(message, ident=b'display_data')
name, number = message['header']['msg_id'].encode(), 0
while True:
    number += 1
    parts = [header.replace(name, b'%032d' % number), *rest]
    kernel.iopub_socket.send_multipart([topic, delimiter, kernel.session.sign(parts), *parts])
    while number % 100 == 0 and len(kernel.iopub_thread._events) > 200:
        time.sleep(0.001)
"""
"""`display()` in a loop, but for the time that making a message takes: a kernel on half of this machine must outrun its reader, as one on
a machine of its own does."""
FLOODS = {
    "many small messages": SMALL,
    "large messages": "from IPython.display import display\nwhile True: display({'text/plain': 'x' * 5_000_000}, raw=True)",
}
CELLS = 20
"""Run before the flood. Beside it as many as its time allows, and not fewer."""
BUILDS_UP, SETTLES = 1.0, 0.3
"""Seconds of flood before anything is measured, and after the cores were divided."""
LASTS = 3.0
"""Seconds for which something is measured: the longest of anything grows with the time that it is looked for."""


async def measure(world: World, scale: Scale, report: Report) -> None:
    subjects = {
        "local": Subject("local", [world.local()]),
        "ours": Subject("ours", [world.remote("remote_host1", ["host1"], prefork=False)]),
    }
    for kind, code in FLOODS.items():
        found: dict[str, list[Effect]] = {name: [] for name in subjects}
        for turn in range(scale.rounds(5, 2)):
            for index in in_turn(len(subjects), turn):
                name = list(subjects)[index]
                found[name].append(await one(subjects[name], code))
        report.rows += rows(kind, found["ours"], found["local"])
    report.notes += [
        "A cell of another kernel on the same host takes longer while one floods, since its client reads the flood in the same process; "
        "the ratio is to the same with two local kernels. The flooding kernel's client reads all, and lets its loop turn after each "
        "message, as a Jupyter Server does.",
        "For the stalls hosts, which are other machines, and local kernels have half of the cores. Where they share all with the server, "
        "this measures how long the system leaves a thread that is ready waiting for a core: on two cores an idle loop, too, is then woken "
        "up to 0.1 s late.",
        "The caller's loop is the one on which the flood is read. It takes one of the large messages out of its wire bytes in one go.",
    ]


@dataclass(frozen=True)
class Effect:
    """What a flood did; seconds."""

    slowdown: float
    """How many times as long another kernel's cell took."""
    io: float
    """Longest stall of the I/O loop."""
    caller: float
    """The same of the loop on which the flood is read."""
    rate: float
    """Messages of the flood read in a second."""


def rows(kind: str, ours: Sequence[Effect], local: Sequence[Effect]) -> list[Row]:
    def both(value: Callable[[Effect], float]) -> tuple[list[float], list[float]]:
        return [value(each) for each in ours], [value(each) for each in local]

    slower, slower_local = both(lambda each: each.slowdown)
    ratios = paired_ratios(slower, slower_local)
    times = f"ours {Spread.of(slower).median:.1f} times as long as without, local {Spread.of(slower_local).median:.1f}"
    io, idle = (Spread.of(found) for found in both(lambda each: each.io))
    rate, rate_local = (Spread.of(found).median for found in both(lambda each: each.rate))
    beside = f"{ms(idle.median)} when it is idle; {rate:.0f} messages/s were read, {rate_local:.0f} of the local kernel"
    stands, stands_local = both(lambda each: each.caller)
    longer = paired_ratios(stands, stands_local).median
    local_caller = f"local {ms(Spread.of(stands_local).median)}, of which ours is {longer:.1f} times"
    return [
        Row.spread(f"{kind}: another kernel's cell / local", ratios, TIMES, STARVES, times),
        Row.spread(f"{kind}: longest stall of the I/O loop", io, "ms", STALL, beside, scale=1000),
        Row.spread(
            f"{kind}: longest stall of the caller's loop",
            Spread.of(stands),
            "ms",
            STALL,
            local_caller,
            scale=1000,
        ),
    ]


@contextmanager
def apart() -> Iterator[None]:
    """While inside, what runs beside this process (the hosts, which are other machines, and local kernels) has half of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    confine(cores[len(cores) // 2 :])
    try:
        yield
    finally:
        confine(cores)


def confine(cores: Sequence[int]) -> None:
    """Keep all processes below this one, and what they will start, on some cores."""
    for pid in descent(os.getpid()) - {os.getpid()}:
        with suppress(OSError):  # it has ended
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), cores)


async def one(subject: Subject, code: str) -> Effect:
    """Two kernels of a subject: one floods, the other one is used."""
    flooding, other = await launch(subject), await launch(subject)
    try:
        for each in (flooding, other):
            await subscribed(each.client)
            await checked(each.client, "pass")
        alone = Spread.of(await cells(other.client, CELLS)).median
        async with flood(flooding, code) as count:
            beside = Spread.of(await cells_for(other.client, LASTS)).median
            io, beat = IOThread.current(), Heartbeat()
            with apart():
                await asyncio.sleep(SETTLES)
                await io.run(beat.__aenter__())
                before, began = count(), time.perf_counter()
                async with Heartbeat() as callers:
                    await cells_for(other.client, LASTS)
                rate = (count() - before) / (time.perf_counter() - began)
                await io.run(beat.__aexit__(None, None, None))
        return Effect(beside / alone, beat.longest, callers.longest, rate)
    finally:
        for each in (flooding, other):
            await each.end()


async def cells_for(client: AsyncKernelClient, seconds: float) -> list[float]:
    until = time.perf_counter() + seconds
    taken: list[float] = []
    while len(taken) < CELLS or time.perf_counter() < until:
        taken += await cells(client, 1)
    return taken


@asynccontextmanager
async def flood(running: Running, code: str) -> AsyncIterator[Callable[[], int]]:
    """While inside, the kernel publishes as fast as it can, and its client reads; gives how many messages it has read.

    The client's loop turns after each message, as that of Jupyter Server does, which reads by ZMQStream. Else it would stand still while
    there is anything to read: awaiting what is there already does not let go.
    """
    running.client.execute(code, store_history=False)
    count = 0

    async def read() -> None:
        nonlocal count
        while True:
            await running.client.iopub_channel.get_msg(timeout=None)
            count += 1
            await asyncio.sleep(0)

    reading = asyncio.ensure_future(read())
    try:
        await asyncio.sleep(BUILDS_UP)
        yield lambda: count
    finally:
        await running.manager.interrupt_kernel()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading


if __name__ == "__main__":
    sys.exit(main(only="flood"))
