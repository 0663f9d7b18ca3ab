"""Shell, control and stdin: to each identity its own messages, held while its client is not there."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from .clients import Client
from .link import Link
from .meter import Meter
from .shared import relay_wire as wire
from .unanswered import Unanswered

HOLD_TIMEOUT = 600.0
"""Seconds that messages wait for a client that is not there."""
HOLD_BYTES = 64 << 20
"""Of all clients of a kernel together."""


class Routes:
    """One near end of these, as a ROUTER has it."""

    def __init__(
        self,
        kind: int,
        link: Link,
        holds: Holds,
        on_arrival: Callable[[Client], None],
        on_leaving: Callable[[Client], None],
        *,
        unanswered: Unanswered | None = None,
    ) -> None:
        self.kind = kind
        self._unanswered = unanswered
        """Looks at what is asked and answered; on shell."""
        self._link, self._holds = link, holds
        self._on_arrival, self._on_leaving = on_arrival, on_leaving
        self._meter = Meter(link, kind)
        self._lanes: dict[bytes, _Lane] = {}

    @property
    def clients(self) -> list[Client]:
        return [client for lane in self._lanes.values() for client in lane.clients]

    def has_client(self, identity: bytes) -> bool:
        return identity in self._lanes and bool(self._lanes[identity].clients)

    # --- clients --------------------------------------------------------------------------------------------------------------

    def arrived(self, client: Client) -> None:
        lane = self._lanes.setdefault(client.identity, _Lane())
        # Answers go to the newest one of this name, as with ROUTER_HANDOVER; but an older one is not cut off: it would come again at once.
        lane.clients.append(client)
        lane.newest = client
        self._send_held(client.identity, lane)
        if self._link.outbox.is_full(self.kind):
            client.read_on(False)
        self._on_arrival(client)

    def left(self, client: Client) -> None:
        lane = self._lanes[client.identity]
        lane.clients.remove(client)
        if lane.newest is client:
            lane.newest = lane.clients[-1] if lane.clients else None
        if lane.target is client:
            lane.target, lane.drops = None, lane.inside
        lane.queue = deque(said for said in lane.queue if said[0] is not client)
        if lane.speaker is client:
            lane.speaker = None
            self._link.put(self.kind, client.identity, wire.VOID, b"")
            self._next_in_queue(lane)
        self._recount()
        self._forget(client.identity)
        self._on_leaving(client)

    def said(self, client: Client, piece: bytes | memoryview, ends: bool) -> None:
        lane = self._lanes[client.identity]
        if lane.speaker not in (None, client):  # two of one name: one message after the other
            lane.queue.append((client, bytes(piece), ends))
            client.read_on(False)
            return
        if self._unanswered is not None and lane.speaker is None:
            self._unanswered.said(client.identity, piece)
        lane.newest = client
        lane.speaker = None if ends else client
        self._link.put(self.kind, client.identity, wire.ENDS if ends else 0, piece)
        if self._link.outbox.is_full(self.kind):
            for other in self.clients:
                other.read_on(False)
        if ends and lane.queue:
            self._next_in_queue(lane)

    def _next_in_queue(self, lane: _Lane) -> None:
        queue, lane.queue = lane.queue, deque()
        for client, piece, ends in queue:
            self.said(client, piece, ends)
        if not lane.queue and not self._link.outbox.is_full(self.kind):
            for client in lane.clients:
                client.read_on(True)

    def subscribes(self, client: Client, wanted: bool, topic: bytes) -> None:
        """Nobody can here."""

    def room(self) -> None:
        """The relay takes more."""
        for client in self.clients:
            client.read_on(True)

    def flows(self, client: Client, slow: bool) -> None:
        self._recount()
        if not client.slow and (lane := self._lanes.get(client.identity)) is not None:
            self._send_held(client.identity, lane)

    def _recount(self) -> None:
        self._meter.block(any(client.slow and not client.hopeless for client in self.clients))

    # --- the kernel -----------------------------------------------------------------------------------------------------------

    def answer(self, identity: bytes, message: bytes) -> None:
        """Give a client a whole message of our own, if it is there and not in the middle of one of the kernel's."""
        lane = self._lanes.get(identity)
        if lane is not None and lane.newest is not None and not lane.inside:
            lane.newest.write(message)

    def piece(self, identity: bytes, flags: int, number: int, payload: memoryview) -> None:
        if self._unanswered is not None and self._unanswered.takes(identity, flags, payload):
            self._link.release(self.kind, identity, number)
            self._meter.count(len(payload))
            return
        lane = self._lanes.setdefault(identity, _Lane())
        if flags & wire.VOID:
            self._void(lane)
        ends = bool(flags & wire.ENDS)
        if payload:
            if not lane.inside:
                if self._unanswered is not None:
                    self._unanswered.replied(payload)
                lane.target = lane.newest if lane.is_served and not lane.held else None
            lane.inside = not ends
            self._hand_on(identity, lane, number, payload, ends)
        else:
            self._forget(identity)
        self._meter.count(len(payload))

    def _hand_on(self, identity: bytes, lane: _Lane, number: int, payload: memoryview, ends: bool) -> None:
        if lane.target is not None:
            lane.target.write(payload)
            if ends:
                self._link.release(self.kind, identity, number)
        elif lane.drops:
            lane.drops = not ends
            if ends:
                self._link.release(self.kind, identity, number, wire.GIVEN_UP)
                self._forget(identity)
        else:
            lane.held.append((number, bytes(payload), ends))
            self._holds.add(self, identity, len(payload))

    def _void(self, lane: _Lane) -> None:
        """The beginning of the message that is under way will have no end."""
        if lane.inside and lane.target is not None:
            lane.target.abort()
        while lane.inside and lane.held and not lane.held[-1][2]:
            self._holds.take(len(lane.held.pop()[1]))
        lane.inside = lane.drops = False

    def _send_held(self, identity: bytes, lane: _Lane) -> None:
        if not lane.held or not lane.is_served or lane.newest is None:
            return
        last = 0
        for number, payload, ends in lane.held:
            lane.newest.write(payload)
            last = number if ends else last
        if lane.inside:
            lane.target = lane.newest
        if last:
            self._link.release(self.kind, identity, last)
        self._holds.done(self, identity, sum(len(payload) for _, payload, _ in lane.held))
        lane.held.clear()

    def give_up(self, identity: bytes) -> None:
        """Nobody came for what is held for a client."""
        lane = self._lanes[identity]
        numbers = [number for number, _, ends in lane.held if ends]
        lane.drops = bool(lane.held) and not lane.held[-1][2]
        self._holds.take(sum(len(payload) for _, payload, _ in lane.held))
        lane.held.clear()
        if numbers:
            self._link.release(self.kind, identity, numbers[-1], wire.GIVEN_UP)
        self._forget(identity)

    def begin_anew(self) -> None:
        """It is another relay: it begins with whole messages, and counts them anew."""
        for lane in self._lanes.values():
            self._void(lane)
            lane.held = deque((0, payload, ends) for _, payload, ends in lane.held)

    def _forget(self, identity: bytes) -> None:
        lane = self._lanes[identity]
        if not (lane.clients or lane.held or lane.inside):
            del self._lanes[identity]

    def close(self) -> None:
        for client in self.clients:
            client.close()


