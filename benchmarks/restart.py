"""A restart, from `restart_kernel()` to the first reply of the new process, in turn with a local kernel."""

from __future__ import annotations

import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import Running, Subject, Told, answer, connect, launch, warm_templates, warm_up
from benchmarks._numbers import Spread, in_turn, ms, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import World
from benchmarks.launch import COLD, cold_starts

TITLE = "restart_kernel() to the first kernel_info_reply"
BUDGET = 0.3
"""Times a local restart, where the new process is a fork."""


async def measure(world: World, scale: Scale, report: Report) -> None:
    local = Subject("local", [world.local()])
    forked = [
        Subject("host over SSH", [world.remote("forked_host1", ["host1"], prefork=True)]),
        Subject("localhost", [world.remote("forked_localhost", ["localhost"], prefork=True)]),
    ]
    cold = [
        Subject(f"host over SSH{COLD}", [world.remote("cold_host1", ["host1"], prefork=False)]),
        Subject(f"localhost{COLD}", [world.remote("cold_localhost", ["localhost"], prefork=False)]),
    ]
    subjects = [local, *forked, *cold]
    running: list[Running] = []
    times: dict[bool, dict[str, list[float]]] = {now: {s.name: [] for s in subjects} for now in (True, False)}
    told = {subject.name: Told() for subject in subjects}
    await warm_up(subjects)
    for subject in forked:
        await warm_templates(subject)
    try:
        for subject in subjects:
            running.append(await launch(subject))
            await restarted(running[-1], now=True)
        for turn in range(scale.rounds(20, 3)):
            for now in (True, False):
                for index in in_turn(len(subjects), turn):
                    times[now][subjects[index].name].append(await restarted(running[index], now=now))
                    told[subjects[index].name].add(running[index])
    finally:
        for each in running:
            await each.end()
    for now in (True, False):
        base = Spread.of(times[now]["local"])
        for subject in [*forked, *cold]:
            name = subject.name
            detail = f"{ms(Spread.of(times[now][name]).median)}; local {ms(base.median)}"
            ratios = paired_ratios(times[now][name], times[now]["local"])
            what = f"restart {'at once' if now else 'after a shutdown request'}, {name} / local"
            budget = BUDGET if subject in forked else None
            report.rows.append(Row.spread(what, ratios, TIMES, budget, detail))
    reasons = [why for subject in forked for why in told[subject.name].cold]
    report.rows.append(cold_starts(reasons, sum(len(told[subject.name].phases) for subject in forked)))


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
