"""Requests to run code that have no answer yet: where a relay was killed, those that went with it are found out and answered here.

Nobody else would: the kernel never got them, or its answer lay in the relay, and the cell would stay busy for ever. They are not sent
again, since code must not run twice. A kernel that works in order proves what it has not got by answering a later question.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .link import Link
from .messages import Author, Message, answered, asked, implementation
from .shared import relay_wire as wire

GRACE = 0.5
"""Seconds for what was published before a question was answered: it comes on another socket."""
IN_ORDER = ("ipython", "IRkernel")
"""Kernels (`implementation` of kernel_info) that answer on shell in the order in which they were asked. Toree does not."""
MOST = 2000
"""Requests that are remembered; the oldest is forgotten."""


@dataclass
class Request:
    """What one client asked, and what has come of it."""

    identity: bytes
    header: Mapping[str, Any]
    busy: bool = False
    idle: bool = False
    replied: bool = False

    @property
    def is_over(self) -> bool:
        return self.idle and self.replied


class Unanswered:
    """Those of one kernel. `end(request)` is called for each that is found to be lost."""

    def __init__(self, link: Link, author: Author, end: Callable[[Request], None]) -> None:
        self._link, self._author, self._end = link, author, end
        self._requests: dict[str, Request] = {}
        self._suspects: set[str] = set()
        """Those that a relay may have taken with it."""
        self._identity = b""
        """Of our own client, while it asks."""
        self._questions = 0
        self._in_order = False
        self._timer: asyncio.TimerHandle | None = None

    # --- what passes ----------------------------------------------------------------------------------------------------------

    def said(self, identity: bytes, beginning: bytes | memoryview) -> None:
        """The beginning of a client's message on shell."""
        header = asked(bytes(beginning))
        if header is not None:
            self._requests[str(header.get("msg_id"))] = Request(identity, header)
            if len(self._requests) > MOST:
                self._forget(next(iter(self._requests)))

    def replied(self, beginning: bytes | memoryview) -> None:
        """The beginning of the kernel's message on shell."""
        request = self._requests.get(answered(bytes(beginning)) or "")
        if request is not None:
            request.replied = True
            self._look_at(request)

    def status(self, status: Message) -> None:
        """The kernel has said that it is busy, or idle, for a request."""
        request = self._requests.get(str(status.parent.get("msg_id")))
        if request is None:
            return
        state = status.content.get("execution_state")
        request.busy |= state == "busy"
        request.idle |= state == "idle"
        self._look_at(request)
        if self._suspects and not self._identity:
            self._judge_soon()

    def _look_at(self, request: Request) -> None:
        if request.is_over:
            self._forget(str(request.header.get("msg_id")))

    def _forget(self, name: str) -> None:
        self._requests.pop(name, None)
        self._suspects.discard(name)

    # --- a relay was killed ---------------------------------------------------------------------------------------------------

    def relay_lost(self) -> None:
        """Another relay is there. Of what was sent to the last one nobody knows whether it came through: ask the kernel."""
        waiting = map(asked, self._link.outbox.beginnings(wire.SHELL))
        unsent = {str(header.get("msg_id")) for header in waiting if header is not None}
        self._suspects = set(self._requests) - unsent
        if self._suspects:
            # Sockets are read in turn, so one question may overtake all but the first of another client's requests.
            self._questions, self._identity = len(self._suspects) + 1, b"dp-" + secrets.token_bytes(8)
            self._ask()

    def _ask(self) -> None:
        self._link.put(wire.SHELL, self._identity, wire.ENDS, self._author.question())

    def takes(self, identity: bytes, flags: int, payload: memoryview) -> bool:
        """Whether a message of the kernel's is the answer to a question of ours."""
        if not self._identity or identity != self._identity:
            return False
        if name := implementation(bytes(payload)):
            self._in_order = name in IN_ORDER
        if flags & wire.ENDS:
            self._questions -= 1
            if self._questions and self._suspects:
                self._ask()
            else:
                self._link.tell({"tell": "close", "identities": [self._identity.hex()]})
                self._identity = b""
                self._judge_soon()
        return True

    def _judge_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GRACE, self._judge)

    def _judge(self) -> None:
        self._timer = None
        if self._identity:
            return  # another relay was killed meanwhile
        works = any(request.busy and not request.idle for request in self._requests.values())
        for name in list(self._suspects):
            request = self._requests[name]
            half = request.idle or request.replied
            # One that has begun may still run; one that has not may wait for it.
            if half or self._in_order or not (request.busy or works):
                self._forget(name)
                self._end(request)

    def clear(self) -> None:
        """The kernel is another one, or none: its clients are told otherwise."""
        self._requests.clear()
        self._suspects.clear()
        self._identity = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
