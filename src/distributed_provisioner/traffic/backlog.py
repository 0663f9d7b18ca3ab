"""What a kernel published and somebody who is expected has not heard yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

HOLD_BYTES = 64 << 20


class Entry:
    """A message, or as much of it as has come."""

    __slots__ = ("is_whole", "number", "pieces", "size", "topic")

    def __init__(self, topic: bytes) -> None:
        self.topic = topic
        self.number = 0
        """Of its last piece; 0 as long as that has not come, and for messages of our own."""
        self.pieces: list[bytes] = []
        self.size = 0
        self.is_whole = False

    def add(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.size += len(piece)


class Backlog:
    """Messages in order. Positions count from the first one that there ever was."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._dropped = 0
        self._bytes = 0
        self.last = 0
        """Number of the last piece of the last whole message."""

    def begin(self, topic: bytes) -> None:
        self._entries.append(Entry(topic))

    def add(self, piece: bytes, number: int, ends: bool) -> None:
        """A piece of the message that was begun last."""
        entry = self._entries[-1]
        entry.add(piece)
        self._bytes += len(piece)
        if ends:
            entry.number, entry.is_whole = number, True
            self.last = max(self.last, number)

    def void(self) -> None:
        """The message that was begun last will have no end."""
        self._bytes -= self._entries.pop().size

    def forget_numbers(self) -> None:
        """They were those of a relay that is no more."""
        self.last = 0
        for entry in self._entries:
            entry.number = 0

    def drop_beyond_limit(self) -> int:
        """Give up the oldest messages; the number of the last piece of them, 0 if none was."""
        last = 0
        while self._bytes > HOLD_BYTES and len(self._entries) > 1:
            entry = self._entries.popleft()
            self._bytes -= entry.size
            self._dropped += 1
            last = entry.number or last
        return last

    @property
    def position(self) -> int:
        """Where the next message will be."""
        return self._dropped + len(self._entries)

    def since(self, position: int) -> Iterator[Entry]:
        for number, entry in enumerate(self._entries, self._dropped):
            if number >= position:
                yield entry

    def clear(self) -> None:
        self._dropped += len(self._entries)
        self._entries.clear()
        self._bytes = 0
