"""From `interrupt_kernel()` to the reply of the cell that it broke off, in turn with a local kernel."""

from __future__ import annotations

import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._kernels import PATIENCE, Running, Subject, idle_after, launch, reply_to, subscribed
from benchmarks._numbers import Spread, in_turn, ms, paired_differences
from benchmarks._report import Report, Row
from benchmarks._world import World

TITLE = "interrupt_kernel() to the KeyboardInterrupt reply"
BUDGET = 20.0
CELL = "import time; print('running', flush=True); time.sleep(60)"


async def measure(world: World, scale: Scale, report: Report) -> None:
    subjects = [
        Subject("local", [world.local()]),
        Subject("host over SSH", [world.remote("remote_host1", ["host1"], prefork=False)]),
        Subject("localhost", [world.remote("remote_localhost", ["localhost"], prefork=False)]),
    ]
    running: list[Running] = []
    try:
        for subject in subjects:
            running.append(await launch(subject))
            await subscribed(running[-1].client)
            await interrupted(running[-1])
        times: dict[str, list[float]] = {subject.name: [] for subject in subjects}
        for turn in range(scale.rounds(40, 8)):
            for index in in_turn(len(subjects), turn):
                times[subjects[index].name].append(await interrupted(running[index]))
    finally:
        for each in running:
            await each.end()
    base = Spread.of(times["local"])
    for name in ("host over SSH", "localhost"):
        detail = f"{ms(Spread.of(times[name]).median)}; local {ms(base.median)}"
        over = paired_differences(times[name], times["local"])
        report.rows.append(
            Row.spread(f"interrupt, {name}, over local", over, "ms", BUDGET, detail, scale=1000)
        )


async def interrupted(running: Running) -> float:
    client = running.client
    number = client.execute(CELL, store_history=False, allow_stdin=False)
    while True:
        message = await client.iopub_channel.get_msg(timeout=PATIENCE)
        if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == number:
            break
    began = time.perf_counter()
    await running.manager.interrupt_kernel()
    content = await reply_to(client, number)
    taken = time.perf_counter() - began
    if content.get("ename") != "KeyboardInterrupt":
        raise RuntimeError(f"instead of a KeyboardInterrupt: {content.get('status')} {content.get('ename')}")
    await idle_after(client, number)
    return taken


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
