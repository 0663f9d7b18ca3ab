"""A cell's round trip and bulk output: through the relay, through plain forwards (ours and OpenSSH's), and directly."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
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
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.ssh import Connections
from distributed_provisioner.ssh.forward import Attachment, attach_remote

TITLE = "execute, 100 MB of display data, 100 MB of binary buffers"
RELAY_BUDGET = 1.6
"""Of a cell's round trip through the relay, against a local kernel's."""
RELAY_TO_FORWARD = 1.25
"""Of a cell's round trip through the relay, against a plain forward's."""
FORWARD_BUDGET = 1.5
RATES = {"display data": 0.8, "binary buffers": 0.65}
"""At least so much of a plain forward's rate."""
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
        Subject("relay over SSH", [world.remote("remote_host1", ["host1"], prefork=False)]),
        Subject("relay on localhost", [world.remote("remote_localhost", ["localhost"], prefork=False)]),
    ]
    running = {}
    try:
        for subject in subjects:
            running[subject.name] = await launch(subject)
        for name in ("forward", "ssh -L"):
            running[name] = await launch(subjects[2])
            running[name].client.stop_channels()
            without_relay(world, running[name])
        clients = {name: each.client for name, each in running.items()}
        with openssh(world, running["ssh -L"]) as theirs:
            async with own_forward(world, running["forward"]) as ours:
                clients.update({"forward": connected(ours), "ssh -L": connected(theirs)})
                try:
                    for name in ("forward", "ssh -L"):
                        await answer(clients[name])
                    await compare(clients, scale, report)
                finally:
                    clients["forward"].stop_channels()
                    clients["ssh -L"].stop_channels()
    finally:
        for each in running.values():
            await each.end()


async def compare(clients: dict[str, AsyncKernelClient], scale: Scale, report: Report) -> None:
    for client in clients.values():
        await subscribed(client)
        await checked(client, SETUP)
        await asyncio.wait_for(cells(client, 20), PATIENCE)
    compare_cells(await in_turn_each(clients, "pass", scale.rounds(50, 10), CELLS_A_TURN), report)
    size = int(scale.pick(100e6, 10e6))
    for kind, call in {"display data": f"_text({size})", "binary buffers": f"_binary({size})"}.items():
        times = await in_turn_each(clients, call, scale.rounds(5, 2), 1)
        compare_rates(times, f"{size / 1e6:.0f} MB of {kind}", RATES[kind], report)
    report.notes.append(
        "`forward`: a plain forward of ours; `ssh -L`: OpenSSH's, on a connection of its own. Each is to another kernel on the same host."
    )


def compare_cells(times: dict[str, list[float]], report: Report) -> None:
    base = Spread.of(times["local tcp"])
    budgets = {
        "relay over SSH": RELAY_BUDGET,
        "relay on localhost": RELAY_BUDGET,
        "forward": FORWARD_BUDGET,
        "ssh -L": None,
        "local ipc": None,
    }
    for name, budget in budgets.items():
        detail = f"{ms(Spread.of(times[name]).median)}; local tcp {ms(base.median)}"
        ratios = paired_ratios(times[name], times["local tcp"])
        report.rows.append(Row.spread(f"execute, {name} / local tcp", ratios, TIMES, budget, detail))
    ratios = paired_ratios(times["relay over SSH"], times["forward"])
    report.rows.append(Row.spread("execute, relay over SSH / forward", ratios, TIMES, RELAY_TO_FORWARD))


def compare_rates(times: dict[str, list[float]], what: str, least: float, report: Report) -> None:
    local = ms(Spread.of(times["local tcp"]).median)
    for name in ("relay over SSH", "relay on localhost", "forward", "ssh -L"):
        detail = f"{ms(Spread.of(times[name]).median)}; local tcp {local}"
        ratios = paired_ratios(times[name], times["local tcp"])
        report.rows.append(Row.spread(f"{what}, {name} / local tcp", ratios, TIMES, None, detail))
    # As times, so that the smaller is the better, as everywhere here: a rate of 0.8 is 1.25 times the time.
    for name, other, limit in (
        ("relay over SSH", "forward", 1 / least),
        ("relay over SSH", "ssh -L", 1 / 0.7),
        ("forward", "ssh -L", 1 / 0.9),
    ):
        ratios = paired_ratios(times[name], times[other])
        report.rows.append(Row.spread(f"{what}, {name} / {other}", ratios, TIMES, limit))


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


def connected(info: dict[str, Any]) -> AsyncKernelClient:
    client = AsyncKernelClient()
    client.load_connection_info(cast(KernelConnectionInfo, info))
    start(client)
    return client


def without_relay(world: World, running: Running) -> None:
    """Stop a kernel's relay (SIGSTOP), which reads along, so that a forward to the kernel has the machine to itself."""
    host = world.cluster["host1"]
    process = running.manager.provisioner.kernel.process  # type: ignore[union-attr]
    record = json.loads(host.run("cat", os.path.join(os.path.dirname(process.relay), "record")).stdout)
    host.run(
        "kill", "-STOP", str(record["relay_pid"])
    )  # SIGKILL, with which it ends, reaches it all the same


@asynccontextmanager
async def own_forward(world: World, running: Running) -> AsyncIterator[dict[str, Any]]:
    """A plain forward of ours to a kernel's own sockets, past its relay; gives connection info."""
    process = running.manager.provisioner.kernel.process  # type: ignore[union-attr]
    near = str(world.directory / "F")

    async def make() -> Attachment:
        (connection,) = [each for each in Connections.current() if each.address == process.host]
        attachment = await attach_remote(process, near, "host1")
        line = connection._lines.now  # past the relay there is no other way
        assert line is not None
        attachment.resume(line)
        return attachment

    attachment = await IOThread.current().run(make())
    try:
        info: dict[str, Any] = dict(running.manager.get_connection_info())
        info.update(
            transport="ipc", ip=near, **{f"{name}_port": port for name, port in attachment.ports.items()}
        )
        yield info
    finally:
        await IOThread.current().run(attachment.close())


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
