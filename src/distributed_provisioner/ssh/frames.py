"""What comes on a control channel: lines of JSON and, between them, the binary frames of channels to relays."""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEAD = struct.Struct("!cII")
"""A zero byte (a line begins with `{`), the channel, the number of bytes that follow; none: the channel is closed."""
MAX_LINE = 64 << 20
"""Bytes of what a listener says at once: it may be a long log."""


class FrameBuffer:
    """Cuts a stream into lines and frames; each byte of a line is looked at once, and a frame is handed on as it comes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._head = b""
        self._channel = 0
        self._left = 0

    def feed(self, data: bytes) -> Iterator[bytes | tuple[int, bytes]]:
        """Lines, and (channel, bytes) of frames; no bytes: closed. Raises ValueError for a line that is too long."""
        at, size = 0, len(data)
        while at < size:
            if self._left:
                piece = data[at : at + self._left]
                self._left -= len(piece)
                at += len(piece)
                yield self._channel, piece
            elif self._head or (not self._size and data[at] == 0):
                missing = HEAD.size - len(self._head)
                self._head += data[at : at + missing]
                at += missing
                if len(self._head) == HEAD.size:
                    _, self._channel, self._left = HEAD.unpack(self._head)
                    self._head = b""
                    if not self._left:
                        yield self._channel, b""
            else:
                end = data.find(b"\n", at)
                self._parts.append(data[at : end if end >= 0 else size])
                self._size += len(self._parts[-1])
                if self._size > MAX_LINE:
                    raise ValueError(f"a line of more than {MAX_LINE >> 20} MB")
                at = end + 1 if end >= 0 else size
                if end >= 0:
                    line, self._parts, self._size = b"".join(self._parts), [], 0
                    yield line


def frame(channel: int, data: bytes | memoryview) -> bytes:
    """A frame's head; the data follows."""
    return HEAD.pack(b"\0", channel, len(data))
