"""Large pieces come in parts: over broken streams nothing of them is lost or doubled, and the books of both sides agree."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_provisioner.traffic.link import Link, Receiver, Writer
from distributed_provisioner.traffic.shared import relay_wire as wire

Piece = tuple[int, bytes]
"""Flags and payload; numbers count from 1."""


class Taker:
    """Puts messages together from what the link hands on."""

    def __init__(self) -> None:
        self.link: Link
        self.messages: list[bytes] = []
        self.begun = b""
        self.parts = 0

    def piece(self, kind: int, identity: bytes, flags: int, number: int, payload: memoryview) -> None:
        self.parts += 1
        if flags & wire.VOID:
            self.begun = b""
        self.begun += payload
        if flags & wire.ENDS:
            self.messages.append(self.begun)
            self.begun = b""
        self.link.credit.consume(kind, len(payload))

    def welcome(self, said: dict[str, Any], successor: bool) -> None: ...
    def told(self, what: dict[str, Any]) -> None: ...
    def stream_lost(self) -> None: ...
    def room(self, kind: int) -> None: ...


class Relay:
    """The other end: remembers what it has sent, and breaks its streams off where it is told to."""

    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self.credit = wire.Credit()
        self.have = 0
        self.opened = asyncio.Event()
        self.records = wire.Records()

    async def open(self, receiver: Receiver) -> Writer:
        self.receiver, self.records = receiver, wire.Records()
        self.opened.set()
        return self

    def write(self, data: bytes | memoryview) -> None:
        for kind, _, number, _, payload in self.records.feed(bytes(data)):
            if kind == wire.HELLO:
                said = wire.loads(payload)
                self.have = said["have"]
                self.credit.resume(said["received"])
            elif kind == wire.ACK:
                self.have = number
                self.credit.acknowledged(wire.counts(payload))

    def close(self) -> None: ...

    async def send(self, pieces: dict[int, Piece], cut: int, sizes: list[int]) -> None:
        """Greet on a new stream, then send what the other side has not got, `cut` bytes of it, in portions of these sizes."""
        await asyncio.wait_for(self.opened.wait(), 5)
        self.opened.clear()
        await asyncio.sleep(0)  # its hello
        assert self.receiver is not None
        welcome = {"relay": "r", "have": 0, "received": [0, 0, 0, 0], "clients": [], "kernel": "connected"}
        self.receiver.data_received(wire.told(wire.WELCOME, welcome))
        data, ends = b"", {}
        for number, (flags, payload) in sorted(pieces.items()):
            if number > self.have:
                data += wire.record(wire.IOPUB, number, flags, b"", payload)
                ends[number] = len(data)
        at, turn = 0, 0
        data = data[:cut]
        while at < len(data):
            size = sizes[turn % len(sizes)]
            self.receiver.data_received(data[at : at + size])
            at, turn = at + size, turn + 1
        for number, end in ends.items():
            begins = end - len(pieces[number][1])
            self.credit.moved(wire.IOPUB, max(0, min(len(data), end) - begins))


async def over(rounds: list[tuple[dict[int, Piece], int]], sizes: list[int]) -> tuple[Taker, Relay]:
    """Each round is a stream that breaks off; the last one is to be whole."""
    taker, relay = Taker(), Relay()
    link = taker.link = Link(taker, "k")
    for pieces, cut in rounds:
        link.resume(relay.open)
        await relay.send(pieces, cut, sizes)
        link.acknowledge()
        link.suspend()
    link.close()
    return taker, relay


def message(*sizes: int) -> list[Piece]:
    """A message of pieces of these sizes, no two bytes near each other alike."""
    return [
        (wire.ENDS if at == len(sizes) - 1 else 0, bytes((at + n // 7) % 251 for n in range(size)))
        for at, size in enumerate(sizes)
    ]


MESSAGES = [
    message(100),
    message(200_000, 70_000, 5_000),
    message(wire.LARGE),
    message(30_000),
    message(90_000, 10),
]
PIECES = dict(enumerate((p for m in MESSAGES for p in m), 1))
WHOLE = [b"".join(payload for _, payload in each) for each in MESSAGES]
TOTAL = sum(wire.HEAD.size + len(payload) for _, payload in PIECES.values())


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, TOTAL), max_size=4),
    sizes=st.lists(st.sampled_from([1000, 16_384, 32_768, 65_536, 300_000]), min_size=1, max_size=3),
)
def test_streams_that_break_anywhere_lose_and_double_nothing(cuts: list[int], sizes: list[int]) -> None:
    """If it fails: after a cut line a figure or a data frame is corrupt, or the kernel's window closes a little with each cut."""
    taker, relay = asyncio.run(over([*((PIECES, cut) for cut in cuts), (PIECES, 1 << 30)], sizes))
    assert taker.messages == WHOLE
    assert taker.link.credit.total == taker.link.credit.consumed == relay.credit.total
    assert relay.credit.consumed == relay.credit.total


def test_large_pieces_are_handed_on_before_they_are_whole() -> None:
    """If it fails: each is put together first, which costs more than all else that is done with it."""
    taker, _ = asyncio.run(over([({1: PIECES[2]}, 120_000)], [32_768]))
    assert taker.parts == 4
    assert len(taker.begun) == 120_000 - wire.HEAD.size


def test_a_piece_that_is_replaced_meanwhile_takes_the_place_of_what_was_handed_on() -> None:
    """If it fails: the beginning of a message that was dropped while the line was cut is joined with the notice that says so."""
    notice = (wire.ENDS, b"dropped" * 10)
    rounds = [({1: message(100_000)[0]}, 50_000), ({1: notice, 2: message(50)[0]}, 1 << 30)]
    taker, _ = asyncio.run(over(rounds, [32_768]))
    assert taker.messages == [notice[1], message(50)[0][1]]


def test_a_piece_that_never_comes_again_is_void() -> None:
    """If it fails: the beginning of a message that was dropped while the line was cut is joined with the next message."""
    rounds = [({1: message(100_000)[0]}, 50_000), ({2: message(50)[0]}, 1 << 30)]
    taker, _ = asyncio.run(over(rounds, [32_768]))
    assert taker.messages == [message(50)[0][1]]
