"""A relay as a process of its own, a kernel made of ZMQ sockets, and a server's side that is as simple as can be."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq

import distributed_provisioner

REMOTE = Path(distributed_provisioner.__file__).parent / "remote"
if TYPE_CHECKING:
    import relay_wire
    import zmtp
else:
    sys.path.append(str(REMOTE))
    import relay_wire
    import zmtp

__all__ = [
    "PATIENCE",
    "REMOTE",
    "FakeKernel",
    "RelayProcess",
    "Server",
    "contents",
    "relay_wire",
    "relayed",
    "wait_for",
    "zmtp",
]

PATIENCE = 20.0
KEY = "a0436f6c-1916-498b-8eb9-e81ab9368e84"
RUN = "import sys; sys.path.insert(0, sys.argv[1]); import relay; relay.serve(sys.argv[2], int(sys.argv[3]), sys.argv[4:])"


class RelayProcess:
    """A relay in a short directory of its own."""

    def __init__(
        self,
        limit: int = 64 << 20,
        wrapper: tuple[str, ...] = (),
        spool: Path | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dpr-", dir="/tmp"))
        self.path = str(self.directory / "t")
        self.servers: list[Server] = []
        self.process = subprocess.Popen(
            [
                *wrapper, sys.executable, "-I", "-S", "-c", RUN,
                str(REMOTE), self.path, str(limit), str(spool or self.directory),
            ],
            env={}, cwd="/", pass_fds=pass_fds,
        )  # fmt: skip
        wait_for(lambda: os.path.exists(self.path))

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        return sock

    def tell(self, what: dict[str, Any]) -> dict[str, Any]:
        """Ask as a listener does, and get the answer."""
        with self.connect() as sock:
            sock.settimeout(PATIENCE)
            sock.sendall(relay_wire.told(relay_wire.HELLO, {"protocol": 1, "role": "listener"}))
            sock.sendall(relay_wire.told(relay_wire.TELL, what))
            records = relay_wire.Records()
            while data := sock.recv(65536):
                for _, _, _, _, payload in records.feed(data):
                    return relay_wire.loads(payload)
        return {}

    def to_kernel(self, info: dict[str, Any]) -> dict[str, Any]:
        return self.tell({"tell": "connect", "info": info, "name": "k"})

    def status(self) -> dict[str, Any]:
        return self.tell({"tell": "status"})

    def memory(self) -> int:
        """Resident bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024

    def stop(self) -> None:
        for server in self.servers:
            server.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class FakeKernel:
    """The four sockets of a kernel, bound by libzmq."""

    def __init__(self, transport: str = "ipc", ip: str = "127.0.0.1", at: Path | None = None) -> None:
        self.context = zmq.Context()
        self.directory = at or Path(tempfile.mkdtemp(prefix="dpk-", dir="/tmp"))
        self.info: dict[str, Any] = {
            "transport": transport, "ip": str(self.directory / "k") if transport == "ipc" else ip, "key": KEY,
            "signature_scheme": "hmac-sha256",
        }  # fmt: skip
        self.sockets: dict[str, zmq.Socket[bytes]] = {}
        for number, name in enumerate(("shell", "control", "stdin", "iopub"), 1):
            sock = self.sockets[name] = self.context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
            sock.linger = 0
            sock.rcvtimeo = sock.sndtimeo = int(PATIENCE * 1000)
            if name == "iopub":
                sock.sndhwm = 0
            else:
                sock.router_handover = True
                sock.sndhwm = 0
            if transport == "ipc":
                sock.bind(f"ipc://{self.info['ip']}-{number}")
                self.info[f"{name}_port"] = number
            else:
                sock.ipv6 = ":" in ip
                address = f"[{ip}]" if ":" in ip else ip
                self.info[f"{name}_port"] = sock.bind_to_random_port(f"tcp://{address}")

    def receive(self, name: str = "shell") -> list[bytes]:
        return self.sockets[name].recv_multipart()

    def send(self, name: str, *frames: bytes) -> None:
        self.sockets[name].send_multipart(frames)

    def publish(self, kind: str, content: dict[str, Any], parent: dict[str, Any] | None = None) -> None:
        header = {"msg_id": secrets.token_hex(8), "msg_type": kind, "session": "s"}
        parts = [json.dumps(each).encode() for each in (header, parent or {}, {}, content)]
        self.send("iopub", f"kernel.k.{kind}".encode(), b"<IDS|MSG>", b"sig", *parts)

    def subscribed(self) -> None:
        assert self.sockets["iopub"].recv() == b"\x01"

    def stop(self) -> None:
        self.context.destroy(linger=0)
        shutil.rmtree(self.directory, ignore_errors=True)


