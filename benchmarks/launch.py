"""A launch, from `start_kernel()` to the first reply, over a warm connection; in turn with a cold local kernel."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import Subject, launch_in_turn, warm_up
from benchmarks._numbers import Spread, ms, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import World

TITLE = "start_kernel() to the first kernel_info_reply, warm connection"
BUDGET = 1.15


async def measure(world: World, scale: Scale, report: Report) -> None:
    local = Subject("local", [world.local()])
    ours = [
        Subject(
            "host over SSH", [world.remote(f"remote_{host}", [host]) for host in ("host1", "host2", "host3")]
        ),
        Subject("localhost", [world.remote("remote_localhost", ["localhost"])]),
    ]
    subjects = [local, *ours]
    await warm_up(subjects)
    phases: dict[str, list[Mapping[str, float]]] = {}
    times = await launch_in_turn(subjects, scale.rounds(30, 5), phases)
    base = Spread.of(times["local"])
    for subject in ours:
        spread = Spread.of(times[subject.name])
        detail = f"{ms(spread.median)}; local {ms(base.median)} ({ms(base.low)} … {ms(base.high)})"
        ratios = paired_ratios(times[subject.name], times["local"])
        report.rows.append(Row.spread(f"launch, {subject.name} / local", ratios, TIMES, BUDGET, detail))
        report.notes.append(f"{subject.name}: {_where(phases[subject.name], spread.median)}")


def _where(phases: list[Mapping[str, float]], total: float) -> str:
    """Where the time goes: the provisioner's own phases, and what is left for jupyter_client and the first question."""
    names = list(phases[0])
    medians = {name: Spread.of(phase[name] for phase in phases).median for name in names}
    told = ", ".join(f"{name} {ms(value)}" for name, value in medians.items())
    return f"{told}, the rest (jupyter_client, connecting, the reply) {ms(total - sum(medians.values()))}"


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