class _Lane:
    """One identity on one channel."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.newest: Client | None = None
        """Who gets the answers: who came, or asked, last."""
        self.speaker: Client | None = None
        """Who is in the middle of a message."""
        self.queue: deque[tuple[Client, bytes, bool]] = deque()
        self.held: deque[tuple[int, bytes, bool]] = deque()
        self.inside = False
        """Whether a message from the kernel has begun and not ended; `target` gets the rest, or it `drops`, or it is held."""
        self.target: Client | None = None
        self.drops = False

    @property
    def is_served(self) -> bool:
        return self.newest is not None and not self.newest.hopeless


class Holds:
    """What is held for clients who are not there, of all channels of a kernel: bounded in size and time."""

    def __init__(self) -> None:
        self._bytes = 0
        self._since: OrderedDict[tuple[Routes, bytes], float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, routes: Routes, identity: bytes, size: int) -> None:
        loop = asyncio.get_running_loop()
        self._bytes += size
        self._since.setdefault((routes, identity), loop.time())
        while self._bytes > HOLD_BYTES and self._since:
            self._give_up_oldest()
        if self._timer is None:
            self._timer = loop.call_later(HOLD_TIMEOUT, self._look)

    def take(self, size: int) -> None:
        self._bytes -= size

    def done(self, routes: Routes, identity: bytes, size: int) -> None:
        """The client has come."""
        self._bytes -= size
        self._since.pop((routes, identity), None)

    def _give_up_oldest(self) -> None:
        (routes, identity), _ = self._since.popitem(last=False)
        routes.give_up(identity)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while self._since and next(iter(self._since.values())) + HOLD_TIMEOUT <= loop.time():
            self._give_up_oldest()
        first = next(iter(self._since.values()), None)
        self._timer = None if first is None else loop.call_at(first + HOLD_TIMEOUT + 0.01, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
