"""One launch of a kernel: its processes, endpoints, log and state."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time

from files import TAIL, tail_of
from processes import kill_all, kill_group, members
from server_listener import CHANNELS, remove, start_time, write_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

    from connections import Connection


class OpError(Exception):
    """Becomes the `error` of a reply."""

    def __init__(self, kind: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.reply = dict(fields, type=kind, message=message)


SOON = 0.15
"""Seconds within which a forked kernel answers: so long its sockets are looked for each millisecond."""
MAX_ANNOTATIONS = 64 << 10
"""Bytes of JSON that a server may keep with a kernel."""


def merged(before: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Annotations after changes; null removes a name. Raises OpError where they are too many."""
    values = {**before, **changes}
    values = {name: value for name, value in values.items() if value is not None}
    if len(json.dumps(values)) > MAX_ANNOTATIONS:
        raise OpError("bad-request", f"annotations take more than {MAX_ANNOTATIONS >> 10} KB")
    return values


class Kernel:
    """One launch (generation) of a kernel, from the first byte to `forget`."""

    REPORTED = (
        "kernel_id", "generation", "kernel_name", "owner", "pid", "start", "kernel_pid", "pgid", "transport", "ip", "ports",
        "directory", "log", "started",
    )  # fmt: skip
    STATE = ("client", "annotations", "relay", "prefork", "state", "code", "reason", "detail")
    SECRET = ("key", "signature_scheme", "encryption", "envelope")
    RECORDED = (
        *REPORTED, *STATE, *SECRET, "kernel_start", "log_start", "private_log", "orphan_timeout", "interrupt_target",
        "output_limit", "relay_pid", "relay_start", "oom_kills",
    )  # fmt: skip

    OUTPUT_LIMIT = 64 << 20

    def __init__(self, home: str, **values: Any) -> None:
        self.home = home
        """Its private directory: connection file, sockets, record."""
        self.kernel_id = self.kernel_name = self.owner = self.client = self.transport = ""
        self.generation = 0
        self.state, self.reason, self.detail = "starting", "", ""
        self.code: int | None = None
        self.pid = self.pgid = self.kernel_pid = 0
        """0: not started yet. The pid is the leader's of the session that was started; the kernel's own pid may be a child's."""
        self.start: int | None = None
        self.kernel_start: int | None = None
        self.leader_gone = False
        self.ip = ""
        self.ports: dict[str, int] = {}
        self.key, self.signature_scheme = "", "hmac-sha256"
        self.envelope: str | None = None
        """A launcher's report that the server alone can read; then `ip`, `ports` and `key` say nothing."""
        self.encryption: dict[str, str] | None = None
        self.directory = self.log = ""
        self.log_start = self.log_size = 0
        self.private_log = True
        self.started, self.last_seen = time.time(), time.monotonic()
        self.orphan_timeout, self.interrupt_target = 0.0, "group"
        self.annotations: dict[str, Any] = {}
        self.relay: str | None = None
        """The socket of its relay."""
        self.relay_pid = 0
        self.relay_start: int | None = None
        self.output_limit = self.OUTPUT_LIMIT
        """Bytes that its relay keeps while no server is there."""
        self.execution_state = ""
        """As its relay told last."""
        self.prefork: dict[str, Any] = {"used": False, "why": ""}
        """Whether it was forked from a template, and if not, why."""
        self.oom_kills: dict[str, int] = {}
        """Counters of its memory cgroups, as they were at its launch."""
        self.asked = False
        """Whether its end was asked for: then nobody wonders why."""
        self.watchers: set[Connection] = set()
        self.launching: asyncio.Future[Any] | None = None
        self.ending: asyncio.Future[None] | None = None
        """Done when the exit has been seen; made by whoever waits for it."""
        self.discarding: asyncio.Future[None] | None = None
        """Done when nothing is left of it."""
        for name, value in values.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"<Kernel {self.kernel_id}/{self.generation} {self.state} pid={self.pid}>"

    def save(self) -> None:
        record = {name: getattr(self, name) for name in self.RECORDED}
        write_private(os.path.join(self.home, "record"), json.dumps(record).encode())

    def clear_home(self, kept: str) -> None:
        """Remove all files of its directory but one."""
        with contextlib.suppress(FileNotFoundError):  # somebody has cleared it away
            for name in os.listdir(self.home):
                if name != kept:
                    remove(os.path.join(self.home, name))

    def connection_info(self) -> dict[str, Any]:
        """As in a connection file."""
        info: dict[str, Any] = {f"{channel}_port": self.ports[channel] for channel in CHANNELS}
        info.update(
            transport="ipc" if self.transport == "ipc" else "tcp",
            ip=self.ip,
            key=self.key,
            signature_scheme=self.signature_scheme,
            kernel_name=self.kernel_name,
        )
        info.update(self.encryption or {})
        return info

    def try_to_save(self) -> None:
        """Where the disk is full the old record has to do."""
        with contextlib.suppress(OSError):
            self.save()

    def status(self) -> dict[str, Any]:
        """For every connection of this user: no secrets."""
        names = (*self.REPORTED, *self.STATE, "execution_state", "orphan_timeout")
        status = {name: getattr(self, name) for name in names}
        status["log_tail"] = self.log_tail() if self.state == "exited" else ""
        return status

    def secrets(self) -> dict[str, Any]:
        """What the server that owns it needs beside the status."""
        return {name: getattr(self, name) for name in self.SECRET}

    def log_tail(self, limit: int = TAIL) -> str:
        return tail_of(self.log, self.log_start, limit) if self.log else ""

    def living(self, known: Iterable[tuple[int, int]] = ()) -> dict[int, int]:
        return members(self.pid, self.start, self.pgid, known) if self.pid else {}

    def send_signal(self, number: int, target: str) -> None:
        if self.state == "exited" or not self.pid:
            return
        self.asked = self.asked or number == signal.SIGKILL
        if target == "default":
            target = self.interrupt_target
        if target == "kernel" and self.kernel_pid:
            if self.kernel_start in (None, 0, start_time(self.kernel_pid)):
                kill_all([self.kernel_pid], number)
        elif target == "tree":
            kill_all(self.living(), number)
        else:
            kill_group(self.pgid, number)

    def kernel_lives(self) -> bool:
        """Whether the process that the launcher reported as the kernel is there, when that is not the launcher itself."""
        return (
            self.kernel_pid != self.pid
            and bool(self.kernel_start)
            and start_time(self.kernel_pid) == self.kernel_start
        )

    async def exit_seen(self, seconds: float) -> None:
        """Return when the listener has seen its exit, or after `seconds`."""
        if self.state != "exited":
            if self.ending is None or self.ending.done():
                self.ending = asyncio.get_event_loop().create_future()
            await asyncio.wait([self.ending], timeout=seconds)

    async def wait_until_answering(self) -> None:
        """Return when all five sockets accept a connection."""
        waiting = [self.address(channel) for channel in CHANNELS]
        begun, pause = time.monotonic(), 0.01 if self.transport == "ipc" else 0.02
        while waiting:
            while waiting and accepts(*waiting[0]):
                waiting.pop(0)
            if waiting:
                soon = self.transport == "ipc" and time.monotonic() - begun < SOON
                await asyncio.sleep(0.001 if soon else pause)

    def address(self, channel: str) -> tuple[int, str | tuple[str, int]]:
        port = self.ports[channel]
        if self.transport == "ipc":
            return socket.AF_UNIX, f"{self.ip}-{port}"
        return (socket.AF_INET6 if ":" in self.ip else socket.AF_INET), (self.ip, port)


def accepts(family: int, address: str | tuple[str, int]) -> bool:
    if isinstance(address, str) and not os.path.exists(address):
        return False
    with socket.socket(family) as probe:
        probe.settimeout(0.2)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True
