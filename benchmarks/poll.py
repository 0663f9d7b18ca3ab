"""`poll()`: what it costs, with the host there and with its link cut."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import PATIENCE, Running, Subject, launch
from benchmarks._numbers import Spread
from benchmarks._report import Report, Row
from benchmarks._world import World

TITLE = "one question whether the kernel lives"
BUDGET = 50.0
QUESTIONS = 1000


async def measure(world: World, scale: Scale, report: Report) -> None:
    host = world.cluster["host1"]
    rounds = scale.rounds(50, 10)
    local = await launch(Subject("local", [world.local()]))
    ours = await launch(Subject("host over SSH", [world.remote("remote_host1", ["host1"], prefork=False)]))
    try:
        base = await ask(local, rounds)
        there = await ask(ours, rounds)
        before = traffic()
        await ask(ours, rounds)
        sent = traffic() - before
        host.cut()
        try:
            away = await ask(ours, rounds)
        finally:
            host.heal()
        host.kill_sshd()
        try:
            await until(ours, "unreachable")
            lost = await ask(ours, rounds)
        finally:
            host.start_sshd()
        await until(ours, "running")
    finally:
        await ours.end()
        await local.end()
    detail = f"Jupyter's own for a local kernel: {base.median * 1e6:.1f} µs"
    report.rows += [
        Row.spread("poll(), the host is there", there, "µs", BUDGET, detail, scale=1e6),
        Row.spread(
            "poll(), the link is cut",
            away,
            "µs",
            BUDGET,
            "answers None: alive, as far as is known",
            scale=1e6,
        ),
        Row.spread(
            "poll(), sshd was killed", lost, "µs", BUDGET, "answers None: the kernel lives on", scale=1e6
        ),
        Row(
            f"frames sent during {rounds * QUESTIONS} questions",
            sent,
            "",
            None,
            n=1,
            detail="to all hosts together; keep-alives",
        ),
    ]


async def until(running: Running, state: str) -> None:
    """Wait until our provisioner knows what has become of its host."""
    deadline = time.monotonic() + PATIENCE
    while running.manager.provisioner.kernel.state.value != state:  # type: ignore[union-attr]
        if time.monotonic() > deadline:
            raise TimeoutError(f"the kernel's state does not become {state}")
        await asyncio.sleep(0.05)


async def ask(running: Running, rounds: int) -> Spread:
    """Seconds for one question, as means of many."""
    provisioner = running.manager.provisioner
    assert provisioner is not None
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(QUESTIONS):
            if await provisioner.poll() is not None:
                raise RuntimeError("a living kernel was called dead")
        taken.append((time.perf_counter() - began) / QUESTIONS)
    return Spread.of(taken)


def traffic() -> int:
    """Frames that this network namespace has sent to the cluster."""
    rows = [line.split() for line in Path("/proc/self/net/dev").read_text().splitlines() if ":" in line]
    return sum(int(row[10]) for row in rows if row[0].startswith("dp77-"))


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
