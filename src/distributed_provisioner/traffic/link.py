"""The stream of records to a kernel's relay: opened, opened again when it breaks, nothing lost or doubled over all of its lives."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from .outbox import Lane, Outbox
from .parts import Parts
from .shared import relay_wire as wire

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
OPEN_TIMEOUT = 10.0
"""Seconds."""
SOON = 0.005
"""Seconds after which a quiet stream says what is done with. What a server had when it was killed and had not released comes twice, and
what it had released but not yet written to a page is lost: this is what a message takes through a process whose threads take turns."""
BUSY = 0.05
"""Seconds between acknowledgments of a flood. Each one is two packets, whose writing lets other threads have Python in between."""
FLOOD = 40
"""Pieces since the last acknowledgment that make one."""
MAX_RELEASED = 256

_log = logging.getLogger(__name__)


class Writer(Protocol):
    """The way to the relay."""

    def write(self, data: bytes | memoryview) -> None: ...
    def close(self) -> None: ...


class Receiver:
    """What one stream tells; stale streams talk to nobody."""

    def __init__(self, link: Link) -> None:
        self._link: Link | None = link
        self.writer: Writer | None = None
        self.paused = False
        self.gone = asyncio.Event()
        self.records = wire.Records(in_parts=True)

    def data_received(self, data: bytes) -> None:
        if self._link is not None:
            self._link._data(self, data)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._link is not None:
            self._link.pump()

    def lost(self, error: BaseException | None = None) -> None:
        link, self._link = self._link, None
        if link is not None:
            link._lost(self, error)
        self.gone.set()


Opener = Callable[[Receiver], Awaitable[Writer]]
"""Opens a stream to the relay; raises anything where it cannot."""


class Handler(Protocol):
    """Who is told what comes."""

    def piece(self, kind: int, identity: bytes, flags: int, number: int, payload: memoryview) -> None: ...
    def welcome(self, said: dict[str, Any], successor: bool) -> None:
        """The stream stands; `successor`: of another relay than before, which knows nothing of what was asked."""

    def told(self, what: dict[str, Any]) -> None: ...
    def stream_lost(self) -> None: ...
    def room(self, kind: int) -> None: ...


class Link:
    """Numbers, credit and acknowledgments of one kernel's stream. `resume` and `suspend` say whether its host can be reached."""

    def __init__(self, handler: Handler, name: str) -> None:
        self.outbox = Outbox(handler.room)
        self.credit = wire.Credit()
        """Of what comes; the handler says what is consumed."""
        self.is_up = False
        """Whether the relay has greeted."""
        self.count = 0
        """Pieces that have come."""
        self._handler, self._name = handler, name
        self._bridge = secrets.token_hex(16)
        self._relay = ""
        self._have = 0
        self._parts = Parts()
        self._successor = False
        self._opener: Opener | None = None
        self._stream: Receiver | None = None
        self._task: asyncio.Task[None] | None = None
        self._releases: dict[tuple[Lane, int], int] = {}
        self._released: OrderedDict[tuple[Lane, int], int] = OrderedDict()
        """Said before; said again on each new stream, since nobody acknowledges it."""
        self._ack_timer: asyncio.TimerHandle | None = None
        self._acknowledged = 0.0
        self._unacknowledged = 0
        self._counted = 0
        """How many pieces had come at the last acknowledgment."""
        self._is_flood = False

    # --- the stream's life ----------------------------------------------------------------------------------------------------

    def resume(self, opener: Opener) -> None:
        """The host is (again) reached by `opener`."""
        self._opener = opener
        if self._task is None:
            self._task = asyncio.ensure_future(self._keep_open())

    def suspend(self) -> None:
        """The host is away."""
        self._opener = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._stream is not None:
            self._drop(self._stream)

    @property
    def is_opening(self) -> bool:
        """Whether the host can be reached and the relay has not greeted yet."""
        return self._task is not None and self._opener is not None and not self.is_up

    def stay_away(self) -> None:
        """Another server has the kernel now: do not come again until `resume`. The stream is about to end."""
        self._opener = None

    def close(self) -> None:
        self.acknowledge()
        self.suspend()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None

    async def _keep_open(self) -> None:
        pause = FIRST_PAUSE
        while (opener := self._opener) is not None:
            receiver = Receiver(self)
            try:
                writer = await asyncio.wait_for(opener(receiver), OPEN_TIMEOUT)
            except (
                Exception
            ) as error:  # whatever the way there raises; the relay may be about to be started again
                _log.debug("[%s] no stream to the relay: %s", self._name, error)
                receiver._link = None
            else:
                self._opened(receiver, writer)
                await receiver.gone.wait()
                if self.is_up or self._have:
                    pause = FIRST_PAUSE
                self.is_up = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._task = None

    def _opened(self, receiver: Receiver, writer: Writer) -> None:
        if receiver._link is None or self._opener is None:
            writer.close()
            receiver.gone.set()
            return
        receiver.writer, self._stream = writer, receiver
        self._parts.stream_begins()
        writer.write(
            wire.told(
                wire.HELLO,
                {"protocol": wire.PROTOCOL, "role": "server", "bridge": self._bridge, "have": self._have,
                 "received": self.credit.total, "kept": False, "follow": True},
            )
        )  # fmt: skip

    def _drop(self, receiver: Receiver) -> None:
        if receiver.writer is not None:
            receiver.writer.close()
        receiver.lost()

    def _lost(self, receiver: Receiver, error: BaseException | None) -> None:
        if self._stream is not receiver:
            return
        self._stream = None
        was_up, self.is_up = self.is_up, False
        _log.debug("[%s] the stream to the relay has ended: %s", self._name, error)
        if was_up:
            self._handler.stream_lost()

    # --- what comes -----------------------------------------------------------------------------------------------------------

    def _data(self, receiver: Receiver, data: bytes) -> None:
        try:
            for kind, flags, number, identity, payload in receiver.records.feed(data):
                if receiver is not self._stream:
                    return
                if kind <= wire.IOPUB:
                    self._piece(kind, flags, number, identity, payload)
                elif kind == wire.ACK:
                    self.outbox.received(number)
                    self.outbox.consumed(wire.counts(payload))
                elif kind == wire.WELCOME:
                    self._welcome(receiver, wire.loads(payload))
                elif kind == wire.TELL:
                    self._handler.told(wire.loads(payload))
        except (wire.Rubbish, KeyError, TypeError, ValueError) as error:
            _log.warning(
                "[%s] its relay said something that makes no sense (%s): asked anew", self._name, error
            )
            self._drop(receiver)
            return
        self.pump()

    def _piece(self, kind: int, flags: int, number: int, identity: bytes, payload: memoryview) -> None:
        if number <= self._have:
            return
        if (lane := self._parts.abandoned(number)) is not None:
            self._handler.piece(*lane, wire.VOID, number, memoryview(b""))
        size, is_whole = len(payload), not flags & wire.PART
        left_out, flags = self._parts.take(kind, flags, number, identity, size)
        if is_whole:
            self._have = number
            self.count += 1
        self.credit.moved(kind, size)
        self.credit.consume(kind, left_out)
        self._unacknowledged += size
        if left_out < size or is_whole:
            self._handler.piece(kind, identity, flags, number, payload[left_out:])
        if self._unacknowledged >= wire.ACK_BYTES:
            self.acknowledge()
        else:
            self.acknowledge_soon()

    def _welcome(self, receiver: Receiver, said: dict[str, Any]) -> None:
        relay = str(said["relay"])
        if self._relay and relay != self._relay:
            # It has no idea of our numbers, nor we of its: say hello as somebody new.
            self._relay, self._bridge, self._have, self._successor = "", secrets.token_hex(16), 0, True
            self._parts = Parts()
            self.credit = wire.Credit()
            self._releases.clear()
            self._released.clear()
            self.outbox.begin_anew()
            self._drop(receiver)
            return
        self._relay, self.is_up = relay, True
        self._releases.update(self._released)
        self.outbox.resume(int(said["have"]), [int(count) for count in said["received"]])
        successor, self._successor = self._successor, False
        self._handler.welcome(said, successor)
        self.acknowledge()

    # --- what goes ------------------------------------------------------------------------------------------------------------

    def put(self, kind: int, identity: bytes, flags: int, payload: bytes | memoryview) -> None:
        """Send a piece of a client's message, now or when it can be."""
        self.outbox.put(kind, identity, flags, payload)
        self.pump()

    def tell(self, what: dict[str, Any]) -> None:
        """Say something that is not kept: nobody is told when the stream is down."""
        if self.is_up and self._stream is not None and self._stream.writer is not None:
            self._stream.writer.write(wire.told(wire.TELL, what))

    def pump(self) -> None:
        """Write what may be written."""
        stream = self._stream
        if stream is None or stream.writer is None or not self.is_up:
            return
        while not stream.paused and stream is self._stream and (piece := self.outbox.take()) is not None:
            head = wire.head(piece.kind, piece.number, piece.flags, piece.identity, len(piece.payload))
            if len(piece.payload) < 32768:
                stream.writer.write(head + piece.payload)
            else:
                stream.writer.write(head)
                stream.writer.write(piece.payload)

    def release(self, kind: int, identity: bytes, number: int, flags: int = wire.DELIVERED) -> None:
        """All of this lane up to `number` are done with."""
        if self._successor:
            return  # it is a number of the relay before
        lane = (kind, identity)
        self._releases[lane, flags] = self._released[lane, flags] = number
        self._released.move_to_end((lane, flags))
        if len(self._released) > MAX_RELEASED:
            self._released.popitem(last=False)
        self.acknowledge_soon()

    def acknowledge_soon(self) -> None:
        if self._ack_timer is None:
            loop = asyncio.get_running_loop()
            is_quiet = loop.time() - self._acknowledged >= wire.ACK_SECONDS
            busy = BUSY if self._is_flood else wire.ACK_SECONDS
            self._ack_timer = loop.call_later(SOON if is_quiet else busy, self.acknowledge)

    def acknowledge(self) -> None:
        """Say what has come and what is done with."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._unacknowledged = 0
        self._acknowledged = asyncio.get_running_loop().time()
        self._is_flood, self._counted = self.count - self._counted >= FLOOD, self.count
        stream = self._stream
        if stream is None or stream.writer is None or not self.is_up:
            return
        out = [wire.release(number, *lane, flags) for (lane, flags), number in self._releases.items()]
        self._releases.clear()
        stream.writer.write(b"".join([wire.ack(self._have, self.credit.consumed), *out]))
