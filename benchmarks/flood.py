"""One kernel floods its output; what that does to the server's loops, and to another kernel on the same connection."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import Heartbeat, Running, Subject, checked, launch, subscribed
from benchmarks._numbers import Spread, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import World
from benchmarks.roundtrip import cells
from distributed_provisioner.io_thread import IOThread

TITLE = "one kernel floods its output"
STALL = 50.0
"""Milliseconds that the I/O loop may stand still."""
STARVES = 1.5
"""Times the slowdown that a local kernel's flood causes to another local kernel."""
FLOODS = {
    "many small messages": "from IPython.display import display\nwhile True: display({'text/plain': 'x' * 50}, raw=True)",
    "large messages": "from IPython.display import display\nwhile True: display({'text/plain': 'x' * 5_000_000}, raw=True)",
}
CELLS = 20


async def measure(world: World, scale: Scale, report: Report) -> None:
    subjects = {
        "local": Subject("local", [world.local()]),
        "ours": Subject("ours", [world.remote("remote_host1", ["host1"], prefork=False)]),
    }
    for kind, code in FLOODS.items():
        slower: dict[str, list[float]] = {name: [] for name in subjects}
        stalls: list[float] = []
        for _ in range(scale.rounds(5, 2)):
            for name, subject in subjects.items():
                slowdown, stall = await one(subject, code)
                slower[name].append(slowdown)
                if name == "ours":
                    stalls.append(stall)
        both = f"ours {Spread.of(slower['ours']).median:.1f} times as long as without, local {Spread.of(slower['local']).median:.1f}"
        ratios = paired_ratios(slower["ours"], slower["local"])
        report.rows.append(Row.spread(f"{kind}: another kernel's cell / local", ratios, TIMES, STARVES, both))
        longest = Spread.of(stalls)
        report.rows.append(
            Row.spread(f"{kind}: longest stall of the I/O loop", longest, "ms", STALL, scale=1000)
        )
    report.notes.append(
        "A cell of another kernel on the same host takes longer while one floods, since its client reads the flood in the same process; "
        "the ratio is to the same with two local kernels. The flooding kernel's client reads all."
    )


async def one(subject: Subject, code: str) -> tuple[float, float]:
    """(how many times as long another kernel's cell takes, longest stall of the I/O loop in seconds)."""
    flooding, other = await launch(subject), await launch(subject)
    try:
        for each in (flooding, other):
            await subscribed(each.client)
            await checked(each.client, "pass")
        alone = Spread.of(await cells(other.client, CELLS)).median
        async with flood(flooding, code):
            io, beat = IOThread.current(), Heartbeat()
            await io.run(beat.__aenter__())
            beside = Spread.of(await cells(other.client, CELLS)).median
            await io.run(beat.__aexit__(None, None, None))
        return beside / alone, beat.longest
    finally:
        for each in (flooding, other):
            await each.end()


@asynccontextmanager
async def flood(running: Running, code: str) -> AsyncIterator[None]:
    """While inside, the kernel publishes as fast as it can, and its client reads."""
    running.client.execute(code, store_history=False)

    async def read() -> None:
        while True:
            await running.client.iopub_channel.get_msg(timeout=None)

    reading = asyncio.ensure_future(read())
    try:
        await asyncio.sleep(1.0)
        yield
    finally:
        await running.manager.interrupt_kernel()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading


if __name__ == "__main__":
    sys.exit(main(only="flood"))
