"""A kernel that floods its output leaves the loop to the others: it is read in portions, and acknowledged seldom."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distributed_provisioner.ssh.reach import Proxy, open_socket
from distributed_provisioner.ssh.relay_channel import open_stream
from distributed_provisioner.traffic import Receiver, portioned
from distributed_provisioner.traffic.link import BUSY, FLOOD, Link
from distributed_provisioner.traffic.portions import PORTION
from distributed_provisioner.traffic.shared import relay_wire as wire

from .test_parts import Relay, Taker

FLOODED = 4 << 20


class Noting(Receiver):
    """Notes how much comes at once, and how often the loop turned."""

    def __init__(self) -> None:
        super().__init__(cast(Any, None))
        self.sizes: list[int] = []
        self.turns: list[int] = []
        self.turn = 0
        self.done = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.sizes.append(len(data))
        self.turns.append(self.turn)
        if sum(self.sizes) >= FLOODED:
            self.done.set()

    async def count_turns(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)


async def _flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(FLOODED))
    await writer.drain()
    writer.close()


@asynccontextmanager
async def flooding_relay() -> AsyncIterator[str]:
    """A socket that says much at once to whoever connects."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = str(Path(directory, "t"))
        server = await asyncio.start_unix_server(_flood, path)
        try:
            yield path
        finally:
            server.close()
            await server.wait_closed()


async def test_a_local_relay_s_flood_is_read_in_portions_between_which_the_loop_turns() -> None:
    """If it fails: 500 small messages are worked off before another kernel's are looked at."""
    async with flooding_relay() as path:
        receiver, line = Noting(), SimpleNamespace(connection=None, forwards_paths=True)
        counting = asyncio.ensure_future(receiver.count_turns())
        writer = await open_stream(cast(Any, line), cast(Any, SimpleNamespace(relay=path)), "k", receiver)
        await asyncio.wait_for(receiver.done.wait(), 10)
        counting.cancel()
        writer.close()
    assert sum(receiver.sizes) == FLOODED
    assert max(receiver.sizes) <= PORTION
    assert len(set(receiver.turns)) == len(receiver.sizes)


async def test_a_local_relay_that_is_not_there_leaves_no_socket() -> None:
    """If it fails: each attempt while a relay is started again costs the server a descriptor."""
    line, process = SimpleNamespace(connection=None, forwards_paths=True), SimpleNamespace(relay="/tmp/none")
    with pytest.raises(FileNotFoundError):
        await open_stream(cast(Any, line), cast(Any, process), "k", Noting())


async def test_a_hosts_connection_is_read_in_portions() -> None:
    """If it fails: asyncssh works off 256 KB of packets at once, and copies what is left of them for each one."""
    server = await asyncio.start_server(_flood, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))]
    sock = await open_socket(cast(Any, SimpleNamespace(port=port, bind=None)), found)
    try:
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert await _largest(sock) == PORTION
    finally:
        sock.close()
        server.close()
        await server.wait_closed()


async def test_a_proxy_command_is_read_in_portions() -> None:
    """If it fails: hosts behind a ProxyCommand stall the loop, others do not."""
    proxy = await Proxy.start(f"head -c {FLOODED} /dev/zero")
    try:
        proxy.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        assert await _largest(proxy.sock) <= PORTION
    finally:
        proxy.kill()
        proxy.sock.close()
        await proxy.process.wait()


async def _largest(sock: socket.socket) -> int:
    """The most that came at once of a flood, while there always was more."""
    loop, sizes = asyncio.get_running_loop(), [0]
    while sum(sizes) < FLOODED:
        await asyncio.sleep(0.002)
        sizes.append(len(await loop.sock_recv(sock, 256 << 10)))
        assert sizes[-1]
    return max(sizes)


def test_a_portioned_socket_is_the_same_one_and_non_blocking() -> None:
    """If it fails: a descriptor leaks with each connection, or the loop waits in recv."""
    here, there = socket.socketpair()
    number = here.fileno()
    found = portioned(here)
    with found, there:
        assert (found.fileno(), here.fileno()) == (number, -1)
        assert not os.get_blocking(number)
        with pytest.raises(BlockingIOError):
            found.recv(1)
        there.send(b"abc")
        assert found.recv(1 << 20) == b"abc"


class Listening(Relay):
    """Notes when acknowledgments come."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []

    def write(self, data: bytes | memoryview) -> None:
        if bytes(data)[4] == wire.ACK:
            self.heard.append(asyncio.get_running_loop().time())
        super().write(data)


async def pauses(pieces: int, seconds: float) -> list[float]:
    """Between acknowledgments, where so many pieces come every 5 ms."""
    relay, taker = Listening(), Taker()
    link = taker.link = Link(taker, "k")
    link.resume(relay.open)
    await relay.send({}, 0, [1])
    assert relay.receiver is not None
    loop, number = asyncio.get_running_loop(), 0
    ends = loop.time() + seconds
    relay.heard.clear()
    while loop.time() < ends:
        for _ in range(pieces):
            number += 1
            relay.receiver.data_received(wire.record(wire.IOPUB, number, wire.ENDS, b"", b"line"))
        await asyncio.sleep(0.005)
    link.close()
    assert relay.have == number == len(taker.messages)
    return [later - before for before, later in zip(relay.heard[2:-2], relay.heard[3:-1], strict=True)]


async def test_a_flood_is_acknowledged_seldom() -> None:
    """If it fails: each of 50 acknowledgments a second lets other threads have Python, several times, while others' messages wait."""
    assert statistics.median(await pauses(FLOOD + 10, 1.0)) >= BUSY


async def test_other_output_is_acknowledged_as_before() -> None:
    """If it fails: what a server had when it was killed, and comes twice, is more than it has to be."""
    found = statistics.median(await pauses(1, 1.0))
    assert wire.ACK_SECONDS <= found < BUSY * 0.8
