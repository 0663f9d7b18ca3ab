"""What comes in a lump, at a pace that Jupyter Server stands.

Jupyter Server drops what a websocket's subscriber hears above 1 MB/s of streams, or above 1000 messages/s, over 3 seconds. What a kernel
printed in minutes comes within a second after a restart of the server, or after a line was cut; printed slowly as it was, it would be
taken for a flood. So a lump is handed on below these limits, with all that comes meanwhile behind it, until nothing waits any more.

Nobody else has such limits, and others have to be fast: nbclient gives up the output of a cell 4 seconds after its reply. So only
subscribers within this process are paced, and only where Jupyter Server's websockets are loaded here.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections import deque
from collections.abc import Callable

from .backlog import Entry
from .clients import Client

LIMITER = "jupyter_server.services.kernels.connection.channels"
"""The module of the websockets that have the limits."""
WINDOW = 3.0
"""Seconds over which they count."""
BYTES, MESSAGES = 700_000, 700
"""Of streams, and of all kinds: for each second. With what is let through at first, at most 2.6 of the 3 MB that a window may have: the
rest is for a server that was held up for half a second."""
FIRST_BYTES, FIRST_MESSAGES = 500_000, 500
MOST = 64 << 20
"""Bytes that wait for one subscriber. Above that the kernel prints faster than can be shown: pacing ends, as if there had been no cut."""
UNHEARD = 30.0
"""Seconds for which what a subscriber left behind counts as not heard."""
SHORTEST = 0.02
"""Seconds between two looks."""
_STREAM = re.compile(rb'"msg_type"\s*:\s*"stream"')
_OUTER = 2048
"""Bytes in which the type of a message is found."""


def is_limited(client: Client) -> bool:
    """Whether a client is, as far as can be known, a websocket of Jupyter Server."""
    return client.pid in (0, os.getpid()) and LIMITER in sys.modules


class Pace:
    """Which subscribers of a kernel are paced.

    Args:
        release: told up to which number all have been handed everything.
    """

    def __init__(self, release: Callable[[int], None]) -> None:
        self._release = release
        self._pacers: dict[Client, Pacer] = {}
        self._done = self._released = 0

    def begin(self, client: Client, inside: bool = False) -> None:
        """A lump is about to come; `inside`: behind the rest of a message whose beginning the client has."""
        if client not in self._pacers and is_limited(client):
            self._pacers[client] = Pacer(client, inside, self._progress)

    def write(self, client: Client, piece: bytes | memoryview, number: int = 0, ends: bool = True) -> None:
        """Hand a piece of a message on, now or in its turn; number: as in Entry."""
        pacer = self._pacers.get(client)
        if pacer is None:
            client.write(piece)
        else:
            pacer.write(piece, number, ends)

    def void(self, client: Client) -> None:
        """The message that is under way will have no end."""
        pacer = self._pacers.get(client)
        if pacer is None or not pacer.void():
            client.abort()

    def left(self, client: Client) -> None:
        if (pacer := self._pacers.get(client)) is not None:
            pacer.leave()
            # What it did not hear is not released at once: the server may be about to stop, and the next one will want it.
            asyncio.get_running_loop().call_later(UNHEARD if pacer.waits else 0, self._forget, pacer)

    def release(self, number: int) -> None:
        """All up to this number have been given to `write`."""
        self._done = number
        self._look()

    def begin_anew(self) -> None:
        """Numbers begin at 1 again."""
        self._done = self._released = 0
        for pacer in self._pacers.values():
            pacer.forget_numbers()

    def hurry(self) -> None:
        """Hand on all that waits, at once."""
        for pacer in list(self._pacers.values()):
            pacer.hurry()

    def _progress(self, pacer: Pacer) -> None:
        if pacer.is_over:
            self._forget(pacer)
        else:
            self._look()

    def _forget(self, pacer: Pacer) -> None:
        self._pacers.pop(pacer.client, None)
        self._look()

    def _look(self) -> None:
        number = min([self._done, *(each.written for each in self._pacers.values() if each.waits)])
        if number > self._released:
            self._released = number
            self._release(number)


class Pacer:
    """What waits for one subscriber: whole messages, and perhaps the beginning of the one that is under way."""

    def __init__(self, client: Client, inside: bool, on_progress: Callable[[Pacer], None]) -> None:
        self.client = client
        self.is_over = False
        self.written = 0
        """Number of the last message that was written."""
        self._passes = inside
        self._inside = self._unheard = False
        self._on_progress = on_progress
        self._queue: deque[Entry] = deque()
        self._size = 0
        self._bytes, self._messages = float(FIRST_BYTES), float(FIRST_MESSAGES)
        """That may be written now."""
        loop = asyncio.get_running_loop()
        self._counted = loop.time()
        self._until = self._counted + WINDOW
        self._timer: asyncio.TimerHandle | None = loop.call_at(self._until, self._pump)

    @property
    def waits(self) -> bool:
        """Whether there is something that the client has not heard."""
        return self._unheard or bool(self._queue)

    def leave(self) -> None:
        """The client will hear no more."""
        self._unheard = bool(self._queue)
        self._queue.clear()
        self.close()

    def write(self, piece: bytes | memoryview, number: int, ends: bool) -> None:
        if self._passes:
            self.client.write(piece)
            self._passes = not ends
            self.written = number if ends else self.written
            return
        if not self._inside:
            self._queue.append(Entry(b""))
        self._queue[-1].add(bytes(piece))
        self._size += len(piece)
        self._inside = not ends
        if ends:
            self._queue[-1].number = number
        if self._size > MOST:
            self.hurry()
        elif ends and len(self._queue) == 1:
            self._pump()

    def void(self) -> bool:
        """False where the client has a part of the message."""
        if self._passes:
            return False
        if self._inside:
            self._size -= self._queue.pop().size
            self._inside = False
        return True

    def forget_numbers(self) -> None:
        self.written = 0
        for entry in self._queue:
            entry.number = 0

    def _pump(self) -> None:
        """Write what may be written, and look again when more may be."""
        loop = asyncio.get_running_loop()
        passed, self._counted = loop.time() - self._counted, loop.time()
        self._bytes = min(self._bytes + passed * BYTES, FIRST_BYTES)
        self._messages = min(self._messages + passed * MESSAGES, FIRST_MESSAGES)
        pause = 0.0
        while len(self._queue) > self._inside and not pause:
            pause = self._write_next()
        if pause or self._counted < self._until:
            self._again(pause or self._until - self._counted)
        elif not self._queue and not self._passes:
            self.close()
        self._on_progress(self)

    def _write_next(self) -> float:
        """Write the first message, or say in how many seconds that may be."""
        entry = self._queue[0]
        cost = entry.size if _is_stream(entry) else 0
        missing = min(cost, FIRST_BYTES) - self._bytes
        pause = max(missing / BYTES, (1 - self._messages) / MESSAGES, 0.0)
        if self.client.slow or pause:
            return max(pause, SHORTEST)
        self._queue.popleft()
        self._size -= entry.size
        self._bytes -= cost
        self._messages -= 1
        for piece in entry.pieces:
            self.client.write(piece)
        self.written = entry.number or self.written
        return 0.0

    def _again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pump)

    def hurry(self) -> None:
        """Write all that waits; the rest of a message that is under way is not for here any more."""
        for entry in self._queue:
            for piece in entry.pieces:
                self.client.write(piece)
        self._queue.clear()
        self.close()
        self._on_progress(self)

    def close(self) -> None:
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _is_stream(entry: Entry) -> bool:
    """Only their bytes count."""
    outer = b""
    for piece in entry.pieces:
        outer += piece[:_OUTER]
        if len(outer) >= _OUTER:
            break
    return _STREAM.search(outer) is not None
