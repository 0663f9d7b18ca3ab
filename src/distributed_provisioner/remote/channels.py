"""Channels between a server and relays inside the control connection, for sites where sshd forwards nothing.

A frame is FRAME, channel and length (32 bits each), and so many bytes; length 0 closes the channel. A JSON line never begins so.
"""

from __future__ import annotations

import asyncio
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FRAME = b"\0"
HEAD = struct.Struct("!II")
PIECE = 128 << 10
"""Bytes that are read at once, from either side."""
WAITING = 256 << 10
"""Bytes that may wait for the connection before the relays are not read any more."""
MAX_UNREAD = 40 << 20
"""Bytes that may wait for one relay. A server sends no more than a window (8 MB) of each kind that the relay has not taken, and a relay
always reads: who exceeds this is broken, and closed. Waiting instead would hold up all other channels, and the requests."""


class Channels:
    """Those of one connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.turn = asyncio.Lock()
        self.open_ones: dict[int, Channel] = {}
        self.last = 0
        writer.transport.set_write_buffer_limits(high=WAITING)

    async def open(self, path: str) -> int:
        """Connect to a relay's socket; what it says comes from now on, after the caller's reply. Raises OSError."""
        reader, writer = await asyncio.open_unix_connection(path, limit=PIECE)
        self.last += 1
        self.open_ones[self.last] = Channel(self, self.last, reader, writer)
        return self.last

    async def receive(self, reader: asyncio.StreamReader) -> None:
        """Take a frame whose first byte has been read. Raises EOFError."""
        number, left = HEAD.unpack(await reader.readexactly(HEAD.size))
        channel = self.open_ones.get(number)  # None: it has been closed from this side meanwhile
        if left == 0 and channel is not None:
            channel.close()
        while left:
            piece = await reader.read(min(left, PIECE))
            if not piece:
                raise EOFError
            left -= len(piece)
            if channel is not None:
                channel.write(piece)

    async def send(self, number: int, data: bytes) -> None:
        """Write a frame, and wait while much is waiting. Raises OSError when the connection has ended."""
        self.writer.write(FRAME + HEAD.pack(number, len(data)) + data)
        async with self.turn:  # in older Pythons one task alone may wait for a writer
            await self.writer.drain()

    def close(self) -> None:
        """The connection has ended."""
        for channel in list(self.open_ones.values()):
            channel.close()


class Channel:
    """Copies between one relay's socket and the connection."""

    def __init__(
        self, channels: Channels, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.channels, self.number, self.reader, self.writer = channels, number, reader, writer
        self.copying: asyncio.Future[Any] = asyncio.ensure_future(self.copy())

    async def copy(self) -> None:
        """From the relay to the server, until either ends."""
        try:
            data = b"more"
            while data:
                try:
                    data = await self.reader.read(PIECE)
                except OSError:
                    data = b""
                await self.channels.send(self.number, data)  # nothing: the channel is closed
        except OSError:
            pass  # the connection has ended
        finally:
            self.channels.open_ones.pop(self.number, None)
            self.writer.close()

    def write(self, piece: bytes) -> None:
        self.writer.write(piece)
        if self.writer.transport.get_write_buffer_size() > MAX_UNREAD:
            self.writer.transport.abort()

    def close(self) -> None:
        """Closed by the server; what it wrote before still arrives."""
        self.channels.open_ones.pop(self.number, None)
        self.copying.cancel()
        self.writer.close()
