"""Thirty launches at once over three hosts at sshd's default limits, in turn with thirty local ones."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import Burst, Subject, burst, faultless_burst, warm_up
from benchmarks._numbers import Spread, ms, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import HOSTS, Processes, World

TITLE = "30 launches at once over 3 hosts"
WALL, STALL, STALL_WITHOUT_CPU = 1.15, 0.5, 50.0


async def measure(world: World, scale: Scale, report: Report) -> None:
    count, rounds = int(scale.pick(30, 12)), scale.rounds(5, 1)
    local, ours = Subject("local", [world.local()]), Subject("3 hosts", [world.remote(hosts=HOSTS)])
    await warm_up([local, ours])
    for _ in HOSTS[1:]:
        await warm_up([ours])  # round-robin: each host is connected to
    before = Processes.now(world)
    found: dict[str, list[Burst]] = {"local": [], "3 hosts": []}
    for turn in range(rounds):
        for subject in (local, ours) if turn % 2 == 0 else (ours, local):
            measured = burst if subject is ours else faultless_burst
            found[subject.name].append(await measured(subject, count))
    theirs, mine = found["local"], found["3 hosts"]
    failures = [failure for each in mine for failure in each.failures]
    local_failures = sum(len(each.failures) for each in theirs)
    report.rows.append(
        Row(
            "failures",
            len(failures),
            "",
            0,
            n=rounds * count,
            detail="; ".join([f"local {local_failures}", *sorted(set(failures))[:3]]),
        )
    )
    walls = [each.wall for each in mine], [each.wall for each in theirs]
    report.rows.append(
        Row.spread("wall time / local", paired_ratios(*walls), TIMES, WALL, _both(*walls)),
    )
    stalls = [each.stall for each in mine], [each.stall for each in theirs]
    report.rows.append(
        Row.spread(
            "longest stall of the event loop / local", paired_ratios(*stalls), TIMES, STALL, _both(*stalls)
        ),
    )
    left = before.more()
    report.rows.append(
        Row("processes left behind", left, "", 0, n=rounds * count, detail="on the hosts and here")
    )
    await without_cpu(world, count, rounds, report)


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
