"""What idle kernels on one host take of its memory, forked from one process against started one by one."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import Running, Subject, checked, launch, subscribed, warm_templates, warm_up
from benchmarks._numbers import Spread, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import RELAY, SPARE, TEMPLATE, USER, World, own_name, proportional_megabytes
from benchmarks.launch import cold_starts

TITLE = "idle kernels on one host, with prefork and without"
BUDGET = 0.6
HOST = "host1"
TEMPLATES = (TEMPLATE, SPARE)
SETTLING = 3.0
"""Seconds until what a launch and a cell leave to do is done."""


@dataclass(frozen=True)
class Found:
    """Megabytes, each page counted once however many share it."""

    kernels: float
    templates: float
    cold: list[str]

    @property
    def all(self) -> float:
        return self.kernels + self.templates


async def measure(world: World, scale: Scale, report: Report) -> None:
    count = int(scale.pick(20, 6))
    cold = Subject("without prefork", [world.remote("cold_python", [HOST], prefork=False)])
    forked = Subject("with prefork", [world.remote("forked_python", [HOST], prefork=True)])
    await warm_up([cold])
    before = await occupied(world, cold, count)
    await warm_up([forked])
    await warm_templates(forked)
    mine, theirs = [], [before]
    for turn in range(scale.rounds(3, 1)):
        if turn:
            theirs.append(await occupied(world, cold, count))
        mine.append(await occupied(world, forked, count))
    ratios = paired_ratios([each.all for each in mine], [each.kernels for each in theirs])
    templates = Spread.of(each.templates for each in mine).median
    detail = (
        f"{Spread.of(each.all for each in mine).median:.0f} MB, {templates:.1f} MB of it the template's and its spare's; "
        f"cold {Spread.of(each.kernels for each in theirs).median:.0f} MB"
    )
    what = f"proportional memory (PSS) of {count} idle kernels and their template / cold ones"
    report.rows.append(Row.spread(what, ratios, TIMES, BUDGET, detail))
    for subject, found in ((forked, mine), (cold, theirs)):
        spread = Spread.of(each.kernels / count for each in found)
        report.rows.append(Row.spread(f"one of {count} kernels, {subject.name}", spread, "MB"))
    report.rows.append(cold_starts([why for each in mine for why in each.cold], count * len(mine)))
    report.notes.append(
        "Each kernel has run one cell, and its client is connected. What the relays take is the same either way, and is left out. "
        "In all rounds but the first a template waits while the cold kernels are measured, and shares the libraries' pages with them."
    )


async def occupied(world: World, subject: Subject, count: int) -> Found:
    """Start them one after the other, let them be, measure, end them."""
    # The fork that waits becomes a kernel.
    before = {pid for pid, name in processes(world).items() if name not in TEMPLATES}
    running: list[Running] = []
    try:
        for _ in range(count):
            running.append(await launch(subject))
            await subscribed(running[-1].client)
            await checked(running[-1].client, "1 + 1")
        await asyncio.sleep(SETTLING)
        now = processes(world)
        sizes = {pid: proportional_megabytes(pid) for pid, name in now.items() if name != RELAY}
        templates = sum(size for pid, size in sizes.items() if now[pid] in TEMPLATES)
        kernels = [size for pid, size in sizes.items() if pid not in before and now[pid] not in TEMPLATES]
        if len(kernels) != count:
            raise RuntimeError(f"{len(kernels)} processes instead of {count} kernels")
        cold = [each.why_cold for each in running if each.why_cold is not None]
        return Found(sum(kernels), templates, cold)
    finally:
        for each in running:
            await each.end()


def processes(world: World) -> dict[int, str]:
    """What the user runs on the host, by the pid that it has here, with the name that it goes by."""
    return {
        process.outer_pid: own_name(process.outer_pid)
        for process in world.cluster[HOST].processes(USER) if not process.is_sshd
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
