"""Work that goes on through a fault, and the look at it afterwards: nothing lost, nothing twice, nobody stood still.

A `Notebook` is a client that hears everything. Its kernel prints numbered lines, changes variables and ends with a result; `Cell.check`
says whether all of that arrived, once and in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import KernelState
from distributed_provisioner.testing.namespaces import Cluster, Host
from tests.cluster.real_kernels import provisioner_of, until

CELL = """
import time
runs = globals().get("runs", 0) + 1
total = globals().get("total", 0)
for line in range({lines}):
    total += 1
    print(line, flush=True)
    time.sleep({pause})
("ran", runs, "printed", total)
"""
STALL = 1.5
"""Seconds that a loop may stand still; the machine that runs the tests is busy, and a call that waits for a host takes longer."""
OURS = "[distributed-provisioner]"


class Cell:
    """One request to a kernel, and all that was said about it."""

    def __init__(self, notebook: Notebook, request: str, lines: int) -> None:
        self.notebook, self.request, self.lines = notebook, request, lines
        self.expected = ""
        """Its result, as text; any if empty."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was published for it, in order."""
        return self.notebook.published[self.request]

    @property
    def replies(self) -> list[dict[str, Any]]:
        return self.notebook.replies[self.request]

    @property
    def printed(self) -> list[str]:
        """Its own lines so far."""
        return self._stream("stdout").splitlines()

    @property
    def told(self) -> str:
        """What we said in it."""
        return "".join(part for part in self.errors.splitlines(True) if OURS in part)

    @property
    def errors(self) -> str:
        """What it has on standard error, by whomever."""
        return self._stream("stderr")

    @property
    def is_over(self) -> bool:
        return bool(self.replies) and "idle" in self.states

    async def until_line(self, number: int, seconds: float = 30) -> None:
        """Wait until it has printed that line here."""
        await until(lambda: len(self.printed) > number, seconds)

    async def check(self, seconds: float = 60) -> None:
        """Wait for its end, and see that everything came once and in order."""
        try:
            await until(lambda: self.is_over, seconds)
        except AssertionError:
            have = f"{len(self.printed)} of {self.lines} lines, {len(self.replies)} replies, states {self.states}"
            raise AssertionError(f"the cell did not end: {have}; {self.told!r}") from None
        printed, expected = self.printed, [str(number) for number in range(self.lines)]
        assert printed == expected, difference(printed, expected)
        assert [reply["content"]["status"] for reply in self.replies] == ["ok"]
        assert self.states == ["busy", "idle"]
        kinds = Counter(message["msg_type"] for message in self.messages)
        assert (kinds["execute_input"], kinds["error"]) == (1, 0)
        assert not self.notebook.doubled, f"came twice: {self.notebook.doubled}"
        if self.expected:
            results = [
                m["content"]["data"]["text/plain"] for m in self.messages if m["msg_type"] == "execute_result"
            ]
            assert results == [self.expected]

    def _stream(self, name: str) -> str:
        parts = [m["content"] for m in self.messages if m["msg_type"] == "stream"]
        return "".join(part["text"] for part in parts if part["name"] == name)

    @property
    def states(self) -> list[str]:
        """Of the kernel, as said for this cell."""
        states = [m["content"]["execution_state"] for m in self.messages if m["msg_type"] == "status"]
        return [state for state in states if state in ("busy", "idle")]


class Notebook:
    """A client of a kernel that keeps all that it is told, by request.

    Args:
        client: its channels are opened and closed here.
    """

    def __init__(self, client: AsyncKernelClient) -> None:
        self.client = client
        self.published: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.replies: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.doubled: list[str] = []
        """Messages that came more than once."""
        self.runs = self.total = 0
        """What the kernel's variables should be."""
        self._seen: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, ready: bool = True) -> None:
        """Connect; with `ready`, wait for the kernel, and throw away what comes before that."""
        self.client.start_channels()
        if ready:
            await self.client.wait_for_ready(timeout=40)
        channels = ((self.client.get_iopub_msg, self.published), (self.client.get_shell_msg, self.replies))
        self._tasks = [asyncio.ensure_future(self._hear(*channel)) for channel in channels]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.client.stop_channels()

    def run(self, lines: int = 60, pause: float = 0.05) -> Cell:
        """Ask for a cell that prints so many lines, one each `pause` seconds."""
        cell = self.execute(CELL.format(lines=lines, pause=pause), lines)
        self.runs, self.total = self.runs + 1, self.total + lines
        cell.expected = str(("ran", self.runs, "printed", self.total))
        return cell

    def execute(self, code: str, lines: int = 0) -> Cell:
        """Ask for any code that prints the numbers below `lines`, each on a line."""
        return Cell(self, self.client.execute(code), lines)

    async def _hear(
        self, get: Callable[..., Awaitable[dict[str, Any]]], into: dict[str, list[dict[str, Any]]]
    ) -> None:
        while True:
            message = await get(timeout=None)
            if message["header"]["msg_id"] in self._seen:
                self.doubled.append(f"{message['msg_type']} {message['content']}")
            self._seen.add(message["header"]["msg_id"])
            into[message["parent_header"].get("msg_id", "")].append(message)


