"""Small messages for a client are written together: a system call for each lets other threads take Python away, each for milliseconds."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed_provisioner.traffic.clients import TOGETHER, Client
from distributed_provisioner.traffic.shared import zmtp


class Nobody:
    """A near end that has nothing to say."""

    def arrived(self, client: Client) -> None: ...
    def left(self, client: Client) -> None: ...
    def said(self, client: Client, piece: memoryview, ends: bool) -> None: ...
    def subscribes(self, client: Client, wanted: bool, topic: bytes) -> None: ...
    def flows(self, client: Client, slow: bool) -> None: ...


class Counted(asyncio.Transport):
    """Counts what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...
    def abort(self) -> None: ...


def greeted() -> tuple[Client, Counted]:
    client, transport = Client(Nobody(), b"XPUB"), Counted()
    client.connection_made(transport)
    client.data_received(zmtp.Engine(b"SUB", connecting=True).take())
    transport.writes.clear()
    return client, transport


async def test_what_comes_in_one_turn_is_written_in_one_go() -> None:
    """If it fails: a kernel that floods makes the server's loop stand still for a tenth of a second and more."""
    client, transport = greeted()
    pieces = [b"%05d" % number for number in range(500)]
    for piece in pieces:
        client.write(piece)
    assert client.waiting == 2500
    await asyncio.sleep(0)
    assert transport.writes == [b"".join(pieces)]
    assert client.waiting == 0


async def test_large_pieces_do_not_wait_and_nothing_overtakes() -> None:
    """If it fails: a large message is copied, or comes in pieces that are out of order."""
    client, transport = greeted()
    large = bytes(TOGETHER)
    client.write(b"a")
    client.write(large)
    assert transport.writes == [b"a" + large]
    client.write(large)
    client.write(b"b")
    client.close()
    assert b"".join(transport.writes) == b"a" + large + large + b"b"
    await asyncio.sleep(0)
    assert len(transport.writes) == 3


async def test_what_waits_for_a_client_that_is_cut_off_is_forgotten() -> None:
    """If it fails: half a message reaches the connection that comes next."""
    client, transport = greeted()
    client.write(b"half")
    client.abort()
    await asyncio.sleep(0)
    assert not transport.writes
    assert client.waiting == 0
