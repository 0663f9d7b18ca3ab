"""A restart, from `restart_kernel()` to the first reply, in turn with a local kernel. For information."""

from __future__ import annotations

import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import Running, Subject, answer, connect, launch
from benchmarks._numbers import Spread, in_turn, ms, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import World

TITLE = "restart_kernel() to the first kernel_info_reply"


async def measure(world: World, scale: Scale, report: Report) -> None:
    subjects = [
        Subject("local", [world.local()]),
        Subject("host over SSH", [world.remote("remote_host1", ["host1"])]),
        Subject("localhost", [world.remote("remote_localhost", ["localhost"])]),
    ]
    running: list[Running] = []
    times: dict[bool, dict[str, list[float]]] = {now: {s.name: [] for s in subjects} for now in (True, False)}
    try:
        for subject in subjects:
            running.append(await launch(subject))
            await restarted(running[-1], now=True)
        for turn in range(scale.rounds(20, 3)):
            for now in (True, False):
                for index in in_turn(len(subjects), turn):
                    times[now][subjects[index].name].append(await restarted(running[index], now=now))
    finally:
        for each in running:
            await each.end()
    for now in (True, False):
        base = Spread.of(times[now]["local"])
        for name in ("host over SSH", "localhost"):
            detail = f"{ms(Spread.of(times[now][name]).median)}; local {ms(base.median)}"
            ratios = paired_ratios(times[now][name], times[now]["local"])
            what = f"restart {'at once' if now else 'after a shutdown request'}, {name} / local"
            report.rows.append(Row.spread(what, ratios, TIMES, None, detail))


async def restarted(running: Running, *, now: bool) -> float:
    """A new client asks: one that waits across the restart is told by ZMQ's own reconnecting, which is not measured here."""
    running.client.stop_channels()
    began = time.perf_counter()
    await running.manager.restart_kernel(now=now)
    running.client = connect(running.manager)
    await answer(running.client)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