class Server:
    """A server's side: takes pieces together to messages, acknowledges, remembers for a reconnection."""

    def __init__(self, relay: RelayProcess, role: str = "server", **hello: Any) -> None:
        self.relay, self.role, self.hello = relay, role, hello
        relay.servers.append(self)
        self.bridge = secrets.token_hex(16)
        self.have = self.number = 0
        self.coming, self.going = relay_wire.Credit(), relay_wire.Credit()
        self.messages: list[tuple[str, bytes, list[bytes]]] = []
        """(channel, identity, frames)"""
        self.numbers: dict[int, int] = {}
        self.partial: dict[tuple[int, bytes], bytearray] = {}
        self.told: list[dict[str, Any]] = []
        self.unacknowledged: list[tuple[int, bytes]] = []
        self.welcome: dict[str, Any] = {}
        self.flags: set[int] = set()
        self.consuming = True
        self.doubles = 0
        self.sock: socket.socket | None = None

    def connect(self) -> Server:
        self.close()
        self.sock = self.relay.connect()
        self.sock.settimeout(PATIENCE)
        self.records = relay_wire.Records()
        said = {
            "protocol": 1, "role": self.role, "bridge": self.bridge, "have": self.have, "received": self.coming.total,
            **self.hello,
        }  # fmt: skip
        self.welcome = {}
        self.sock.sendall(relay_wire.told(relay_wire.HELLO, said))
        self.until(lambda: bool(self.welcome))
        return self

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def send(self, channel: str, identity: bytes, *frames: bytes) -> None:
        kind = relay_wire.CHANNELS.index(channel)
        pieces = zmtp.encode(frames)
        for index, piece in enumerate(pieces):
            self.send_piece(kind, identity, bytes(piece), relay_wire.ENDS if index + 1 == len(pieces) else 0)

    def send_piece(
        self, kind: int, identity: bytes, piece: bytes, flags: int, careless: bool = False
    ) -> None:
        """Send when the window has room; `careless`: at once."""
        while self.sock is not None and not self.going.has_room(kind) and not careless:
            self.read(0.05)
        self.going.moved(kind, len(piece))
        self.number += 1
        made = relay_wire.record(kind, self.number, flags, identity, piece)
        self.unacknowledged.append((self.number, made))
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.sendall(made)

    def release(
        self, channel: str, identity: bytes = b"", given_up: bool = False, number: int | None = None
    ) -> None:
        assert self.sock is not None
        kind = relay_wire.CHANNELS.index(channel)
        flags = relay_wire.GIVEN_UP if given_up else relay_wire.DELIVERED
        self.sock.sendall(relay_wire.release(self.have if number is None else number, kind, identity, flags))

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Read until it is so. Raises TimeoutError, or EOFError where the stream ends."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.messages)} messages, have {self.have}")
            self.read(0.05)

    def read(self, seconds: float) -> bool:
        """Take what comes within `seconds`; False where nothing came."""
        assert self.sock is not None
        if not select.select([self.sock], [], [], seconds)[0]:
            return False
        data = self.sock.recv(1 << 18)
        if not data:
            raise EOFError
        for record in self.records.feed(data):
            self.take(*record)
        if self.consuming:
            self.acknowledge()
        return True

    def acknowledge(self) -> None:
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.sendall(relay_wire.ack(self.have, self.coming.consumed))

    def take(self, kind: int, flags: int, number: int, identity: bytes, payload: memoryview) -> None:
        if kind == relay_wire.WELCOME:
            self.welcomed(relay_wire.loads(payload))
        elif kind == relay_wire.ACK:
            self.going.acknowledged(relay_wire.counts(payload))
            self.acknowledged(number)
        elif kind == relay_wire.TELL:
            self.told.append(relay_wire.loads(payload))
        elif number <= self.have:
            self.doubles += 1
        else:
            self.have = number
            self.coming.moved(kind, len(payload))
            if self.consuming:
                self.coming.consume(kind, len(payload))
            self.flags.add(flags & ~relay_wire.ENDS)
            self.piece(kind, flags, identity, payload)

    def piece(self, kind: int, flags: int, identity: bytes, payload: memoryview) -> None:
        lane = (kind, identity)
        if flags & relay_wire.VOID:
            self.partial.pop(lane, None)
        if payload:
            self.partial.setdefault(lane, bytearray()).extend(payload)
        if flags & relay_wire.ENDS:
            message = zmtp.split(self.partial.pop(lane))
            self.messages.append((relay_wire.CHANNELS[kind], identity, message))

    def welcomed(self, welcome: dict[str, Any]) -> None:
        self.welcome = welcome
        self.acknowledged(welcome["have"])
        self.going.resume(welcome["received"])
        for _, made in self.unacknowledged:
            assert self.sock is not None
            self.going.moved(made[4], len(made) - relay_wire.HEAD.size - made[6])
            self.sock.sendall(made)

    def acknowledged(self, number: int) -> None:
        self.unacknowledged = [each for each in self.unacknowledged if each[0] > number]

    def on(self, channel: str) -> list[list[bytes]]:
        return [frames for name, _, frames in self.messages if name == channel]


def contents(frames: list[bytes]) -> dict[str, Any]:
    """The content of a message of Jupyter's."""
    found: dict[str, Any] = json.loads(frames[frames.index(b"<IDS|MSG>") + 5])
    return found


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never became so"
        time.sleep(0.01)


@contextlib.contextmanager
def relayed(
    limit: int = 64 << 20, transport: str = "ipc", ip: str = "127.0.0.1"
) -> Iterator[tuple[RelayProcess, FakeKernel]]:
    """A relay that is connected to a kernel made of sockets."""
    kernel = FakeKernel(transport, ip)
    relay = RelayProcess(limit)
    try:
        assert relay.to_kernel(kernel.info) == {"tell": "connected"}
        kernel.subscribed()
        yield relay, kernel
    finally:
        relay.stop()
        kernel.stop()
