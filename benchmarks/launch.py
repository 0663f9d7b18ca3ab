"""A launch, from `start_kernel()` to the first reply, over a warm connection; in turn with a cold local kernel."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import Subject, Told, launch_in_turn, warm_templates, warm_up
from benchmarks._numbers import Spread, ms, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import HOSTS, World

TITLE = "start_kernel() to the first kernel_info_reply, warm connection"
BUDGET, COLD_BUDGET = 0.25, 1.15
"""Times a local launch: with a warm prefork, and without prefork."""
COLD = ", without prefork"


async def measure(world: World, scale: Scale, report: Report) -> None:
    local = Subject("local", [world.local()])
    forked = [
        Subject("host over SSH", [world.remote(f"forked_{host}", [host], prefork=True) for host in HOSTS]),
        Subject("localhost", [world.remote("forked_localhost", ["localhost"], prefork=True)]),
    ]
    cold = [
        Subject(
            f"host over SSH{COLD}", [world.remote(f"cold_{host}", [host], prefork=False) for host in HOSTS]
        ),
        Subject(f"localhost{COLD}", [world.remote("cold_localhost", ["localhost"], prefork=False)]),
    ]
    subjects = [local, *forked, *cold]
    await warm_up(subjects)
    for subject in forked:
        await warm_templates(subject, len(subject.specs))
    told: dict[str, Told] = {}
    times = await launch_in_turn(subjects, scale.rounds(30, 5), told)
    base = Spread.of(times["local"])
    for subject in [*forked, *cold]:
        spread = Spread.of(times[subject.name])
        detail = f"{ms(spread.median)}; local {ms(base.median)} ({ms(base.low)} … {ms(base.high)})"
        ratios = paired_ratios(times[subject.name], times["local"])
        budget = BUDGET if subject in forked else COLD_BUDGET
        report.rows.append(Row.spread(f"launch, {subject.name} / local", ratios, TIMES, budget, detail))
        report.notes.append(f"{subject.name}: {_where(told[subject.name].phases, spread.median)}")
    reasons = [why for subject in forked for why in told[subject.name].cold]
    report.rows.append(cold_starts(reasons, sum(len(times[subject.name]) for subject in forked)))


def cold_starts(reasons: Sequence[str], launches: int) -> Row:
    """How often there was no fork where one was to be measured: such a launch is in the figures as any other."""
    why = "; ".join(f"{count} {TIMES} {reason}" for reason, count in Counter(reasons).most_common(3))
    return Row("started cold though the prefork was warm", len(reasons), "", 0, n=launches, detail=why)


def _where(phases: list[Mapping[str, float]], total: float) -> str:
    """Where the time goes: the provisioner's own phases, and what is left for jupyter_client and the first question."""
    names = list(phases[0])
    medians = {name: Spread.of(phase[name] for phase in phases).median for name in names}
    told = ", ".join(f"{name} {ms(value)}" for name, value in medians.items())
    return f"{told}, the rest (jupyter_client, connecting, the reply) {ms(total - sum(medians.values()))}"


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
