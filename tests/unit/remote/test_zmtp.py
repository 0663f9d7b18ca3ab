"""ZMTP as both ends of the relay speak it: against libzmq, against a peer of 3.0, and against rubbish."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from .relaying import PATIENCE, zmtp

SIZES = (0, 1, 255, 256, 65535, 1 << 20)
frames_lists = st.lists(st.binary(max_size=700), min_size=1, max_size=5)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="dpz-", dir="/tmp") as directory:
        yield str(Path(directory) / "s")


class Wire:
    """An engine on a blocking socket."""

    def __init__(self, engine: zmtp.Engine, sock: socket.socket) -> None:
        self.engine, self.sock = engine, sock
        self.commands: list[tuple[bytes, bytes]] = []
        self.messages: list[list[bytes]] = []
        self.partial = bytearray()
        self.pieces: list[int] = []
        sock.settimeout(PATIENCE)
        sock.sendall(engine.take())

    def read(self) -> None:
        data = self.sock.recv(1 << 17)
        if not data:
            raise EOFError
        for name, body, ends in self.engine.feed(data):
            if name:
                self.commands.append((name, bytes(body)))
                continue
            self.partial += body
            self.pieces.append(len(body))
            if ends:
                self.messages.append(zmtp.split(self.partial))
                self.partial = bytearray()
        self.sock.sendall(self.engine.take())

    def until_ready(self) -> Wire:
        while not self.engine.is_ready:
            self.read()
        return self

    def send(self, *frames: bytes) -> None:
        for piece in zmtp.encode(frames):
            self.sock.sendall(piece)

    def receive(self) -> list[bytes]:
        while not self.messages:
            self.read()
        return self.messages.pop(0)


def connected(path: str, engine: zmtp.Engine) -> Wire:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return Wire(engine, sock).until_ready()


@contextlib.contextmanager
def accepted(path: str, engine: zmtp.Engine) -> Iterator[Wire]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(PATIENCE)
        listening.bind(path)
        listening.listen()
        yield Wire(engine, listening.accept()[0])


# --- the wire ------------------------------------------------------------------------------------------------------------------


@given(st.lists(frames_lists, max_size=6), st.data())
def test_no_cut_of_the_bytes_changes_what_they_say(messages: list[list[bytes]], data: st.DataObject) -> None:
    """The network cuts where it likes: a boundary that is missed there joins two cells' outputs, or loses one."""
    ping = zmtp.command(b"PING", b"\0\1x")
    wire = b"".join(b"".join(map(bytes, zmtp.encode(frames))) + ping for frames in messages)
    scanner, found, partial, pings, at = zmtp.Scanner(), [], bytearray(), 0, 0
    while at < len(wire):
        size = data.draw(st.integers(1, 400))
        for name, body, ends in scanner.feed(wire[at : at + size]):
            if name:
                pings += (name, bytes(body)) == (b"PING", b"\0\1x")
                continue
            partial += body
            if ends:
                found.append(zmtp.split(partial))
                partial = bytearray()
        at += size
    assert found == messages
    assert pings == len(messages)
    assert not scanner.inside


@given(st.binary(max_size=300), st.booleans())
def test_rubbish_is_refused_and_nothing_else_happens(data: bytes, greeted: bool) -> None:
    """Whatever connects to a client's socket, one connection ends and no other one."""
    engine = zmtp.Engine(b"ROUTER")
    with contextlib.suppress(zmtp.ProtocolError):
        if greeted:
            engine.feed(zmtp.GREETING)
        engine.feed(data)


@given(st.binary(max_size=100))
def test_half_a_message_is_not_taken_for_one(data: bytes) -> None:
    """`split` says so instead of giving frames that are cut."""
    whole = b"".join(map(bytes, zmtp.encode([b"head", data])))
    assert zmtp.split(whole) == [b"head", data]
    for end in range(len(whole)):
        with pytest.raises(zmtp.ProtocolError):
            zmtp.split(whole[:end])


def test_pieces_are_small_whatever_comes_in_one_read() -> None:
    """A piece above 256 KB is no record: the stream would be closed."""
    wire = b"".join(map(bytes, zmtp.encode([b"a" * 3_000_000, b"b" * 300_000, b"c"])))
    assert all(
        len(piece) <= zmtp.CHUNK for piece in zmtp.encode([b"a" * 3_000_000, b"b" * 200_000, b"c" * 200_000])
    )
    events = zmtp.Scanner().feed(wire)
    assert max(len(body) for _, body, _ in events) <= zmtp.CHUNK
    assert b"".join(bytes(body) for _, body, _ in events) == wire
    assert [ends for _, _, ends in events].count(True) == 1


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\n\r\n" + b" " * 64,
        b"\xff" + b"\0" * 8 + b"\x7f\x01" + b"\0" * 53,
        b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + b"\0" * 32,
    ],
    ids=["http", "zmtp-2", "curve"],
)
def test_other_protocols_are_refused(greeting: bytes) -> None:
    """A kernel with encryption, or something that is no kernel, is told at once and not waited for."""
    with pytest.raises(zmtp.ProtocolError, match=r"not ZMTP 3|not the NULL"):
        zmtp.Engine(b"DEALER", connecting=True).feed(greeting)