def difference(found: list[str], expected: list[str]) -> str:
    """What is missing, doubled and out of order, in few words."""
    missing, extra = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    order = "" if missing or extra else ", out of order"
    return f"{len(found)} of {len(expected)} lines{order}; lost {list(missing)[:20]}, doubled or strange {list(extra)[:20]}"


class Pulse:
    """How long the loop that it is started on stood still at most."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def beat(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.02)
            self.longest = max(self.longest, time.monotonic() - before - 0.02)


@contextlib.asynccontextmanager
async def steady() -> AsyncIterator[None]:
    """Neither the caller's loop nor the I/O thread's stands still inside."""
    own, inner = Pulse(), Pulse()
    task, future = asyncio.ensure_future(own.beat()), IOThread.current().submit(inner.beat())
    try:
        yield
    finally:
        task.cancel()
        future.cancel()
    assert own.longest < STALL, f"the caller's loop stood still for {own.longest:.1f} s"
    assert inner.longest < STALL, f"the I/O thread stood still for {inner.longest:.1f} s"


@contextlib.asynccontextmanager
async def at_work(
    spec: str, manager: AsyncKernelManager | None = None, **start: Any
) -> AsyncIterator[tuple[AsyncKernelManager, Notebook]]:
    """A kernel and a notebook on it, ended afterwards; the loops must not stand still meanwhile."""
    manager = manager or AsyncKernelManager(kernel_name=spec)
    async with steady():
        await manager.start_kernel(**start)
        notebook = Notebook(manager.client())
        try:
            await notebook.open()
            yield manager, notebook
        finally:
            await notebook.close()
            await manager.shutdown_kernel(now=True)


# --- what is asked of a kernel and its host -------------------------------------------------------------------------------------------


async def do(call: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Make a fault without holding the caller's loop up."""
    return await asyncio.to_thread(call, *args, **named)


def another_page(manager: AsyncKernelManager) -> Notebook:
    """A notebook on the same kernel with a session of its own, as a second page has, or one that is reloaded."""
    client = manager.client()
    client.session = client.session.clone()
    client.session.session = uuid.uuid4().hex
    return Notebook(client)


def state_of(manager: Any) -> KernelState:
    return provisioner_of(manager).kernel.state


async def until_state(manager: Any, state: KernelState, seconds: float = 30) -> None:
    await until(lambda: state_of(manager) is state, seconds)


def pid_of(manager: Any) -> int:
    """As its host counts."""
    process = provisioner_of(manager).kernel.process
    assert process is not None
    return process.kernel_pid


def named(host: Host, name: str) -> list[int]:
    """Processes of a host by the name that they gave themselves, as the host counts."""
    found = []
    for process in host.processes():
        with contextlib.suppress(OSError), open(f"/proc/{process.outer_pid}/comm", encoding="utf-8") as file:
            if file.read().strip() == name:
                found.append(process.pid)
    return found


CLEAR_SOCKETS = 'find /tmp -maxdepth 1 -name "dp-*" -user "$(id -un)" -exec rm -rf {} +'
"""What a cleaner does to the sockets of the cluster's user; other tests have left another user's listener there."""


def listeners(host: Host) -> list[int]:
    """The listeners of the cluster's user on a host, without the relays, which are forks of theirs."""
    relays, user = named(host, "dp-relay"), host.run("id", "-un").stdout.strip()
    return [
        p.pid for p in host.processes() if " serve " in p.command and p.pid not in relays and p.user == user
    ]


def kill(host: Host, *pids: int, signal: str = "KILL") -> None:
    """Send a signal to processes of its user, as the host counts."""
    if pids:
        host.run("kill", f"-{signal}", *map(str, pids))


def left_on(cluster: Cluster) -> list[str]:
    """Kernels, launchers and relays that run on the hosts, and files of kernels."""
    found = []
    for host in cluster.hosts:
        if not host.is_on:
            continue
        found += [
            f"{host.name}: {p.command[:120]}" for p in host.processes() if "launch_ipykernel" in p.command
        ]
        found += [f"{host.name}: relay {pid}" for pid in named(host, "dp-relay")]
    return found
