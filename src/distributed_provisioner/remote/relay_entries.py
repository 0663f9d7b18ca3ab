"""Pieces of messages in a relay, and what they are part of."""

from __future__ import annotations

from collections import deque

from relay_notice import DISPLAY, OTHER, STREAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Deque, Dict, Optional

    from relay_notice import Notice
    from relay_store import Body

QUEUED, SENT, KEPT, DONE = range(4)
"""States of an entry. DONE: released or dropped; whatever still refers to it passes over it."""


class Entry:
    """A piece of a message. The first one of a message leads to the others."""

    __slots__ = ("body", "flags", "identity", "kind", "next", "notice", "number", "order", "size", "state")

    def __init__(self, kind: int, identity: bytes, flags: int, order: int) -> None:
        self.kind, self.identity, self.flags, self.order = kind, identity, flags, order
        self.number = self.size = 0
        self.state = QUEUED
        self.body: Optional[Body] = None
        self.next: Optional[Entry] = None
        self.notice: Optional[Notice] = None


class Open:
    """A message of which the kernel has not sent the end."""

    def __init__(self, first: Entry) -> None:
        self.first = self.last = first
        self.swallowed: Optional[Notice] = None
        """Set where the message is too large to be kept: its further pieces are only counted."""


class Candidates:
    """Whole messages on iopub that may be dropped, oldest first; what of them is done with is passed over."""

    def __init__(self) -> None:
        self.unseen: Deque[Entry] = deque()
        self.seen: Dict[int, Deque[Entry]] = {DISPLAY: deque(), OTHER: deque()}

    def queue(self, which: int) -> Deque[Entry]:
        return self.unseen if which == STREAM else self.seen[which]
