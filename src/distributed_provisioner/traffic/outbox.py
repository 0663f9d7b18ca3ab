"""What goes to the relay: numbered when it is first sent, kept until the relay has it, sent again on the next stream where it has not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .messages import LOOKED_AT
from .shared import relay_wire as wire

FULL = 1 << 20
"""Bytes that wait for their turn on one channel, above which clients are not read any more."""
IN_ORDER = (wire.CONTROL, wire.STDIN, wire.SHELL)

Lane = tuple[int, bytes]


class Piece(NamedTuple):
    number: int
    kind: int
    flags: int
    identity: bytes
    payload: bytes | memoryview


class Outbox:
    """Pieces of clients' messages on their way to the relay. `on_room(kind)` is called when a full channel takes more."""

    def __init__(self, on_room: Callable[[int], None]) -> None:
        self._on_room = on_room
        self._credit = wire.Credit()
        self._number = 0
        self._waiting: dict[int, deque[Piece]] = {kind: deque() for kind in IN_ORDER}
        self._bytes = dict.fromkeys(IN_ORDER, 0)
        self._sent: deque[Piece] = deque()
        self._again: deque[Piece] = deque()
        self._begun: set[Lane] = set()
        """Lanes of which a part of a message was sent, and not its end."""
        self._beheaded: set[Lane] = set()
        """Lanes whose message has lost its beginning with a relay: the rest of it is dropped."""

    def put(self, kind: int, identity: bytes, flags: int, payload: bytes | memoryview) -> None:
        """Take a piece; write what `take` gives after it."""
        lane = (kind, identity)
        if lane in self._beheaded:
            if flags & (wire.ENDS | wire.VOID):
                self._beheaded.discard(lane)
            return
        if len(payload) < 4096:
            payload = bytes(payload)  # it would keep a large buffer alive
        self._waiting[kind].append(Piece(0, kind, flags, identity, payload))
        self._bytes[kind] += len(payload)

    def is_full(self, kind: int) -> bool:
        return self._bytes[kind] > FULL

    def take(self) -> Piece | None:
        """The next piece that may be sent."""
        while self._again:
            piece = self._again.popleft()
            self._credit.moved(piece.kind, len(piece.payload))
            return piece
        for kind in IN_ORDER:
            waiting = self._waiting[kind]
            if waiting and self._credit.has_room(kind):
                return self._number_next(waiting.popleft())
        return None

    def _number_next(self, piece: Piece) -> Piece:
        self._number += 1
        piece = piece._replace(number=self._number)
        kind, size = piece.kind, len(piece.payload)
        if piece.flags & (wire.ENDS | wire.VOID):
            self._begun.discard((kind, piece.identity))
        else:
            self._begun.add((kind, piece.identity))
        self._sent.append(piece)
        self._credit.moved(kind, size)
        was_full = self.is_full(kind)
        self._bytes[kind] -= size
        if was_full and not self.is_full(kind):
            self._on_room(kind)
        return piece

    def received(self, number: int) -> None:
        """The relay has all up to this number."""
        while self._sent and self._sent[0].number <= number:
            self._sent.popleft()

    def consumed(self, counts: Sequence[int]) -> None:
        self._credit.acknowledged(counts)

    def resume(self, have: int, received: Sequence[int]) -> None:
        """On a new stream: what the relay has not had is sent again."""
        self.received(have)
        self._credit.resume(received)
        self._again = deque(self._sent)

    def begin_anew(self) -> None:
        """It is another relay, which counts from 1. What the last one may have had is not sent again: no request runs twice."""
        self._sent.clear()
        self._again.clear()
        self._number, self._credit = 0, wire.Credit()
        self._beheaded, self._begun = self._begun, set()
        for kind, waiting in self._waiting.items():
            pieces = list(waiting)
            waiting.clear()
            self._bytes[kind] = 0
            for piece in pieces:
                self.put(kind, piece.identity, piece.flags, piece.payload)

    def beginnings(self, kind: int) -> Iterator[bytes]:
        """The beginning of each message of which the relay has not had all."""
        inside: set[bytes] = set()
        for piece in (*self._sent, *self._waiting[kind]):
            if piece.kind != kind:
                continue
            if piece.payload and (piece.identity not in inside or piece.flags & wire.VOID):
                yield bytes(piece.payload[:LOOKED_AT])
            if piece.flags & (wire.ENDS | wire.VOID):
                inside.discard(piece.identity)
            else:
                inside.add(piece.identity)

    @property
    def is_empty(self) -> bool:
        return not self._sent and not any(self._waiting.values())
