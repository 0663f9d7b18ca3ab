"""The stream of records between a relay on a host and whoever reads it: one text for both ends, number 1. It touches no socket.

A record is HEAD (length of what follows the length, kind, flags, length of the identity, number), the identity, the payload.

SHELL CONTROL STDIN IOPUB   a piece of a message on that channel, as ZMTP wire bytes, at most CHUNK; identity: the client's (empty on iopub)
    number   counts the sender's pieces from 1 for each bridge, in the order in which they are first sent; after something was dropped
             there are gaps. A number that was seen before is to be dropped.
    ENDS     the last piece of its message
    VOID     what came before of an unfinished message on this lane (channel and identity) is void: its sender is gone, or it was dropped.
             The record's own payload, if any, is a new message. Void with nothing begun means nothing.
    OLD      was there when this bridge first said hello (relay -> server)

HELLO   first on each stream, to the relay. JSON {"protocol": 1, "role": "server" | "reader" | "listener", "bridge": 32 hex digits,
        "have": number of the last piece received, "received": [bytes received in pieces of each kind], "kept": bool, "follow": bool}
    server   takes the place of the server before. `kept`: what was given up is sent again, too.
    reader   gets a copy, and acknowledges bytes as a server does. `kept`: of all there is (then TELL kept-end), `follow`: of what comes.
    listener TELLs only.

WELCOME the answer to a server and to a reader. JSON {"protocol": 1, "relay": 32 hex digits, "have", "received" (as in HELLO: what the
        relay has of this bridge's), "backlog": number of pieces that will come with OLD, "resend_from": number of the first piece that
        will be sent, "clients": [identity in hex, ...], "execution_state", "kernel": "connected" | "gone",
        "missed": {"messages", "bytes"} (dropped so far)}

ACK     number: the last piece received; payload: bytes consumed so far of each kind (4 x 64 bits), since this bridge's first hello.

RELEASE to the relay. All pieces of a lane up to number are done with. identity, payload (one byte: kind): the lane.
        flags: DELIVERED, or GIVEN_UP: nobody came to hear it, so keep it readable within the limit.

TELL    JSON, not numbered.
    server -> relay     {"tell": "open", "identities": [hex, ...]}: connect for these clients, {"tell": "close", "identities": [...]}: they
                        will not come again
    relay -> server     {"tell": "kernel", "state": "connected" | "gone"}
                        {"tell": "superseded"}: another bridge has come, do not come again by yourself
    relay -> reader     {"tell": "kept-end"}
    listener -> relay   {"tell": "connect", "info": connection info, "name"} -> {"tell": "connected"} or {"tell": "failed", "why"};
                        {"tell": "status"} -> {"tell": "status", ... as WELCOME}; {"tell": "stop"}: the relay ends

Flow: a sender has at most WINDOW bytes of each kind that are not consumed (see Credit); a kind that is blocked stops no other one.
After a reconnection both sides say how far they are (`have`, `received`), and go on from there.
"""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Sequence, Tuple, Union

    Buffer = Union[bytes, bytearray, memoryview]
    Record = Tuple[int, int, int, bytes, memoryview]

PROTOCOL = 1
SHELL, CONTROL, STDIN, IOPUB = range(4)
HELLO, WELCOME, ACK, RELEASE, TELL = range(10, 15)
CHANNELS = ("shell", "control", "stdin", "iopub")
"""Names of kinds 0 to 3."""
ENDS, VOID, OLD = 1, 2, 4
PART = 64
"""Not on the wire: more of this piece follows; see `Records`."""
LARGE, ENOUGH = 64 << 10, 16 << 10
"""Bytes of a piece that comes in parts, and of its first part at least."""
DELIVERED, GIVEN_UP = 0, 1
HEAD = struct.Struct("!IBBHQ")
COUNTS = struct.Struct("!4Q")
CHUNK = 256 << 10
"""Bytes of the largest piece."""
WINDOW = 8 << 20
"""Bytes of each kind that may be sent before they are consumed."""
ACK_BYTES, ACK_SECONDS = 1 << 20, 0.02
"""An acknowledgment is due after so many bytes, or so long after the first one."""
MAX_PAYLOAD = 4 << 20
MAX_IDENTITY = 255


class Rubbish(ValueError):
    """What came is no record: the stream has to be closed."""


def head(kind: int, number: int, flags: int, identity: bytes, size: int) -> bytes:
    """What stands before a payload of `size` bytes."""
    return HEAD.pack(12 + len(identity) + size, kind, flags, len(identity), number) + identity


def record(kind: int, number: int = 0, flags: int = 0, identity: bytes = b"", payload: Buffer = b"") -> bytes:
    """A whole record; for large payloads write `head` and the payload apart."""
    return head(kind, number, flags, identity, len(payload)) + payload


