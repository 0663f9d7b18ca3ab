"""ZMTP 3.0 and 3.1 (RFC 23, RFC 37) with the NULL mechanism, for both sides of a connection; it touches no socket.

`Engine` is one connection: bytes in, events out, and `take()` says what has to be written. Messages are not taken apart: they leave as the
frames that were on the wire, in pieces of at most CHUNK bytes, and the last piece of each message is marked. So a message of 100 MB
flows through without being stored whole. `encode` makes such wire bytes, `split` takes those of a small message apart.

    engine = Engine(b"ROUTER")                       # or Engine(b"DEALER", identity=b"me", connecting=True)
    write(engine.take())                             # the greeting (connecting: and READY)
    for name, body, ends in engine.feed(data):       # raises ProtocolError: close the connection (write what take() has first)
        if not name: ...                             # a piece of a message; ends: its last one
        elif name == b"READY": ...                   # engine.identity, engine.peer_type, engine.minor are set; messages may be written now
        elif name in (b"SUBSCRIBE", b"CANCEL"): ...  # 3.1; body is the prefix; 3.0 sends messages: see `subscription`
    write(engine.take())                             # PONGs and the like, after each feed
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, List, Optional, Tuple, Union

    Buffer = Union[bytes, bytearray, memoryview]
    Event = Tuple[bytes, memoryview, bool]

CHUNK = 256 << 10
"""Bytes of the largest piece."""
MAX_COMMAND = 64 << 10
MORE, LONG, COMMAND = 1, 2, 4
SIGNATURE = b"\xff" + b"\0" * 8 + b"\x7f"
GREETING = SIGNATURE + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32
PARTNERS = {
    b"ROUTER": (b"DEALER", b"REQ", b"ROUTER"),
    b"XPUB": (b"SUB", b"XSUB"),
    b"REP": (b"REQ", b"DEALER"),
    b"DEALER": (b"ROUTER", b"REP", b"DEALER"),
    b"SUB": (b"XPUB", b"PUB"),
}
"""Which socket types may talk to which."""


class ProtocolError(Exception):
    """The other side does not speak ZMTP 3 with NULL, or not to a socket of this type."""


def frame_header(size: int, flags: int = 0) -> bytes:
    """What stands before a frame of `size` bytes; flags: MORE, COMMAND."""
    return bytes((flags, size)) if size < 256 else bytes((flags | LONG,)) + size.to_bytes(8, "big")


def command(name: bytes, body: bytes = b"") -> bytes:
    """A command's wire bytes."""
    body = bytes((len(name),)) + name + body
    return frame_header(len(body), COMMAND) + body


def ready(socket_type: bytes, identity: bytes = b"") -> bytes:
    """The READY command's wire bytes."""
    properties = b""
    for name, value in ((b"Socket-Type", socket_type), (b"Identity", identity)):
        properties += bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value
    return command(b"READY", properties)


def encode(parts: Iterable[Buffer]) -> List[Union[bytes, memoryview]]:
    """A message as pieces of wire bytes of at most CHUNK each; small frames are joined, large ones are not copied."""
    frames = list(parts)
    pieces: List[Union[bytes, memoryview]] = []
    small = bytearray()
    for index, frame in enumerate(frames):
        view = memoryview(frame).cast("B")
        header = frame_header(len(view), MORE if index + 1 < len(frames) else 0)
        if small and len(small) + len(header) + len(view) > CHUNK:
            pieces.append(bytes(small))
            small = bytearray()
        small += header
        if len(small) + len(view) <= CHUNK:
            small += view
            continue
        pieces.append(bytes(small))
        small = bytearray()
        pieces += [view[at : at + CHUNK] for at in range(0, len(view), CHUNK)]
    if small:
        pieces.append(bytes(small))
    return pieces


def split(message: Buffer) -> List[bytes]:
    """The frames of a whole message's wire bytes. Raises ProtocolError where they are not whole."""
    data = bytes(message)
    frames, at, more = [], 0, True
    while at < len(data) and more:
        head = 9 if data[at] & LONG else 2
        end = at + head + int.from_bytes(data[at + 1 : at + head], "big")
        more = bool(data[at] & MORE)
        frames.append(data[at + head : end])
        if at + head > len(data) or end > len(data):
            raise ProtocolError("half a message")
        at = end
    if more or at != len(data):
        raise ProtocolError("not one whole message")
    return frames


def subscription(frame: bytes) -> Optional[Tuple[bool, bytes]]:
    """What a subscriber's message of one frame asks for (3.0 style): (subscribe or cancel, prefix); None for anything else."""
    return (frame[0] == 1, frame[1:]) if frame[:1] in (b"\0", b"\1") else None


