"""Somebody who reads along: gets a copy of what is there, or of what comes, and changes nothing."""

from __future__ import annotations

from collections import deque

import relay_wire
from relay_wire import CHUNK, VOID, Credit, Rubbish, counts, head, told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Deque, Dict, Optional, Set, Tuple

    from relay_entries import Entry
    from relay_io import Stream
    from relay_keeper import Keeper
    from relay_store import Body

    Item = Tuple[int, int, bytes, Optional[Body], bytes]

LIMIT = 16 << 20
"""Bytes of what comes that wait for a reader; one that is slower misses whole messages."""


class Reader:
    """One reader's stream. What it has not got yet is held in the store, whatever becomes of it otherwise."""

    def __init__(self, keeper: Keeper, stream: Stream, hello: Dict[str, Any]) -> None:
        self.keeper, self.stream = keeper, stream
        self.follow = bool(hello.get("follow"))
        self.credit = Credit()
        self.queue: Deque[Item] = deque()
        self.waiting = self.number = 0
        self.skipping: Set[Tuple[int, bytes]] = set()
        self.kept_end = bool(hello.get("kept"))
        self.backlog = 0
        if self.kept_end:
            for entry in keeper.everything():
                self._take(entry, entry.kind, entry.flags)
            self.backlog = len(self.queue)
        elif not self.follow:
            self.kept_end = True

    def add(self, entry: Entry, begins: bool) -> None:
        """The kernel has said something; `begins`: the first piece of a message."""
        if not self.follow:
            return
        if (
            entry.body is None and entry.notice is None
        ):  # the kernel died in the middle, or it is too large to be kept
            self.queue.append((entry.kind, VOID, entry.identity, None, b""))
            return
        lane, ends = (entry.kind, entry.identity), entry.flags & relay_wire.ENDS
        if lane in self.skipping:
            if ends:
                self.skipping.discard(lane)
            return
        if self.waiting > LIMIT:
            if not ends:
                self.skipping.add(lane)
            if not begins:
                self.queue.append((entry.kind, VOID, entry.identity, None, b""))
            return
        self._take(entry, entry.kind, entry.flags)

    def _take(self, entry: Entry, kind: int, flags: int) -> None:
        if entry.notice is not None:
            told_already = entry.notice.told
            notice = self.keeper.payload(entry)
            entry.notice.told = told_already  # a reader is not the one for whom it is meant
            self.queue.append((kind, flags, entry.identity, None, notice))
            return
        body = self.keeper.store.hold(entry.body) if entry.body is not None else None
        self.waiting += entry.size
        self.queue.append((kind, flags, entry.identity, body, b""))

    def acknowledged(self, payload: memoryview) -> None:
        self.credit.acknowledged(counts(payload))

    def pump(self) -> None:
        stream = self.stream
        while self.queue and stream.waiting < 2 * CHUNK and not stream.closed:
            kind, flags, identity, body, data = self.queue[0]
            if not self.credit.has_room(kind):
                break
            self.queue.popleft()
            if body is not None:
                data = self.keeper.store.get(body)
                self.keeper.store.free(body)
                self.waiting -= body.size
            self.number += 1
            self.credit.moved(kind, len(data))
            stream.write(head(kind, self.number, flags, identity, len(data)), data)
            self.backlog -= 1
        if self.kept_end and self.backlog <= 0 and not stream.closed:
            self.kept_end = False
            stream.write(told(relay_wire.TELL, {"tell": "kept-end"}))
        if stream.out:
            stream.flush()

    def obey(self, kind: int, payload: memoryview) -> None:
        """A record of the reader's. Raises Rubbish."""
        if kind != relay_wire.ACK:
            raise Rubbish("a reader only acknowledges")
        self.acknowledged(payload)
        self.pump()

    def close(self) -> None:
        for *_, body, _data in self.queue:
            if body is not None:
                self.keeper.store.free(body)
        self.queue.clear()
