"""Streams inside the control connection, for sites where sshd forwards nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from .driver import REMOTE

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Ends:
    """Both ends of a control connection: `channels` is the listener's, `reader` and `writer` the server's."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers: list[asyncio.AbstractServer] = []
        self.tasks: list[asyncio.Future[None]] = []

    async def open(self) -> None:
        from channels import Channels

        accepted: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )
        path = await self.listen("control", None, accepted)
        self.reader, self.writer = await asyncio.open_unix_connection(path)
        self.theirs, writer = await accepted
        self.channels = Channels(writer)
        self.tasks.append(asyncio.ensure_future(self.serve()))

    async def serve(self) -> None:
        """What connections.py does."""
        while await self.theirs.read(1):
            await self.channels.receive(self.theirs)

    async def listen(
        self, name: str, handler: Handler | None, accepted: asyncio.Future[Any] | None = None
    ) -> str:
        """A socket that stands for a relay's."""
        path = str(self.directory / name)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if accepted is not None:
                accepted.set_result((reader, writer))
            elif handler is not None:
                self.tasks.append(asyncio.ensure_future(self.handle(handler, reader, writer)))

        self.servers.append(await asyncio.start_unix_server(accept, path))
        return path

    async def handle(
        self, handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    def send(self, channel: int, data: bytes) -> None:
        self.writer.write(b"\0" + struct.pack("!II", channel, len(data)) + data)

    async def frame(self) -> tuple[int, bytes]:
        head = await asyncio.wait_for(self.reader.readexactly(9), 10)
        assert head[:1] == b"\0"
        channel, length = struct.unpack("!II", head[1:])
        return channel, await self.reader.readexactly(length)

    async def close(self) -> None:
        self.channels.close()
        self.channels.writer.close()
        self.writer.close()
        for task in self.tasks:
            task.cancel()
        for server in self.servers:
            server.close()
        await asyncio.sleep(0.05)


@pytest.fixture
async def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ends]:
    monkeypatch.syspath_prepend(str(REMOTE))
    both = Ends(tmp_path)
    await both.open()
    yield both
    await both.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100_000):
        writer.write(data)
        await writer.drain()


async def test_several_channels_carry_every_byte_both_ways(ends: Ends) -> None:
    """A byte lost or given to another kernel's channel breaks its messages."""
    path = await ends.listen("echo", echo)
    numbers = [await ends.channels.open(path) for _ in range(3)]
    assert len(set(numbers)) == 3
    sent = {number: random.Random(number).randbytes(3_000_000 + number) for number in numbers}
    digests = {number: hashlib.sha256() for number in numbers}
    left = {number: len(data) for number, data in sent.items()}

    async def write() -> None:
        for start in range(0, 3_100_000, 70_001):
            for number in numbers:
                if piece := sent[number][start : start + 70_001]:
                    ends.send(number, piece)
            await ends.writer.drain()

    writing = asyncio.ensure_future(write())
    while any(left.values()):
        number, data = await ends.frame()
        digests[number].update(data)
        left[number] -= len(data)
    await writing
    assert {n: d.digest() for n, d in digests.items()} == {
        n: hashlib.sha256(data).digest() for n, data in sent.items()
    }


async def test_closing_reaches_the_other_end_and_ends_one_channel_only(ends: Ends) -> None:
    """A relay that ends, or a server that has enough, must not leave half a stream open, nor touch another."""
    seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def until_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(await reader.read())

    async def one_word(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")

    first = await ends.channels.open(await ends.listen("first", until_the_end))
    other = await ends.channels.open(await ends.listen("other", echo))
    last = await ends.channels.open(await ends.listen("last", one_word))
    assert [await ends.frame(), await ends.frame()] == [(last, b"bye"), (last, b"")]
    ends.send(first, b"words")
    ends.send(first, b"")
    assert await asyncio.wait_for(seen, 5) == b"words"
    ends.send(first, b"to nobody")
    ends.send(last, b"to nobody")
    ends.send(other, b"still here")
    assert await ends.frame() == (other, b"still here")
    assert list(ends.channels.open_ones) == [other]


async def test_server_that_does_not_read_holds_up_the_relay_and_costs_no_memory(ends: Ends) -> None:
    """A flood to a slow line must wait where it is kept on disk, not in the listener."""
    written = [0, 0]

    async def flood(index: int, writer: asyncio.StreamWriter) -> None:
        for _ in range(1000):
            writer.write(bytes(64 << 10))
            await writer.drain()
            written[index] += 64 << 10

    async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await flood(0, writer)

    async def second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await flood(1, writer)

    for name, handler in (("first", first), ("second", second)):
        await ends.channels.open(await ends.listen(name, handler))
    await asyncio.sleep(0.5)
    waiting = ends.channels.writer.transport.get_write_buffer_size()
    assert 0 < waiting < 1 << 20
    assert sum(written) < 4 << 20
    total = 0
    while total < 2000 * (64 << 10):
        total += len((await ends.frame())[1])
    assert written == [1000 * (64 << 10)] * 2


async def test_relay_that_does_not_read_holds_up_nobody_else(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stopped relay must not keep requests and other kernels from the host; past all windows it is given up."""
    import channels

    monkeypatch.setattr(channels, "MAX_UNREAD", 8 << 20)

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(20)

    stopped = await ends.channels.open(await ends.listen("deaf", deaf))
    other = await ends.channels.open(await ends.listen("other", echo))
    for _ in range(6):
        ends.send(stopped, bytes(1 << 20))
    ends.send(other, b"through")
    assert await ends.frame() == (other, b"through")
    for _ in range(6):
        ends.send(stopped, bytes(1 << 20))
    assert await ends.frame() == (stopped, b"")
    assert list(ends.channels.open_ones) == [other]


@pytest.mark.slow
async def test_rate(ends: Ends) -> None:
    """Megabytes of output through the control channel must not be slower than the line."""
    path = await ends.listen("echo", echo)
    number = await ends.channels.open(path)
    begun = time.monotonic()
    piece, total = os.urandom(256 << 10), 0

    async def write() -> None:
        for _ in range(200):
            ends.send(number, piece)
            await ends.writer.drain()

    writing = asyncio.ensure_future(write())
    while total < 200 * len(piece):
        total += len((await ends.frame())[1])
    await writing
    assert total / (time.monotonic() - begun) > 20e6
