"""Thirty launches at once over three hosts at sshd's default limits, in turn with thirty local ones; and a hundred."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import Burst, Subject, burst, faultless_burst, warm_templates, warm_up
from benchmarks._numbers import Spread, in_turn, ms, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import HOSTS, Processes, World
from benchmarks.launch import COLD, cold_starts

TITLE = "30 launches at once over 3 hosts"
WALL, COLD_WALL = 0.4, 1.15
"""Times the local kernels' time: with a warm prefork, and without prefork."""
STALL, STALL_WITHOUT_CPU = 0.5, 50.0
LOCAL, FORKED, UNFORKED = "local", "3 hosts", "3 hosts, without prefork"


async def measure(world: World, scale: Scale, report: Report) -> None:
    count, rounds = int(scale.pick(30, 12)), scale.rounds(5, 1)
    local = Subject(LOCAL, [world.local()])
    forked = Subject(FORKED, [world.remote("forked_python", HOSTS, prefork=True)])
    cold = Subject(UNFORKED, [world.remote("cold_python", HOSTS, prefork=False)])
    await warm_up([local, *[cold] * len(HOSTS)])  # round-robin: each host is connected to
    await warm_templates(forked, len(HOSTS))
    before = Processes.now(world)
    found = await bursts_in_turn([local, forked, cold], count, rounds)
    report.rows += failed(found, count)
    report.rows += [
        compared("wall time / local", "wall", found, FORKED, WALL),
        compared("longest stall of the event loop / local", "stall", found, FORKED, STALL),
        compared(f"wall time{COLD} / local", "wall", found, UNFORKED, COLD_WALL),
        compared(f"longest stall of the event loop{COLD} / local", "stall", found, UNFORKED, STALL),
    ]
    more = int(scale.pick(100, 24))
    larger = await bursts_in_turn([local, forked], more, 1)
    report.rows += [
        *failed(larger, more),
        compared(f"{more} at once: wall time / local", "wall", larger, FORKED),
        compared(f"{more} at once: longest stall / local", "stall", larger, FORKED),
    ]
    reasons = [why for each in [*found[FORKED], *larger[FORKED]] for why in each.cold]
    report.rows.append(cold_starts(reasons, count * rounds + more * len(larger[FORKED])))
    left = before.more()
    n = count * rounds * 2 + more * len(larger[FORKED])
    report.rows.append(Row("processes left behind", left, "", 0, n=n, detail="on the hosts and here"))
    await without_cpu(world, count, rounds, report)


async def bursts_in_turn(subjects: Sequence[Subject], count: int, rounds: int) -> dict[str, list[Burst]]:
    found: dict[str, list[Burst]] = {subject.name: [] for subject in subjects}
    for turn in range(rounds):
        for index in in_turn(len(subjects), turn):
            subject = subjects[index]
            measured = faultless_burst if subject.name == LOCAL else burst
            found[subject.name].append(await measured(subject, count))
    return found


def failed(found: dict[str, list[Burst]], count: int) -> list[Row]:
    """A row for each way but the local one, which loses races for ports by itself."""
    local = sum(len(each.failures) for each in found[LOCAL])
    rows = []
    for name, bursts in found.items():
        if name != LOCAL:
            failures = [failure for each in bursts for failure in each.failures]
            detail = "; ".join([f"local {local}", *sorted(set(failures))[:3]])
            n = len(bursts) * count
            what = f"{count} at once, {name}: failures"
            rows.append(Row(what, len(failures), "", 0, n=n, detail=detail))
    return rows


def compared(
    what: str, kind: str, found: dict[str, list[Burst]], name: str, budget: float | None = None
) -> Row:
    mine, theirs = ([float(getattr(each, kind)) for each in found[which]] for which in (name, LOCAL))
    return Row.spread(what, paired_ratios(mine, theirs), TIMES, budget, _both(mine, theirs))


async def without_cpu(world: World, count: int, rounds: int, report: Report) -> None:
    """The same with kernels that bind their sockets and sleep, so that what is left is the launching itself."""
    ours = Subject("stub on 3 hosts", [world.stub("stub_remote", HOSTS)], transport="tcp")
    local = Subject("local stub", [world.stub("stub_local")], transport="ipc")
    await burst(ours, len(HOSTS), answering=False)
    mine, theirs = [], []
    for _ in range(max(rounds, 3)):
        theirs.append(await burst(local, count, answering=False))
        mine.append(await burst(ours, count, answering=False))
    failures = [failure for each in mine for failure in each.failures]
    stalls = Spread.of(each.stall for each in mine)
    detail = f"local {ms(Spread.of(each.stall for each in theirs).median)}; wall {ms(Spread.of(e.wall for e in mine).median)}"
    report.rows.append(
        Row(
            "kernels without CPU: failures",
            len(failures),
            "",
            0,
            n=len(mine) * count,
            detail="; ".join(failures[:1]),
        )
    )
    report.rows.append(
        Row.spread("kernels without CPU: longest stall", stalls, "ms", STALL_WITHOUT_CPU, detail, scale=1000)
    )
    report.notes.append(
        "A stall: how late a task of the caller's loop that sleeps 5 ms at a time is woken; delays of the machine count."
    )


def _both(mine: list[float], theirs: list[float]) -> str:
    return f"{ms(Spread.of(mine).median)}; local {ms(Spread.of(theirs).median)}"


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
