"""A cell's round trip and bulk output: through the forward, directly, and through OpenSSH's own forward."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import KernelConnectionInfo

from benchmarks._command import Scale, main
from benchmarks._kernels import (
    PATIENCE,
    Running,
    Subject,
    answer,
    checked,
    execute,
    launch,
    start,
    subscribed,
)
from benchmarks._numbers import Spread, in_turn, ms, paired_ratios
from benchmarks._report import TIMES, Report, Row
from benchmarks._world import World

TITLE = "execute, 100 MB of display data, 100 MB of binary buffers"
BUDGET = 1.5
CELLS_A_TURN = 10
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
SETUP = """
import comm
from IPython.display import display
_comm = comm.create_comm(target_name="benchmark")
def _text(size): display({"text/plain": "x" * size}, raw=True)
def _binary(size): _comm.send({}, buffers=[b"x" * size])
"""


async def measure(world: World, scale: Scale, report: Report) -> None:
    subjects = [
        Subject("local tcp", [world.local()]),
        Subject("local ipc", [world.local()], transport="ipc"),
        Subject("host over SSH", [world.remote("remote_host1", ["host1"])]),
        Subject("localhost", [world.remote("remote_localhost", ["localhost"])]),
    ]
    running = {}
    try:
        for subject in subjects:
            running[subject.name] = await launch(subject)
        other = running["ssh -L"] = await launch(subjects[2])
        other.client.stop_channels()
        with openssh(world, other) as info:
            clients = {name: each.client for name, each in running.items()}
            clients["ssh -L"] = forwarded = AsyncKernelClient()
            forwarded.load_connection_info(cast(KernelConnectionInfo, info))
            start(forwarded)
            try:
                await answer(forwarded)
                await compare(clients, scale, report)
            finally:
                forwarded.stop_channels()
    finally:
        for each in running.values():
            await each.end()


async def compare(clients: dict[str, AsyncKernelClient], scale: Scale, report: Report) -> None:
    for client in clients.values():
        await subscribed(client)
        await checked(client, SETUP)
        await asyncio.wait_for(cells(client, 20), PATIENCE)
    times = await in_turn_each(clients, "pass", scale.rounds(50, 10), CELLS_A_TURN)
    base = Spread.of(times["local tcp"])
    for name, budget in {
        "host over SSH": BUDGET,
        "localhost": BUDGET,
        "ssh -L": None,
        "local ipc": None,
    }.items():
        detail = f"{ms(Spread.of(times[name]).median)}; local tcp {ms(base.median)}"
        ratios = paired_ratios(times[name], times["local tcp"])
        report.rows.append(Row.spread(f"execute, {name} / local tcp", ratios, TIMES, budget, detail))
    size = int(scale.pick(100e6, 10e6))
    for kind, call in {"display data": f"_text({size})", "binary buffers": f"_binary({size})"}.items():
        times = await in_turn_each(clients, call, scale.rounds(5, 2), 1)
        for name in ("host over SSH", "localhost", "ssh -L"):
            detail = (
                f"{ms(Spread.of(times[name]).median)}; local tcp {ms(Spread.of(times['local tcp']).median)}"
            )
            ratios = paired_ratios(times[name], times["local tcp"])
            what = f"{size / 1e6:.0f} MB of {kind}, {name} / local tcp"
            report.rows.append(Row.spread(what, ratios, TIMES, None, detail))
        speed = paired_ratios(times["ssh -L"], times["host over SSH"])
        report.rows.append(
            Row.spread(f"{size / 1e6:.0f} MB of {kind}, speed of our forward / ssh -L", speed, TIMES)
        )
    report.notes.append(
        "`ssh -L`: OpenSSH's forward, on a connection of its own, to another kernel on the same host."
    )


async def in_turn_each(
    clients: dict[str, AsyncKernelClient], code: str, rounds: int, cells_a_turn: int
) -> dict[str, list[float]]:
    """Seconds for one cell: the median of each turn."""
    names = list(clients)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for index in in_turn(len(names), turn):
            client = clients[names[index]]
            times[names[index]].append(Spread.of(await cells(client, cells_a_turn, code)).median)
    return times


async def cells(client: AsyncKernelClient, count: int, code: str = "pass") -> list[float]:
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await execute(client, code)
        taken.append(time.perf_counter() - began)
    return taken


@contextmanager
def openssh(world: World, running: Running) -> Iterator[dict[str, Any]]:
    """OpenSSH's forward to a kernel of ours, with a session open, as sshd sets TCP_NODELAY only then; gives connection info."""
    process = running.manager.provisioner.kernel.process  # type: ignore[union-attr]
    near = world.directory / "L"
    forwards = [
        item
        for channel in CHANNELS
        for item in ("-L", f"{near}-{process.ports[channel]}:{process.ip}-{process.ports[channel]}")
    ]
    options = ["-F", str(world.ssh_config), "-o", "ExitOnForwardFailure=yes"]
    with subprocess.Popen(
        ["ssh", *options, *forwards, "host1", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        try:
            assert client.stdout is not None
            if client.stdout.readline() != b"ready\n":
                raise RuntimeError("OpenSSH could not forward; it says why above")
            info: dict[str, Any] = dict(running.manager.get_connection_info())
            info.update(
                transport="ipc", ip=str(near), **{f"{name}_port": process.ports[name] for name in CHANNELS}
            )
            yield info
        finally:
            client.terminate()


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
