"""Kernels as a client sees them: launched, asked, ended; and what a launch does to its caller's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from types import TracebackType
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from benchmarks._numbers import in_turn

PATIENCE = 120.0
"""Seconds that anything may take; the same for all."""
BEAT = 0.005


@dataclass(frozen=True)
class Subject:
    """One way to start a kernel: kernelspecs that are taken in turn."""

    name: str
    specs: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    transport: str = "tcp"

    def manager(self, number: int = 0) -> AsyncKernelManager:
        # A connection file of its own name, as MultiKernelManager gives it: local ipc sockets are named after it.
        file = Path(os.environ["JUPYTER_RUNTIME_DIR"], f"kernel-{uuid.uuid4()}.json")
        name = self.specs[number % len(self.specs)]
        return AsyncKernelManager(kernel_name=name, transport=self.transport, connection_file=str(file))

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.env, "KERNEL_LAUNCH_TIMEOUT": f"{PATIENCE:.0f}"}


@dataclass
class Running:
    """A kernel that has answered, and how long that took."""

    manager: AsyncKernelManager
    client: AsyncKernelClient
    seconds: float

    async def end(self) -> None:
        self.client.stop_channels()
        await asyncio.wait_for(self.manager.shutdown_kernel(now=True), PATIENCE)

    @property
    def phases(self) -> Mapping[str, float]:
        """How our provisioner says it spent the time; empty for others."""
        found: Mapping[str, float] = getattr(self.manager.provisioner, "launch_phases", {})
        return found

    @property
    def host(self) -> str:
        """Where our provisioner started it; empty for others."""
        return str(getattr(self._process, "host", ""))

    @property
    def why_cold(self) -> str | None:
        """Why our provisioner did not fork it, None where it did. Other tools do not fork."""
        told: Mapping[str, Any] = getattr(self._process, "details", {}).get("prefork") or {}
        return None if told.get("used") else str(told.get("why") or "it knows no prefork")

    @property
    def _process(self) -> Any:
        return getattr(getattr(self.manager.provisioner, "kernel", None), "process", None)


@dataclass
class Told:
    """What our provisioner said about the launches of one subject."""

    phases: list[Mapping[str, float]] = field(default_factory=list)
    cold: list[str] = field(default_factory=list)
    """Why, for each one that was not forked."""

    def add(self, running: Running) -> None:
        self.phases.append(running.phases)
        if running.why_cold is not None:
            self.cold.append(running.why_cold)


async def launch(subject: Subject, number: int = 0) -> Running:
    """From `start_kernel()` to the first `kernel_info_reply`."""
    manager = subject.manager(number)
    environment = subject.environment()
    began = time.perf_counter()
    try:
        await manager.start_kernel(env=environment)
        client = connect(manager)
        await answer_of(manager, client)
    except BaseException:
        await end_quietly(manager)
        raise
    return Running(manager, client, time.perf_counter() - began)


async def end_quietly(manager: AsyncKernelManager) -> None:
    """Of a launch that failed, what Jupyter would do about it."""
    try:
        if manager.has_kernel:
            await asyncio.wait_for(manager.shutdown_kernel(now=True), PATIENCE)
    except Exception as error:
        print(f"  ending a failed launch failed: {type(error).__name__}: {error}", flush=True)


def connect(manager: AsyncKernelManager) -> AsyncKernelClient:
    client = manager.client()
    assert isinstance(client, AsyncKernelClient)
    start(client)
    return client


def start(client: AsyncKernelClient) -> None:
    client.start_channels(shell=True, iopub=True, stdin=False, hb=False, control=True)


async def answer(client: AsyncKernelClient) -> None:
    """The first reply, without `wait_for_ready`'s own pauses."""
    client.kernel_info()
    message = await client.shell_channel.get_msg(timeout=PATIENCE)
    if message["msg_type"] != "kernel_info_reply":
        raise RuntimeError(f"instead of a kernel_info_reply: {message['msg_type']}")


async def answer_of(manager: AsyncKernelManager, client: AsyncKernelClient) -> None:
    """The first reply, or at once that there is no kernel: local ones choose their ports in a race, and some lose it."""
    asking = asyncio.ensure_future(answer(client))
    try:
        # Only local ones are asked: a question may block the loop, or be answered wrongly, with others.
        while not (await asyncio.wait([asking], timeout=1.0))[0]:
            if isinstance(manager.provisioner, LocalProvisioner) and not await manager.is_alive():
                raise RuntimeError("the local kernel has ended; it says why above")
        await asking
    finally:
        asking.cancel()


async def execute(client: AsyncKernelClient, code: str) -> dict[str, Any]:
    """Run code until its reply and the kernel's being idle again; the reply's content."""
    number = client.execute(code, store_history=False, allow_stdin=False)
    content = await reply_to(client, number)
    await idle_after(client, number)
    return content


async def reply_to(client: AsyncKernelClient, number: str) -> dict[str, Any]:
    while True:
        message = await client.shell_channel.get_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") == number:
            content: dict[str, Any] = message["content"]
            return content


