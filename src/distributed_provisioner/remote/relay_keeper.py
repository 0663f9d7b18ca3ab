"""What a kernel has said and nobody has taken yet: in which order it goes, what is sent again, what is dropped where there is too much.

No sockets here. A piece is queued (in its channel's lane), then sent (numbered, until it is released), then gone or given up (kept for
readers). A lane, in the sense of the wire, is a channel and a client's identity.
"""

from __future__ import annotations

from collections import deque

from relay_entries import DONE, KEPT, QUEUED, SENT, Candidates, Entry, Open
from relay_notice import DISPLAY, NEVER, OTHER, SMALL, STREAM, Notice, class_of, execution_state, glance
from relay_store import Full
from relay_wire import CONTROL, ENDS, IOPUB, OLD, SHELL, STDIN, VOID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Deque, Dict, Iterator, List, Optional, Tuple

    from relay_store import Store
    from relay_wire import Credit

    Lane = Tuple[int, bytes]


class Keeper:
    """All of one kernel's messages that are on their way to the server."""

    def __init__(self, store: Store, limit: int) -> None:
        self.store, self.limit = store, limit
        self.lanes: List[Deque[Entry]] = [deque() for _ in range(4)]
        self.sent: Dict[Lane, Deque[Entry]] = {}
        self.again: Deque[Entry] = deque()
        self.kept: Deque[Entry] = deque()
        self.kept_size = 0
        self.open: Dict[Lane, Open] = {}
        self.notices: Dict[str, Entry] = {}
        """Where it stands what a cell has lost."""
        self.candidates = [Candidates(), Candidates()]
        """Of what was given up; of the rest."""
        self.order = self.number = 0
        self.bridge = ""
        self.unlimited = 0
        """Bytes that may be kept beside `limit` although no server is attached: what the last one had not taken."""
        self.attached = False
        self.state = ""
        self.missed_messages = self.missed_bytes = 0
        self.many = 1000
        self.key, self.scheme = b"", "hmac-sha256"

    # from the kernel

    def add(self, kind: int, identity: bytes, piece: memoryview, ends: bool) -> Entry:
        """Keep a piece; what is kept too much for it is dropped. The entry that now stands for it."""
        lane = (kind, identity)
        message = self.open.get(lane)
        if kind == IOPUB and ends and message is None and len(piece) < SMALL:
            self.state = execution_state(bytes(piece)) or self.state
        if message is not None and message.swallowed:
            return self._swallow(lane, message, len(piece), ends)
        entry = self._entry(kind, identity, ENDS if ends else 0)
        self._put(entry, piece)
        if message is not None and message.swallowed:  # to make room for this very piece
            self._done(entry)
            return self._swallow(lane, message, len(piece), ends)
        if message is None:
            message = Open(entry)
            if not ends:
                self.open[lane] = message
        else:
            message.last.next = message.last = entry
            entry.flags |= message.first.flags & OLD
        self.lanes[kind].append(entry)
        if ends:
            self.open.pop(lane, None)
            if kind == IOPUB:
                self.candidates[1].unseen.append(message.first)
                if entry is not message.first and entry.size < SMALL:
                    self.state = execution_state(self._start_of(message.first)) or self.state
        self.enforce()
        return entry

    def void(self, kind: int, identity: bytes) -> Optional[Entry]:
        """The kernel went in the middle of a message: what there is of it is void."""
        message = self.open.pop((kind, identity), None)
        if message is None:
            return None
        entry = self._entry(kind, identity, VOID)
        entry.flags |= message.first.flags & OLD
        self.lanes[kind].append(entry)
        return entry

    def _start_of(self, first: Entry) -> bytes:
        """What a message begins with: its first piece, and the second where a read has cut it within its headers."""
        start = self.store.get(first.body) if first.body is not None else b""
        if first.next is not None and first.next.body is not None and len(start) < SMALL:
            start += self.store.get(first.next.body)
        return start

    def _entry(self, kind: int, identity: bytes, flags: int) -> Entry:
        self.order += 1
        return Entry(kind, identity, flags, self.order)

    def _put(self, entry: Entry, piece: memoryview) -> None:
        entry.size = len(piece)
        while entry.body is None:
            try:
                entry.body = self.store.put(piece)
            except Full:
                if not self.drop_one():
                    entry.body = self.store.put(piece, force=True)

    # to the server

    def hello(self, bridge: str, have: int, kept: bool) -> Tuple[int, int]:
        """A server is there: (number of pieces that are OLD to it, number of the first piece that it will get)."""
        self.attached, backlog = True, 0
        if bridge == self.bridge:
            sent = [e for lane in self.sent.values() for e in lane if e.number > have and e.state == SENT]
            self.again = deque(sorted(sent, key=lambda e: e.number))
        else:
            self.bridge, self.number, self.again = bridge, 0, deque()
            backlog = self._queue_all(kept)
        return backlog, self.again[0].number if self.again else self.number + 1

    def _queue_all(self, kept: bool) -> int:
        """All that was sent to another bridge has to be sent anew."""
        everything = [e for lane in self.sent.values() for e in lane] + [
            e for lane in self.lanes for e in lane
        ]
        if kept:
            everything += self.kept
            self.candidates[1].unseen = deque(
                sorted((*self.candidates[0].unseen, *self.candidates[1].unseen), key=lambda e: e.order)
            )
            for which in (DISPLAY, OTHER):
                self.candidates[1].seen[which].extendleft(reversed(self.candidates[0].seen[which]))
            self.candidates[0] = Candidates()
            self.kept, self.kept_size = deque(), 0
        self.sent = {}
        self.lanes = [deque() for _ in range(4)]
        found = sorted((e for e in everything if e.state != DONE), key=lambda e: e.order)
        for entry in found:
            entry.number, entry.state = 0, QUEUED
            entry.flags |= OLD
            self.lanes[entry.kind].append(entry)
        return len(found)

    def next(self, credit: Credit) -> Optional[Entry]:
        """The piece that is to be sent now: numbered, and counted as sent until it is released."""
        while self.again:
            entry = self.again.popleft()
            if entry.state == SENT:
                return entry
        for lane in self.lanes:
            while lane and lane[0].state == DONE:
                lane.popleft()
        ready = [
            lane
            for kind in (CONTROL, STDIN, SHELL, IOPUB)
            if (lane := self.lanes[kind]) and credit.has_room(kind)
        ]
        if not ready:
            return None
        first = ready[0][0]
        if len(ready) > 1 and first.kind == SHELL and ready[1][0].order < first.order:
            ready.pop(0)  # shell and iopub in the order in which they came
        entry = ready[0].popleft()
        self.number += 1
        entry.number, entry.state = self.number, SENT
        lane_of = (entry.kind, entry.identity)
        if lane_of not in self.sent:
            self.sent[lane_of] = deque()
        self.sent[lane_of].append(entry)
        return entry

    def payload(self, entry: Entry) -> bytes:
        if entry.notice is not None:
            return entry.notice.encode(self.key, self.scheme)
        return self.store.get(entry.body) if entry.body is not None else b""

    def release(self, kind: int, identity: bytes, number: int, given_up: bool) -> None:
        """The bridge is done with a lane up to `number`."""
        lane = self.sent.get((kind, identity))
        while lane and lane[0].number <= number:
            entry = lane.popleft()
            if entry.state == DONE:
                continue
            if given_up:
                self._give_up(entry)
            else:
                self._done(entry)
        if lane is not None and not lane:
            del self.sent[kind, identity]
        self._move_given_up()
        self.enforce()

    def _give_up(self, entry: Entry) -> None:
        entry.state, entry.number = KEPT, 0
        self.kept.append(entry)
        self.kept_size += entry.size

    def _done(self, entry: Entry) -> None:
        if entry.state == KEPT:
            self.kept_size -= entry.size
        entry.state = DONE
        if entry.body is not None:
            self.store.free(entry.body)
            entry.body = None
        if entry.notice is not None:
            entry.notice.told = True

    def detach(self) -> None:
        """No server is there any more. What it left behind may stay even if that is more than the limit; see `unlimited`."""
        self.attached = False
        self.unlimited = self.store.total if self.store.total > self.limit else 0

    def everything(self) -> Iterator[Entry]:
        """All that can still be read, oldest first."""
        waiting = [e for lane in self.sent.values() for e in lane] + [e for lane in self.lanes for e in lane]
        waiting += self.kept
        return iter(sorted((e for e in waiting if e.state != DONE), key=lambda e: e.order))

    # dropping

    def enforce(self) -> None:
        """Drop what is too much: of all while no server is attached, of what was given up at any time."""
        if not self.attached:
            allowed = self.limit + self.unlimited
            while self.store.total > allowed and self.drop_one():
                pass
        else:
            while self.kept_size > self.limit and self.drop_one(kept_only=True):
                pass

    def _move_given_up(self) -> None:
        """Forget candidates that are done with; those that were given up are apart."""
        kept, live = self.candidates
        while live.unseen and live.unseen[0].state in (KEPT, DONE):
            entry = live.unseen.popleft()
            if entry.state == KEPT:
                kept.unseen.append(entry)
        for which, queue in live.seen.items():
            while queue and queue[0].state in (KEPT, DONE):
                entry = queue.popleft()
                if entry.state == KEPT:
                    kept.seen[which].append(entry)

    def drop_one(self, kept_only: bool = False) -> bool:
        """Drop the message that is missed least; False where nothing may be dropped."""
        sources = self.candidates[:1] if kept_only else self.candidates
        for which in (STREAM, DISPLAY, OTHER):
            for source in sources:
                first = self._oldest(source, which)
                if first is not None:
                    self._drop(first)
                    return True
        return not kept_only and self._drop_unfinished()

    def _oldest(self, source: Candidates, which: int) -> Optional[Entry]:
        queue = source.queue(which)
        while queue:
            first = queue.popleft()
            if (
                first.state == DONE
                or (first.state == KEPT) != (source is self.candidates[0])
                or first.body is None
            ):
                if first.state == KEPT and source is not self.candidates[0]:
                    self.candidates[0].queue(which).append(first)
                continue
            if which != STREAM:
                return first
            found = class_of(self._start_of(first))
            if found == STREAM:
                return first
            if found != NEVER:
                source.seen[found].append(first)
        return None

    def _drop(self, first: Entry) -> None:
        parent, notice, is_new = self._notice(first)
        several, entry = first.next is not None, first
        while True:
            notice.bytes += entry.size
            self.missed_bytes += entry.size
            if entry.next is None:
                break
            following = entry.next
            self._done(entry)
            entry = following
        if entry.state == KEPT:
            self.kept_size -= entry.size
        if entry.body is not None:
            self.store.free(entry.body)
        entry.body, entry.size = None, 0
        notice.messages += 1
        self.missed_messages += 1
        self._stand_in(entry, notice if is_new else None, several)
        if is_new:
            self.notices[parent] = entry

    def _stand_in(self, entry: Entry, notice: Optional[Notice], several: bool) -> None:
        """The last piece of what was dropped becomes the notice, or voids what came before, or both, or goes."""
        entry.flags = (entry.flags & OLD) | (VOID if several else 0) | (ENDS if notice else 0)
        entry.notice = notice
        if notice is None and not several:
            entry.state = DONE

    def _notice(self, first: Entry) -> Tuple[str, Notice, bool]:
        """The cell that a message belongs to, the notice for it, and whether that is new."""
        message = glance(self._start_of(first))
        parent = message.parent if message else ""
        place = self.notices.get(parent)
        # Where the bridge is past the notice, only another one would see what is dropped now.
        if (
            place is not None
            and place.notice
            and not place.notice.told
            and (place.state != SENT or first.state == SENT)
        ):
            return parent, place.notice, False
        if len(self.notices) >= self.many:
            self.notices = {name: e for name, e in self.notices.items() if e.notice and not e.notice.told}
            self.many = max(1000, 2 * len(self.notices))
        return parent, Notice(message), True

    def _drop_unfinished(self) -> bool:
        """One message on iopub may be more than the limit: then its further pieces are not kept."""
        message = self.open.get((IOPUB, b""))
        first = message.first if message else None
        if message is None or first is None or message.swallowed or first.body is None:
            return False
        if class_of(self._start_of(first)) == NEVER:
            return False
        parent, notice, is_new = self._notice(first)
        message.swallowed = notice
        entry: Optional[Entry] = first
        while entry is not None:
            notice.bytes += entry.size
            self.missed_bytes += entry.size
            following = entry.next
            self._done(entry)
            entry = following
        self.missed_messages += 1
        notice.messages += 1
        stand_in = self._entry(IOPUB, b"", first.flags & OLD)
        self._stand_in(stand_in, notice if is_new else None, True)
        self.lanes[IOPUB].append(stand_in)
        if is_new:
            self.notices[parent] = stand_in
        return True

    def _swallow(self, lane: Lane, message: Open, size: int, ends: bool) -> Entry:
        assert message.swallowed is not None
        message.swallowed.bytes += size
        self.missed_bytes += size
        if ends:
            del self.open[lane]
        entry = Entry(*lane, 0, 0)
        entry.state = DONE
        return entry
