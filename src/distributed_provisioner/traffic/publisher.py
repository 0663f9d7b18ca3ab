"""iopub: to each subscriber what it subscribed to, as an XPUB has it, and to those who are expected what they have missed."""

from __future__ import annotations

import asyncio

from .backlog import Backlog
from .clients import Client
from .link import Link
from .messages import LOOKED_AT, Activity, Author, Own, look
from .meter import Meter
from .pace import Pace
from .routes import HOLD_TIMEOUT
from .shared import relay_wire as wire

PAIRING = 0.5
"""Seconds in which a client connects its sockets: a subscriber gives no identity, but its process's other sockets do."""


class Publisher:
    """The near end of iopub.

    What comes before anybody has subscribed is kept for the first one who does. Where clients of an earlier server are expected
    (`welcome`), all is kept for them, and others hear what is new at once.
    """

    def __init__(self, link: Link, author: Author, activity: Activity) -> None:
        self._link, self._author, self._activity = link, author, activity
        self._meter = Meter(link, wire.IOPUB)
        self._pace = Pace(self._release)
        self._live: list[Client] = []
        self._new: dict[Client, int] = {}
        """Subscribers of whom it is not yet known what they have to hear: where in the backlog they came."""
        self._there: set[Client] = set()
        self._backlog: Backlog | None = Backlog()
        self._expected: dict[bytes, float] | None = None
        """Clients for whom the backlog is kept, and until when; None before the relay has told."""
        self._eligible: dict[int, float] = {}
        """Processes whose expected client has come, and when."""
        self._takers: list[Client] = []
        self._inside = False
        self._head: list[bytes] = []
        self._head_size = 0
        self._of_our_own: list[Own] = []
        self._welcomes = False
        self._stuck = False
        """Whether nobody reads: then the kernel's relay keeps it all."""
        self._timer: asyncio.TimerHandle | None = None

    # --- clients --------------------------------------------------------------------------------------------------------------

    def arrived(self, client: Client) -> None:
        self._there.add(client)

    def said(self, client: Client, piece: memoryview, ends: bool) -> None:
        head = 9 if piece[0] & 2 else 2
        if ends and len(piece) > head:  # 3.0: a frame of one byte, subscribe or not, and the prefix
            self.subscribes(client, piece[head] == 1, bytes(piece[head + 1 :]))

    def subscribes(self, client: Client, wanted: bool, topic: bytes) -> None:
        if not wanted:
            if topic in client.topics:
                client.topics.remove(topic)
            return
        client.topics.append(topic)
        if client in self._live:
            self._greet(client, topic)
        elif client not in self._new:
            self._new[client] = self._backlog.position if self._backlog is not None else 0
            # One who asks for several topics says so in one go.
            asyncio.get_running_loop().call_soon(self._admit, client)

    def left(self, client: Client) -> None:
        self._there.discard(client)
        self._new.pop(client, None)
        for clients in (self._live, self._takers):
            if client in clients:
                clients.remove(client)
        self._pace.left(client)
        self._recount()

    def flows(self, client: Client, slow: bool) -> None:
        if self._stuck and not client.hopeless:
            # They are likely to be one process's, which was held up. It reads again, one socket after the other.
            for each in self._live:
                each.wait_anew()
        self._recount()

    def _recount(self) -> None:
        self._stuck = all(client.hopeless for client in self._live)
        self._meter.block(any(client.slow for client in self._waited_for()))

    def _waited_for(self) -> list[Client]:
        """Those who read, however slowly; where nobody does, all."""
        return [client for client in self._live if self._stuck or not client.hopeless]

    # --- who hears what -------------------------------------------------------------------------------------------------------

    def _admit(self, client: Client) -> None:
        if client not in self._new or (self._backlog is not None and self._expected is None):
            return  # the relay will tell who is expected
        if self._backlog is None:
            self._serve(client, None)
        elif not self._expected:
            for waiting in list(self._new):
                self._serve(waiting, 0)
            self._end_backlog(wire.DELIVERED)
        else:
            now = asyncio.get_running_loop().time()
            if self._eligible.get(client.pid, -PAIRING) + PAIRING > now:
                self._serve_expected(client)
            else:
                asyncio.get_running_loop().call_later(PAIRING, self._decide, client)

    def _decide(self, client: Client) -> None:
        if client in self._new:
            self._serve(client, self._new[client])

    def identity_arrived(self, client: Client) -> None:
        """A client of the other channels is there: if it was expected, its process's new subscribers get the backlog."""
        if not self._expected or client.identity not in self._expected:
            return
        now = asyncio.get_running_loop().time()
        self._eligible[client.pid] = now
        for waiting in list(self._new):
            if waiting.pid == client.pid:
                self._serve_expected(waiting)
        # Its subscriber may be just behind it.
        asyncio.get_running_loop().call_later(PAIRING, self._no_longer_expected, client.identity)

    def _no_longer_expected(self, identity: bytes) -> None:
        if self._expected and self._expected.pop(identity, None) is not None and not self._expected:
            self._end_backlog(wire.DELIVERED)

    def _serve_expected(self, client: Client) -> None:
        if self._activity.state and not self._welcomes:
            # Jupyter Server takes the first message that comes for a sign of life and throws it away.
            client.write(self._author.status(self._activity.state, {}).wire)
        self._serve(client, 0, self._activity.state)

    def _serve(self, client: Client, position: int | None, state: str = "") -> None:
        """From now on it hears what comes; before it, in what state the kernel is, and the backlog from `position` on."""
        del self._new[client]
        self._live.append(client)
        self._recount()
        for topic in client.topics:
            self._greet(client, topic)
        if self._backlog is None or position is None:
            return
        if state in ("busy", "idle"):
            # Without it a page that has come again does not know until a cell runs: what its own questions cause does not count for Lab.
            client.write(self._author.status(state, {}).wire)
        self._pace.begin(client)
        entry = None
        for entry in self._backlog.since(position):
            if _wants(client, entry.topic):
                for left, piece in zip(range(len(entry.pieces) - 1, -1, -1), entry.pieces, strict=True):
                    self._pace.write(client, piece, entry.number, entry.is_whole and not left)
        if self._inside and entry is not None and _wants(client, entry.topic):
            self._takers.append(client)

    def _greet(self, client: Client, topic: bytes) -> None:
        if self._welcomes:
            client.write(self._author.welcome(topic).wire)

    def _end_backlog(self, flags: int) -> None:
        backlog, self._backlog, self._expected = self._backlog, None, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for client, position in list(self._new.items()):
            self._backlog = backlog
            self._serve(client, position)
            self._backlog = None
        if backlog is not None and backlog.last:
            if flags == wire.DELIVERED:
                self._pace.release(backlog.last)
            else:
                self._link.release(wire.IOPUB, b"", backlog.last, flags)

    def _release(self, number: int) -> None:
        self._link.release(wire.IOPUB, b"", number, wire.DELIVERED if self._live else wire.GIVEN_UP)

    def welcome(self, expected: set[bytes]) -> None:
        """The relay has told which clients of an earlier server there are."""
        if self._expected is not None or self._backlog is None:
            return
        loop = asyncio.get_running_loop()
        self._expected = dict.fromkeys(expected, loop.time() + HOLD_TIMEOUT)
        self._timer = loop.call_later(HOLD_TIMEOUT, self._end_backlog, wire.GIVEN_UP)
        for client in list(self._new):
            self._admit(client)

    # --- the kernel -----------------------------------------------------------------------------------------------------------

    def piece(self, flags: int, number: int, payload: memoryview) -> None:
        size = len(payload)
        if flags & wire.VOID:
            self.void()
        if size:
            ends = bool(flags & wire.ENDS)
            if self._inside:
                self._hand_on(payload, number, ends)
            elif self._head or size < LOOKED_AT:
                self._collect(payload, number, ends)
            else:
                self._begin(payload)
                self._hand_on(payload, number, ends)
        self._meter.count(size)

    def _collect(self, payload: memoryview, number: int, ends: bool) -> None:
        """A small message is looked at when it is whole, and so is the first frame of a large one."""
        self._head.append(bytes(payload))
        self._head_size += len(payload)
        if not ends and self._head_size < LOOKED_AT:
            return
        data = self._head[0] if len(self._head) == 1 else b"".join(self._head)
        self._head, self._head_size = [], 0
        if ends and self._notice(data):
            self._link.release(wire.IOPUB, b"", number)
            return
        self._begin(data)
        self._hand_on(data, number, ends)

    def _notice(self, data: bytes) -> bool:
        """Look at a small message; True for one that is not handed on."""
        message = look(data)
        if message is None:
            return False
        if message.kind == "status":
            self._activity.note(message)
            self._author.learn(message)
            return False
        if not self._welcomes:
            self._welcomes = True
            for client in self._live:
                for topic in client.topics:
                    self._greet(client, topic)
        return True

    def _begin(self, data: bytes | memoryview) -> None:
        self._inside = True
        topic = _first_frame(data)
        self._takers = [client for client in self._waited_for() if _wants(client, topic)]
        if self._backlog is not None:
            self._backlog.begin(topic)

    def _hand_on(self, data: bytes | memoryview, number: int, ends: bool) -> None:
        for client in self._takers:
            self._pace.write(client, data, number, ends)
        if self._backlog is not None:
            self._backlog.add(bytes(data), number, ends)
            if given_up := self._backlog.drop_beyond_limit():
                self._link.release(wire.IOPUB, b"", given_up, wire.GIVEN_UP)
        elif ends:
            self._pace.release(number)
        if ends:
            self._end()

    def _end(self) -> None:
        self._inside, self._takers = False, []
        waiting, self._of_our_own = self._of_our_own, []
        for message in waiting:
            self.publish(message)

    def void(self) -> None:
        """The message that is under way will have no end."""
        self._head, self._head_size = [], 0
        if not self._inside:
            return
        if self._backlog is not None:
            self._backlog.void()
        for client in list(self._takers):
            self._pace.void(client)
        self._end()

    def begin_anew(self) -> None:
        """It is another relay, which begins with whole messages and counts from 1."""
        self.void()
        self._pace.begin_anew()
        if self._backlog is not None:
            self._backlog.forget_numbers()

    def lump_comes(self) -> None:
        """The stream was away: what the kernel said meanwhile comes at once."""
        for client in self._live:
            self._pace.begin(client, self._inside and client in self._takers)

    def hurry(self) -> None:
        """Hand on what waits for its turn: no more time is given."""
        self._pace.hurry()

    def publish(self, message: Own) -> None:
        """A whole message of our own; behind the one that is under way."""
        if self._inside:
            self._of_our_own.append(message)
            return
        for client in self._waited_for():
            if _wants(client, message.topic):
                self._pace.write(client, message.wire)
        if self._backlog is not None:
            self._backlog.begin(message.topic)
            self._backlog.add(message.wire, 0, True)

    @property
    def is_blocked(self) -> bool:
        return self._meter.is_blocked

    @property
    def count(self) -> int:
        return len(self._there)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for client in list(self._there):
            client.close()


def _wants(client: Client, topic: bytes) -> bool:
    return any(topic.startswith(wanted) for wanted in client.topics)


def _first_frame(data: bytes | memoryview) -> bytes:
    head = 9 if data[0] & 2 else 2
    size = int.from_bytes(data[1:head], "big")
    return bytes(data[head : head + min(size, LOOKED_AT)])
