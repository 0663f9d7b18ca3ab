"""The connections of this process, one for each user who logs in, user whom kernels are run as, and host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from ..errors import ConnectionLostError
from ..io_thread import IOThread
from ..models import HostAddress, HostCondition, Login
from ..owner import new_client, owner
from .beside import beside
from .connection import HostConnection
from .transport import Handshakes

IDLE = 600.0
"""Seconds after which a connection for another user than the one who logs in is let go, when it carries nothing: there may be many."""
LAST_WORDS = 0.1
"""Seconds for what was said in the moment before the process ends: `jupyter console` asks its kernel to end, and is gone."""


class Connections:
    """Gives out `HostConnection`s. `Connections.current()` belongs to this process's I/O thread; use it on its loop."""

    _by_thread: ClassVar[dict[IOThread, Connections]] = {}

    def __init__(self) -> None:
        self._names: asyncio.Task[tuple[str, str]] | None = None
        self.closed = False
        self._handshakes = Handshakes()
        self._closing: set[asyncio.Future[None]] = set()
        self._connections: dict[tuple[HostAddress, Login], HostConnection] = {}

    @classmethod
    def current(cls) -> Connections:
        """The ones of this process's I/O thread: a forked child has its own, and never touches its parent's."""
        thread = IOThread.current()
        found = cls._by_thread.get(thread)
        if found is None or (found.closed and not thread.closing):
            found = cls._by_thread[thread] = cls()
            thread.on_close(found.close)
        return found

    async def names(self) -> tuple[str, str]:
        """Whose kernels they are, and which process this is, as the listeners are told. Looked up once: it takes files, or a `ps`."""
        if self._names is None:
            self._names = asyncio.ensure_future(beside(lambda: (owner(), new_client())))
        return await asyncio.shield(self._names)

    def get(self, address: HostAddress, login: Login) -> HostConnection:
        """The connection to a host, not connected yet if it is new: always the same one for the same arguments.

        Raises:
            ConnectionLostError: all were closed, because the process ends.
        """
        if self.closed:
            raise ConnectionLostError(
                f"{address} is not connected to any more: this process is ending. Start the kernel from another one.",
                host=str(address),
            )
        found = self._connections.get((address, login))
        if found is None or found.state == "closed":
            self._let_idle_go()
            found = HostConnection(address, login, self._handshakes, self.names)
            self._connections[(address, login)] = found
        return found

    def _let_idle_go(self) -> None:
        for key, each in list(self._connections.items()):
            if each.run_as is not None and each.idle_for > IDLE:
                del self._connections[key]
                closing = asyncio.ensure_future(each.close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    def condition(self, address: HostAddress, login: Login | None) -> HostCondition:
        """What the connection to a host knows of it; without a log-in, the worst that any connection to it knows.

        A host that is away is so for all whom the same log-in runs kernels for; drained it may be for one of them.
        """
        known = []
        for (host, own), each in self._connections.items():
            if host == address and login in (None, own):
                known.append(each.condition)
            elif host == address and login is not None and replace(own, run_as=login.run_as) == login:
                known.append(HostCondition(unreachable=each.condition.unreachable and each.is_away))
        return max(known, key=lambda one: (one.drained, one.unreachable), default=HostCondition())

    def __iter__(self) -> Iterator[HostConnection]:
        return iter(list(self._connections.values()))

    async def close(self) -> None:
        """Close all of them, after what is under way on forwards has got through."""
        self.closed = True
        connections, self._connections = list(self._connections.values()), {}
        if any(connection.forwarding for connection in connections):
            await asyncio.sleep(LAST_WORDS)
        await asyncio.gather(*(connection.close() for connection in connections), return_exceptions=True)

    def __repr__(self) -> str:
        connected = sum(connection.state == "connected" for connection in self._connections.values())
        return f"<Connections {len(self._connections)} connected={connected}>"