class Scanner:
    """Walks over frame headers of wire bytes, and cuts these into pieces and commands."""

    def __init__(self) -> None:
        self.left = 0  # bytes of the current frame that are still to come
        self.flags = 0
        self.rest = b""  # half a header
        self.command = bytearray()
        self.inside = False
        """Whether a message has begun and not ended."""

    def feed(self, data: Buffer) -> List[Event]:
        """(b"", piece, ends its message) and (name, body, True) for commands, in order. Pieces are views of `data`.

        A piece belongs to one message. Raises ProtocolError.
        """
        if self.rest:
            data, self.rest = self.rest + bytes(data), b""
        view, size = memoryview(data), len(data)
        events: List[Event] = []
        at = start = 0
        while at < size:
            if not self.left:
                self.flags = flags = view[at]
                head = 9 if flags & LONG else 2
                if flags > 7 or flags & 5 == 5:
                    raise ProtocolError(f"frame flags {flags:#x}")
                if size - at < head:
                    break
                self.left = view[at + 1] if head == 2 else int.from_bytes(view[at + 1 : at + 9], "big")
                if flags & COMMAND:
                    self._piece(events, view[start:at], False)
                    at = start = at + head
                    if self.left > MAX_COMMAND:
                        raise ProtocolError("a command of more than 64 KB")
                else:
                    if self.left >> 63:
                        raise ProtocolError("a frame of more than 2^63 bytes")
                    at += head
                    self.inside = True
            take = min(self.left, size - at)
            at += take
            self.left -= take
            if self.flags & COMMAND:
                self.command += view[start:at]
                start = at
                if not self.left:
                    events.append(self._command())
            elif not self.left and not self.flags & MORE:
                self._piece(events, view[start:at], True)
                start, self.inside = at, False
        self._piece(events, view[start:at], False)
        self.rest = bytes(view[at:])
        return events

    def _command(self) -> Event:
        body, self.command = bytes(self.command), bytearray()
        if not body or len(body) < 1 + body[0]:
            raise ProtocolError("a command without a name")
        return body[1 : 1 + body[0]], memoryview(body)[1 + body[0] :], True

    @staticmethod
    def _piece(events: List[Event], piece: memoryview, ends: bool) -> None:
        while len(piece) > CHUNK:
            events.append((b"", piece[:CHUNK], False))
            piece = piece[CHUNK:]
        if piece:
            events.append((b"", piece, ends))


class Engine:
    """One connection, from its greeting on."""

    def __init__(self, socket_type: bytes, identity: bytes = b"", connecting: bool = False) -> None:
        self.socket_type, self.own_identity, self.connecting = socket_type, identity, connecting
        self.scanner = Scanner()
        self.greeting: Optional[bytes] = b""
        """What has come of the other side's; None when it is whole."""
        self.minor = 0
        """1: the other side speaks 3.1, so it knows PING and SUBSCRIBE."""
        self.is_ready = False
        self.peer_type = self.identity = b""
        self.output = bytearray(GREETING)
        if connecting:
            self.output += ready(socket_type, identity)  # saves waiting for the other side's greeting

    def take(self) -> bytes:
        """What has to be written now; nothing the second time."""
        output, self.output = bytes(self.output), bytearray()
        return output

    def feed(self, data: Buffer) -> List[Event]:
        """Messages' pieces and commands, as the Scanner gives them; greetings and PINGs are answered. Raises ProtocolError."""
        if self.greeting is not None:
            data = self._greet(self.greeting + bytes(data))
        if not data:
            return []
        events = self.scanner.feed(data)
        for name, body, _ in events:
            if name:
                self._obey(name, bytes(body))
            elif not self.is_ready:
                raise ProtocolError("a message before READY")
        return events

    def _greet(self, data: bytes) -> bytes:
        """Look at as much of the greeting as there is; what follows it."""
        start = data[:10]
        if (
            start[:1] != b"\xff"
            or (len(start) == 10 and not start[9] & 1)
            or data[10:11] in (b"\0", b"\1", b"\2")
        ):
            raise ProtocolError("not ZMTP 3")
        if len(data) < 64:
            self.greeting = data
            return b""
        if data[12:32].rstrip(b"\0") != b"NULL":
            raise ProtocolError("not the NULL mechanism")
        self.greeting, self.minor = None, data[11] if data[10] == 3 else 1
        if not self.connecting:
            self.output += ready(self.socket_type, self.own_identity)
        return data[64:]

    def _obey(self, name: bytes, body: bytes) -> None:
        if name == b"READY":
            self._be_ready(properties(body))
        elif name == b"PING":
            self.output += command(b"PONG", body[2:])
        elif name == b"ERROR":
            raise ProtocolError(body[1:200].decode("ascii", "replace") or "the other side refused")
        elif not self.is_ready:
            raise ProtocolError("a command before READY")

    def _be_ready(self, given: Dict[bytes, bytes]) -> None:
        self.peer_type, self.identity = given.get(b"socket-type", b""), given.get(b"identity", b"")
        if self.peer_type not in PARTNERS[self.socket_type]:
            reason = b"Invalid socket type"
            self.output += command(b"ERROR", bytes((len(reason),)) + reason)
            raise ProtocolError(f"a {self.peer_type[:20]!r} socket")
        if len(self.identity) > 255 or self.is_ready:
            raise ProtocolError("a READY that is none")
        self.is_ready = True


def properties(body: bytes) -> Dict[bytes, bytes]:
    """READY's properties; their names are lower case. Raises ProtocolError."""
    found, at = {}, 0
    while at < len(body):
        name_end = at + 1 + body[at]
        value = name_end + 4
        end = value + int.from_bytes(body[name_end:value], "big")
        if end > len(body):
            raise ProtocolError("half a property")
        found[body[at + 1 : name_end].lower()] = body[value:end]
        at = end
    return found
