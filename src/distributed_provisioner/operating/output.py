"""What a kernel published, as its relay keeps it: the records of a reader's stream become Jupyter's messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from ..errors import ConnectionLostError, HostUnreachableError, ProtocolError
from ..traffic import Receiver, Writer
from ..traffic.shared import relay_wire, zmtp

SILENCE = 15.0
"""Seconds without a word after which a relay that has not sent all it keeps is given up."""
LOOK_INTERVAL = 1.0

_DELIMITER = b"<IDS|MSG>"
_PARTS = ("header", "parent_header", "metadata", "content")


class Stream(Protocol):
    """The bytes from and to a relay."""

    async def read(self) -> bytes:
        """Some; empty at the end."""

    def write(self, data: bytes) -> None: ...


class RelayStream(Receiver):
    """A stream to be read by whoever wants to: the relay sends no more than a window of what was not acknowledged."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self._failure: BaseException | None = None

    def data_received(self, data: bytes) -> None:
        self._pieces.put_nowait(bytes(data))

    def lost(self, error: BaseException | None = None) -> None:
        self._failure = error
        self._pieces.put_nowait(b"")

    def pause_writing(self) -> None:
        """Acknowledgments are short: they may wait in any number."""

    def resume_writing(self) -> None:
        pass

    async def read(self) -> bytes:
        """Some; empty at the end. Raises what the line was lost of."""
        data = await self._pieces.get()
        if not data and self._failure is not None:
            raise self._failure
        return data

    def write(self, data: bytes) -> None:
        if self.writer is not None:
            self.writer.write(data)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


async def messages_of(
    stream: Stream, bridge: str, follow: bool, ended: Callable[[float], Awaitable[bool]]
) -> AsyncIterator[dict[str, Any]]:
    """All that is kept, oldest first, then, with `follow`, what comes, until the relay or the kernel has ended.

    Args:
        bridge: 32 hexadecimal digits, new for each reader.
        ended: asked while nothing comes; waits for so many seconds, and tells whether the kernel has ended.

    Raises:
        HostUnreachableError, ConnectionLostError: the relay fell silent, or its line was lost, before all was read.
        ProtocolError: what came makes no sense.
    """
    reader = _Reader(stream)
    hello = {
        "protocol": relay_wire.PROTOCOL,
        "role": "reader",
        "bridge": bridge,
        "have": 0,
        "received": [0, 0, 0, 0],
    }
    stream.write(relay_wire.told(relay_wire.HELLO, {**hello, "kept": True, "follow": follow}))
    quiet = 0.0
    reading = asyncio.ensure_future(stream.read())
    try:
        while True:
            done, _ = await asyncio.wait([reading], timeout=LOOK_INTERVAL)
            if not done:
                quiet += LOOK_INTERVAL
                if reader.kept_all and await ended(0):
                    return
                if not reader.kept_all and quiet > SILENCE:
                    raise HostUnreachableError(
                        f"The kernel's relay has said nothing for {SILENCE:g} s. Try again."
                    )
                continue
            data, quiet = reading.result(), 0.0
            if not data:
                if not reader.kept_all:
                    raise ConnectionLostError(
                        "The kernel's relay ended before it had sent all that it keeps. Try again."
                    )
                return
            for message in reader.feed(data):
                yield message
            if reader.kept_all and not follow:
                return
            reading = asyncio.ensure_future(stream.read())
    finally:
        reading.cancel()
        await asyncio.wait([reading])


class _Reader:
    """Puts pieces together, and acknowledges them."""

    def __init__(self, stream: Stream) -> None:
        self.kept_all = False
        """Whether all that was kept has come."""
        self._stream = stream
        self._records = relay_wire.Records()
        self._message = bytearray()
        self._last = 0
        self._consumed = [0, 0, 0, 0]

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        messages = []
        try:
            for kind, flags, number, _, payload in self._records.feed(data):
                if kind <= relay_wire.IOPUB:
                    self._last = number
                    self._consumed[kind] += len(payload)
                if kind == relay_wire.IOPUB:
                    if flags & relay_wire.VOID:
                        self._message.clear()
                    self._message += payload
                    if flags & relay_wire.ENDS and self._message:
                        messages += parsed(bytes(self._message))
                        self._message.clear()
                elif kind == relay_wire.TELL and relay_wire.loads(payload).get("tell") == "kept-end":
                    self.kept_all = True
        except (relay_wire.Rubbish, zmtp.ProtocolError) as error:
            raise ProtocolError(
                f"The kernel's relay said something that makes no sense ({error})."
            ) from error
        self._stream.write(relay_wire.ack(self._last, self._consumed))
        return messages


def parsed(wire: bytes) -> list[dict[str, Any]]:
    """The message of a whole message's wire bytes; nothing for one that is not Jupyter's. Raises zmtp.ProtocolError."""
    frames = zmtp.split(wire)
    if _DELIMITER not in frames:
        return []
    # The signature is passed over: these bytes come from the user's own host, through SSH.
    start = frames.index(_DELIMITER) + 2
    try:
        message = {
            name: json.loads(frame) for name, frame in zip(_PARTS, frames[start : start + 4], strict=True)
        }
    except ValueError:
        return []
    message["msg_type"] = str(message["header"].get("msg_type", ""))
    message["buffers"] = frames[start + 4 :]
    return [message]
