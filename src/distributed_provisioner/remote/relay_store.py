"""Where a relay keeps what it has not handed on: in memory up to a limit, above it in files without a name."""

from __future__ import annotations

import contextlib
import os
import tempfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Sequence

MEMORY = 4 << 20
"""Bytes that are kept in memory."""
SEGMENT = 4 << 20
"""Bytes of the smallest spool file. A file goes when nothing in it is wanted any more, so each is a part of the whole."""
OVERHEAD = 256
"""Bytes that each piece counts more than it has."""


class Full(Exception):
    """Neither memory nor a disk has room."""


class Body:
    """The bytes of a piece, wherever they are. Freed when all who hold it have let go."""

    __slots__ = ("data", "holders", "offset", "segment", "size")

    def __init__(self, size: int) -> None:
        self.size, self.holders = size, 1
        self.data: Optional[bytes] = None
        self.segment: Optional[Segment] = None
        self.offset = 0


class Segment:
    """One spool file."""

    def __init__(self, directory: str) -> None:
        self.file, path = tempfile.mkstemp(prefix=".spool-", dir=directory)  # of mode 0600
        os.unlink(path)
        self.end = self.live = 0


class Store:
    """Keeps pieces' bytes. `directories`: where spool files may be; the one with most room is taken."""

    def __init__(self, directories: Sequence[str], memory: int = MEMORY) -> None:
        self.directories, self.memory = list(directories), memory
        self.in_memory = self.in_files = self.pieces = 0
        self.segments: List[Segment] = []

    @property
    def total(self) -> int:
        """Bytes that count against a limit."""
        return self.in_memory + self.in_files + OVERHEAD * self.pieces

    def put(self, piece: memoryview, force: bool = False) -> Body:
        """Keep a copy. Raises Full, unless `force`: then it is kept in memory whatever the limit."""
        body = Body(len(piece))
        if force or self.in_memory + body.size <= self.memory:
            whole = piece.obj
            # A large view's buffer is kept as it is; a small one must not hold on to a large buffer.
            body.data = whole if isinstance(whole, bytes) and len(whole) == body.size else bytes(piece)
            self.in_memory += body.size
        else:
            self._spool(body, piece)
            self.in_files += body.size
        self.pieces += 1
        return body

    def get(self, body: Body) -> bytes:
        if body.data is not None:
            return body.data
        assert body.segment is not None
        return os.pread(body.segment.file, body.size, body.offset)

    def hold(self, body: Body) -> Body:
        """One more who wants it."""
        body.holders += 1
        return body

    def free(self, body: Body) -> None:
        body.holders -= 1
        if body.holders:
            return
        self.pieces -= 1
        segment = body.segment
        if segment is None:
            self.in_memory -= body.size
            body.data = None
            return
        self.in_files -= body.size
        segment.live -= body.size
        if not segment.live and (segment is not self.segments[-1] or segment.end > SEGMENT):
            self._close(segment)
        elif not segment.live:
            os.ftruncate(segment.file, 0)
            segment.end = 0

    def _spool(self, body: Body, piece: memoryview) -> None:
        last = self.segments[-1] if self.segments else None
        if last is None or last.end >= max(SEGMENT, self.in_files // 8):
            last = self._new_segment()
        if last is None or not self._write(last, body, piece):
            last = self._new_segment()  # another directory may have room
            if last is None or not self._write(last, body, piece):
                raise Full
        body.segment = last

    def _new_segment(self) -> Optional[Segment]:
        for directory in sorted(self.directories, key=room, reverse=True):
            with contextlib.suppress(OSError):
                if self.segments and not self.segments[-1].live:
                    self._close(self.segments[-1])
                self.segments.append(Segment(directory))
                return self.segments[-1]
        return None

    def _close(self, segment: Segment) -> None:
        os.close(segment.file)
        self.segments.remove(segment)

    @staticmethod
    def _write(segment: Segment, body: Body, piece: memoryview) -> bool:
        """False where the disk is full (or broken): then nothing has changed."""
        done = 0
        try:
            while done < len(piece):
                done += os.pwrite(segment.file, piece[done:], segment.end + done)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(segment.file, segment.end)
            return False
        body.offset = segment.end
        segment.end += body.size
        segment.live += body.size
        return True


def room(directory: str) -> int:
    """Bytes that this user can write there; -1 where it is not there."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return -1
    return found.f_bavail * found.f_frsize
