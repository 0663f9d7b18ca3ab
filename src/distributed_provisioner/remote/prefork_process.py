"""The listener's end of a template: its process, and one packet for each kernel that it forks (see prefork_template.py)."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time

from server_listener import start_time, stat_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from prefork_kind import Kind

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prefork_template.py")
ROOM = "DP_PREFORK_ROOM"
ANSWER = 2.0
"""Seconds after which a template that says nothing is ended."""
READY = 120.0
"""Seconds that it may import."""
PACKET = 1 << 16
LOOKS = 3
"""Kernels at which a template looks; each has what those before had, and perhaps more."""


class TemplateFailed(Exception):
    """It forked nothing, and never will."""


class Template:
    """Started by `start`. `ended(template, why)` is called once, when it is gone or cannot be used; why is "" when it was asked to go."""

    def __init__(self, kind: Kind, ended: Callable[[Template, str], None]) -> None:
        self.kind, self.ended = kind, ended
        self.ready = self.over = self.again = False
        self.read: set[str] = set()
        """The variables of its environment that its imports have read."""
        self.used = time.monotonic()
        self.idle = 0.0
        self.counter = self.looks = 0
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def __repr__(self) -> str:
        return f"<Template {self.pid} {'over' if self.over else 'ready' if self.ready else 'importing'}>"

    def start(self, umask: int) -> None:
        """Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        before = os.umask(umask)
        try:
            process = subprocess.Popen(
                [self.kind.interpreter, PROGRAM, str(theirs.fileno()), " " * (self.kind.length + 64)],
                env={**self.kind.environment, ROOM: " " * 256},
                cwd="/", stdin=subprocess.DEVNULL, stdout=2, stderr=2, pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        except OSError:
            ours.close()
            raise
        finally:
            os.umask(before)
            theirs.close()
        process.returncode = 0  # the listener's `reap` waits for it
        self.pid, self.began = process.pid, start_time(process.pid)
        self.socket = ours
        ours.setblocking(False)
        try:
            self.send(self.kind.order)
        except OSError:
            ours.close()  # so it leaves
            raise
        loop = asyncio.get_event_loop()
        loop.add_reader(ours, self.receive)
        loop.call_later(
            READY, lambda: None if self.ready else self.end(f"it has not imported all in {READY:g} s")
        )

    async def fork(
        self, order: dict[str, Any], log: int, meanwhile: Callable[[], None]
    ) -> tuple[int, int, int]:
        """(pid, start time, gate) of a kernel that waits: a byte into the gate lets it go on, and closing that ends it.

        `meanwhile` is called while the template is at work.

        Raises TemplateFailed: then there is no kernel, nor will there be one.
        """
        if (stat_fields(self.pid) or "T")[0] in "TtZX":
            self.end("it is stopped")
            raise TemplateFailed("it is stopped")
        self.counter += 1
        number, loop = self.counter, asyncio.get_event_loop()
        answer = self.waiting[number] = loop.create_future()
        reader, gate = os.pipe()
        given = False
        try:
            try:
                self.send(dict(order, id=number), log, reader)
                meanwhile()
                reply = await asyncio.wait_for(answer, ANSWER)
            except (OSError, asyncio.TimeoutError):
                self.end("it does not answer")
                raise TemplateFailed("it does not answer") from None
            pid, start = reply.get("pid"), reply.get("start")
            if pid is None or start is None or start_time(pid) != start:
                self.end(reply.get("why") or "what it forked has ended")
                raise TemplateFailed(reply.get("why") or "what it forked has ended")
            given = True
            return pid, start, gate
        finally:
            os.close(reader)
            if not given:
                os.close(gate)
            self.waiting.pop(number, None)

    def started(self, pid: int) -> None:
        """A kernel has started that was forked from it."""
        if self.looks < LOOKS and not self.over:
            self.looks += 1
            with contextlib.suppress(OSError):
                self.send({"started": pid})

    def send(self, message: dict[str, Any], *fds: int) -> None:
        """Raises OSError."""
        memory = os.memfd_create("order")  # type: ignore[attr-defined, unused-ignore] # Linux
        try:
            with open(memory, "wb", closefd=False) as file:
                file.write(json.dumps(message).encode())
            numbers = array.array("i", (memory, *fds))
            self.socket.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        finally:
            os.close(memory)

    def receive(self) -> None:
        """Called when there is something to read, or nobody to write any more."""
        try:
            data = self.socket.recv(PACKET)
            message = json.loads(data) if data else {}
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message = {}
        if "ready" in message:
            self.ready, self.read = True, set(message["ready"])
        elif message.get("id") in self.waiting:
            answer = self.waiting[message["id"]]
            if not answer.done():
                answer.set_result(message)
        elif "id" not in message:
            self.again = bool(message.get("again"))
            self.end(message.get("refused") or "it has ended")

    def end(self, why: str) -> None:
        """End the process; kernels that it has forked, and that were let go, stay."""
        if self.over:
            return
        self.over = True
        asyncio.get_event_loop().remove_reader(self.socket)
        self.socket.close()
        if start_time(self.pid) == self.began:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
        for answer in self.waiting.values():
            if not answer.done():
                answer.set_result({"why": why})
        self.ended(self, why)