async def idle_after(client: AsyncKernelClient, number: str) -> None:
    while True:
        message = await client.iopub_channel.get_msg(timeout=PATIENCE)
        if message["parent_header"].get("msg_id") == number and is_idle(message):
            return


async def subscribed(client: AsyncKernelClient) -> None:
    """Until the kernel's output arrives: what it says before its client has subscribed is lost."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        number = client.kernel_info()
        await reply_to(client, number)
        with contextlib.suppress(Empty):
            while True:
                message = await client.iopub_channel.get_msg(timeout=0.2)
                if message["parent_header"].get("msg_id") == number and is_idle(message):
                    return
    raise TimeoutError("no output arrives")


def is_idle(message: Mapping[str, Any]) -> bool:
    return bool(message["content"].get("execution_state") == "idle")


async def checked(client: AsyncKernelClient, code: str) -> None:
    content = await execute(client, code)
    if content["status"] != "ok":
        raise RuntimeError(f"{content.get('ename')}: {content.get('evalue')}")


async def warm_up(subjects: Sequence[Subject]) -> None:
    """One launch of each kernelspec: connects, ships, fills caches, writes byte code and profiles."""
    for subject in subjects:
        for number in range(len(subject.specs)):
            running = await launch(subject, number)
            await subscribed(running.client)
            await checked(running.client, "1 + 1")
            await running.end()


async def warm_templates(subject: Subject, hosts: int = 1) -> None:
    """Launch until a kernel has been forked on each of so many hosts: the first launch is cold, and has its template made.

    Raises:
        RuntimeError: that does not come; the text is the host's reason.
    """
    forked, why, number = set[str](), "", 0
    deadline = time.monotonic() + PATIENCE
    while len(forked) < hosts:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{subject.name}: kernels still start cold: {why}")
        running = await launch(subject, number)
        number += 1
        if running.why_cold is None:
            forked.add(running.host)
        else:
            why = running.why_cold
        await running.end()
        if number % hosts == 0:
            await asyncio.sleep(0.2)


async def launch_in_turn(
    subjects: Sequence[Subject], rounds: int, told: dict[str, Told] | None = None
) -> dict[str, list[float]]:
    """Launch and end one kernel of each subject per round, alone on the machine; seconds by subject's name."""
    times: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for turn in range(rounds):
        for index in in_turn(len(subjects), turn):
            subject = subjects[index]
            running = await launch(subject, turn)
            times[subject.name].append(running.seconds)
            if told is not None:
                told.setdefault(subject.name, Told()).add(running)
            await running.end()
    return times


class Heartbeat:
    """How late the loop that it runs in wakes a task that wants to be woken every 5 ms: the longest stall, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> Heartbeat:
        self._task = asyncio.ensure_future(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.sleep(2 * BEAT)  # so that a stall at the very end counts
        self._task.cancel()

    async def _beat(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(BEAT)
            self.longest = max(self.longest, time.perf_counter() - before - BEAT)


@dataclass(frozen=True)
class Burst:
    """Many launches at once: how long until the last one answered, the longest stall, and what failed."""

    wall: float
    stall: float
    failures: list[str]
    latencies: list[float]
    cold: list[str]
    """Why, for each kernel that was not forked."""


async def burst(subject: Subject, count: int, *, answering: bool = True) -> Burst:
    """Launch `count` kernels at the same time, then end them all; without `answering`, `start_kernel()` alone is awaited."""

    async def one(number: int) -> Running | AsyncKernelManager:
        if answering:
            return await launch(subject, number)
        manager = subject.manager(number)
        await manager.start_kernel(env=subject.environment())
        return manager

    async with Heartbeat() as beat:
        began = time.perf_counter()
        results = await asyncio.gather(*(one(number) for number in range(count)), return_exceptions=True)
        wall = time.perf_counter() - began
    failures: list[str] = []
    ending: list[Awaitable[None]] = []
    latencies: list[float] = []
    cold: list[str] = []
    for result in results:
        if isinstance(result, Running):
            latencies.append(result.seconds)
            if result.why_cold is not None:
                cold.append(result.why_cold)
            ending.append(result.end())
        elif isinstance(result, AsyncKernelManager):
            ending.append(result.shutdown_kernel(now=True))
        else:
            failures.append(f"{type(result).__name__}: {result}".splitlines()[0][:200])
    for ended in await asyncio.gather(*ending, return_exceptions=True):
        if isinstance(ended, BaseException):
            print(f"  ending a kernel failed: {type(ended).__name__}: {ended}", flush=True)
    return Burst(wall, beat.longest, failures, latencies, cold)


async def faultless_burst(local: Subject, count: int, *, answering: bool = True) -> Burst:
    """A burst to compare with. One in which a local kernel lost the race for a port is no measure, and is done again, twice."""
    for attempt in range(3):
        found = await burst(local, count, answering=answering)
        if not found.failures or attempt == 2:
            break
        print(f"  {len(found.failures)} local kernels failed: once more", flush=True)
    return found
