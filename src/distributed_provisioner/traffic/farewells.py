"""Clients that will not come again: their connections on the host are closed, or a kernel that lives for weeks runs out of descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .clients import Client
from .link import Link
from .messages import Activity

if TYPE_CHECKING:
    from .routes import Routes

FAREWELL = 30.0
"""Seconds that a client without a name is remembered: it cannot come again as the same one."""
STAYING_AWAY = 600.0
"""The same for one with a name. A page that is reloaded comes with another name, and one that was asleep with the old one."""


class Farewells:
    """Tells the relay who will not come again. A client that may still get an answer is not among them.

    Args:
        routes: filled in by the caller, who makes them with `left`.
    """

    def __init__(self, link: Link, activity: Activity, routes: Sequence[Routes]) -> None:
        self._link, self._activity, self._routes = link, activity, routes
        self._due: dict[bytes, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def left(self, client: Client) -> None:
        self._later(client.identity, FAREWELL if client.made_up else STAYING_AWAY)

    def expect(self, identities: Iterable[bytes]) -> None:
        """The relay has connections for these, of an earlier server's clients."""
        for identity in identities:
            self._later(identity, STAYING_AWAY)

    def _later(self, identity: bytes, seconds: float) -> None:
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        self._due[identity] = due = loop.time() + seconds
        if self._timer is None or self._timer.when() > due:
            self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        self._cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        now, gone = asyncio.get_running_loop().time(), []
        for identity in [identity for identity, due in self._due.items() if due <= now]:
            del self._due[identity]
            if any(routes.has_client(identity) for routes in self._routes):
                continue
            if self._may_be_answered():
                self._due[identity] = now + FAREWELL
            else:
                gone.append(identity.hex())
        if gone:
            self._link.tell({"tell": "close", "identities": gone})
        self._timer = None
        if self._due:
            self._set_timer(min(self._due.values()))

    def _may_be_answered(self) -> bool:
        """Whether the relay cannot be told now, or the kernel works on something, or has not got all yet."""
        busy = bool(self._activity.running) or self._activity.state == "busy"
        return busy or not self._link.is_up or not self._link.outbox.is_empty

    def close(self) -> None:
        self._closed = True
        self._due.clear()
        self._cancel()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