def told(kind: int, what: Dict[str, Any]) -> bytes:
    """A record whose payload is JSON: HELLO, WELCOME, TELL."""
    return record(kind, payload=json.dumps(what).encode())


def ack(number: int, consumed: Sequence[int]) -> bytes:
    return record(ACK, number, payload=COUNTS.pack(*consumed))


def release(number: int, kind: int, identity: bytes = b"", flags: int = DELIVERED) -> bytes:
    return record(RELEASE, number, flags, identity, bytes((kind,)))


def loads(payload: Buffer) -> Dict[str, Any]:
    """The JSON object of a HELLO, WELCOME or TELL. Raises Rubbish."""
    try:
        found = json.loads(bytes(payload))
    except (ValueError, RecursionError):
        raise Rubbish("no JSON") from None
    if not isinstance(found, dict):
        raise Rubbish("no JSON object")
    return found


def counts(payload: Buffer) -> List[int]:
    """The four counts of an ACK. Raises Rubbish."""
    try:
        return list(COUNTS.unpack(payload))
    except struct.error:
        raise Rubbish("not four counts") from None


class Records:
    """Takes records out of the bytes of a stream. `in_parts`: large pieces come as they arrive, all but the last part flagged PART."""

    def __init__(self, in_parts: bool = False) -> None:
        self.in_parts = in_parts
        self.left = 0
        """Bytes that are still to come of a piece that has begun to come in parts."""
        self.begun: Tuple[int, int, int, bytes] = (0, 0, 0, b"")
        self.rest: List[bytes] = []
        """What has come of a record; joined once."""
        self.size = 0
        self.wanted = 0
        """Bytes that have to be there before it is worth looking."""

    def feed(self, data: bytes) -> List[Record]:
        """(kind, flags, number, identity, payload) of each record that is whole now; a payload is a view of `data`, so copy what is
        kept for long. Raises Rubbish."""
        found: List[Record] = []
        at = 0
        if self.left:
            at = min(self.left, len(data))
            self.left -= at
            kind, flags, number, identity = self.begun
            flags = flags & ~(ENDS | VOID) | PART if self.left else flags & ~VOID
            found.append((kind, flags, number, identity, memoryview(data)[:at]))
        elif self.rest:
            self.rest.append(data)
            self.size += len(data)
            if self.size < self.wanted:
                return []
            data, self.rest = b"".join(self.rest), []
        view, size = memoryview(data), len(data)
        self.wanted = HEAD.size
        while size - at >= HEAD.size:
            length, kind, flags, id_size, number = HEAD.unpack_from(data, at)
            body = at + HEAD.size + id_size
            payload = length - 12 - id_size
            if (
                payload < 0
                or payload > MAX_PAYLOAD
                or id_size > MAX_IDENTITY
                or (kind <= IOPUB and payload > CHUNK)
            ):
                raise Rubbish("no record")
            identity = bytes(view[body - id_size : body])
            if size - at < 4 + length:
                self.wanted = 4 + length
                if self.in_parts and kind <= IOPUB and payload >= LARGE:
                    self.wanted = body - at + ENOUGH
                    if size - at >= self.wanted:
                        found.append((kind, flags & ~ENDS | PART, number, identity, view[body:]))
                        self.begun, self.left = (kind, flags, number, identity), 4 + length - (size - at)
                        at = size
                break
            at += 4 + length
            found.append((kind, flags, number, identity, view[body:at]))
        if at < size:
            self.rest, self.size = [bytes(view[at:])], size - at
        return found


class Credit:
    """The bytes of one direction, for each kind, since the bridge's first hello; both ends keep the same book.

    The sender asks `has_room`, and tells `moved` (when it sends) and `acknowledged`; after a reconnection `resume`, with what the other
    side says it `received`: what was on the way counts again when it is sent again.
    The receiver tells `moved` (when it receives) and `consume`; `total` goes into HELLO or WELCOME as "received", `consumed` into `ack`.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self.total = [0, 0, 0, 0]
        self.consumed = [0, 0, 0, 0]

    def has_room(self, kind: int) -> bool:
        return self.total[kind] - self.consumed[kind] < self.window

    def moved(self, kind: int, size: int) -> None:
        self.total[kind] += size

    def consume(self, kind: int, size: int) -> None:
        self.consumed[kind] += size

    def acknowledged(self, consumed: Sequence[int]) -> None:
        """Counts never go back; an acknowledgment that is older than another one changes nothing."""
        for kind in range(4):
            self.consumed[kind] = min(max(self.consumed[kind], consumed[kind]), self.total[kind])

    def resume(self, received: Sequence[int]) -> None:
        self.total = [max(have, done) for have, done in zip(received, self.consumed)]