def test_a_socket_of_the_wrong_type_is_told_so() -> None:
    """A client that mixes up two ports gets an error instead of silence."""
    engine = zmtp.Engine(b"XPUB")
    engine.take()
    with pytest.raises(zmtp.ProtocolError, match="DEALER"):
        engine.feed(zmtp.GREETING + zmtp.ready(b"DEALER"))
    assert b"\x05ERROR" in engine.take()


@pytest.mark.parametrize(
    "bad",
    [b"\x09\x01", b"\x05\x00", b"\x06" + (1 << 20).to_bytes(8, "big"), b"\x02" + b"\xff" * 8, b"\x04\x00"],
    ids=["reserved flag", "command with more", "large command", "endless frame", "nameless command"],
)
def test_impossible_frames_are_refused(bad: bytes) -> None:
    """One byte too many must not make us wait for 2^63 more of them."""
    with pytest.raises(zmtp.ProtocolError):
        zmtp.Scanner().feed(bad)


# --- libzmq --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 300])
def test_messages_pass_both_ways_as_the_connecting_side(
    context: zmq.Context[zmq.Socket[bytes]], path: str, count: int
) -> None:
    """What a DEALER of ours sends and gets is what a kernel's ROUTER gets and sends, whatever the sizes."""
    with context.socket(zmq.ROUTER) as router:
        router.rcvtimeo = int(PATIENCE * 1000)
        router.bind(f"ipc://{path}")
        ours = connected(path, zmtp.Engine(b"DEALER", b"me", connecting=True))
        frames = [bytes([n % 251]) * SIZES[n % len(SIZES)] for n in range(min(count, 12))] + [b"x"] * max(
            0, count - 12
        )
        ours.send(*frames)
        assert router.recv_multipart() == [b"me", *frames]
        router.send_multipart([b"me", *frames])
        assert ours.receive() == frames
        ours.sock.close()


@pytest.mark.parametrize("kind", [zmq.DEALER, zmq.REQ, zmq.ROUTER])
def test_messages_pass_both_ways_as_the_bound_side(
    context: zmq.Context[zmq.Socket[bytes]], path: str, kind: int
) -> None:
    """Every socket that may talk to a ROUTER may talk to ours."""
    with context.socket(kind) as client:
        client.rcvtimeo = int(PATIENCE * 1000)
        client.setsockopt(zmq.IDENTITY, b"client-1")
        client.connect(f"ipc://{path}")
        with accepted(path, zmtp.Engine(b"ROUTER", b"router")) as ours:
            ours.until_ready()
            assert (ours.engine.identity, ours.engine.minor) == (b"client-1", 1)
            prefix = [b"router"] if kind == zmq.ROUTER else []
            frames = [b"z" * size for size in SIZES]
            client.send_multipart([*prefix, *frames])
            empty = [b""] if kind == zmq.REQ else []
            assert ours.receive() == [*empty, *frames]
            ours.send(*empty, *frames)
            assert client.recv_multipart() == [*prefix, *frames]
            ours.sock.close()


def test_subscriptions_come_as_commands_and_pings_are_answered(
    context: zmq.Context[zmq.Socket[bytes]], path: str
) -> None:
    """A subscriber that is misunderstood hears nothing; one that pings and gets no answer leaves."""
    with context.socket(zmq.SUB) as client:
        client.rcvtimeo = int(PATIENCE * 1000)
        client.heartbeat_ivl, client.heartbeat_timeout = 50, 200
        client.connect(f"ipc://{path}")
        client.subscribe(b"ab")
        with accepted(path, zmtp.Engine(b"XPUB")) as ours:
            while (b"SUBSCRIBE", b"ab") not in ours.commands or len(ours.commands) < 10:
                ours.read()
            client.unsubscribe(b"ab")
            while (b"CANCEL", b"ab") not in ours.commands:
                ours.read()
            ours.send(b"ab", b"still there")
            client.subscribe(b"ab")
            while ours.commands[-1] != (b"SUBSCRIBE", b"ab"):
                ours.read()
            ours.send(b"ab", b"news")
            assert client.recv_multipart()[0] == b"ab"
            ours.sock.close()


def test_a_peer_of_3_0_is_understood() -> None:
    """Older libraries, as JVMs have them, send subscriptions as messages and know no PING."""
    greeting = zmtp.SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
    engine = zmtp.Engine(b"XPUB")
    data = greeting + zmtp.ready(b"SUB") + b"\0\3\1ab"
    events = [event for at in range(len(data)) for event in engine.feed(data[at : at + 1])]
    assert engine.minor == 0
    message = b"".join(bytes(body) for name, body, _ in events if not name)
    assert zmtp.subscription(zmtp.split(message)[0]) == (True, b"ab")
    assert zmtp.subscription(b"\0ab") == (False, b"ab")
    assert zmtp.subscription(b"ab") is None
