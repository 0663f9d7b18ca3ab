"""Hosts for `scale`, all in this one process: real SSH servers (asyncssh), and behind them stubs of the listener, the relay and the kernel.

The stubs speak the control protocol and the relay's records as the real ones do, so that a server cannot tell the difference; a kernel
is a few hundred bytes here, answers `kernel_info_request`, and does nothing else.

    python -m benchmarks._stub_hosts COUNT DIRECTORY

DIRECTORY gets a client's `.ssh`, then one line of JSON is printed (the ports). The end of standard input ends the process.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh

from benchmarks._world import REMOTE

sys.path.insert(
    0, str(REMOTE)
)  # what both ends of a relay share is no package: its files import each other by name

import relay_wire as wire
import zmtp

DELIMITER = b"<IDS|MSG>"
KERNEL_INFO = {
    "status": "ok", "protocol_version": "5.4", "implementation": "stub", "implementation_version": "1", "banner": "",
    "language_info": {"name": "none", "version": "1", "mimetype": "text/plain", "file_extension": ".txt"},
}  # fmt: skip


class StubKernel:
    """A kernel and its relay, in as far as they answer."""

    def __init__(self, request: dict[str, Any], number: int) -> None:
        self.generation = request["generation"]
        self.pid = 1000 + number
        self.key = str(request["key"])
        self.relay = secrets.token_hex(16)
        self.status = {
            "kernel_id": request["kernel_id"], "generation": self.generation, "state": "running", "pid": self.pid, "start": 1,
            "kernel_pid": self.pid, "pgid": self.pid, "transport": "ipc", "ip": f"/tmp/dp-stub/{number}/k", "directory": "/",
            "ports": {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}, "log": "", "relay": f"/tmp/dp-stub/{number}/t",
        }  # fmt: skip

    def launched(self) -> dict[str, Any]:
        """The reply to `launch`."""
        phases = {"environment": 0.0, "spawn": 0.0, "ready": 0.0}
        more: dict[str, Any] = {"envelope": None, "notes": [], "phases": phases}
        return {**self.status, "key": self.key, "signature_scheme": "hmac-sha256", **more}

    def answers(self, message: bytes) -> list[tuple[int, bytes]]:
        """What is said about a request: (kind of channel, wire bytes of a message)."""
        frames = zmtp.split(message)
        header = json.loads(frames[frames.index(DELIMITER) + 2])
        said = [(wire.IOPUB, self._message("status", header, {"execution_state": "busy"}))]
        if header["msg_type"] == "kernel_info_request":
            said.append((wire.SHELL, self._message("kernel_info_reply", header, KERNEL_INFO)))
        said.append((wire.IOPUB, self._message("status", header, {"execution_state": "idle"})))
        return said

    def _message(self, msg_type: str, parent: dict[str, Any], content: dict[str, Any]) -> bytes:
        header = {
            "msg_id": secrets.token_hex(16), "msg_type": msg_type, "username": "", "session": self.relay, "version": "5.4",
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }  # fmt: skip
        parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
        signature = hmac.new(self.key.encode(), b"".join(parts), hashlib.sha256).hexdigest().encode()
        topic = [] if msg_type.endswith("_reply") else [msg_type.encode()]
        return b"".join(zmtp.encode([*topic, DELIMITER, signature, *parts]))


class StubRelay(asyncssh.SSHUNIXSession[bytes]):
    """A channel to a kernel's relay."""

    def __init__(self, kernel: StubKernel | None) -> None:
        self._kernel = kernel
        self._records = wire.Records()
        self._have = self._number = 0
        self._received, self._consumed = [0] * 4, [0] * 4
        self._channel: asyncssh.SSHUNIXChannel[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._kernel is None or self._channel is None:
            return
        out = b"".join(self._obey(self._kernel, record) for record in self._records.feed(data))
        if out:
            self._channel.write(out)

    def eof_received(self) -> bool:
        return False

    def _obey(self, kernel: StubKernel, record: wire.Record) -> bytes:
        kind, _, number, identity, payload = record
        if kind == wire.HELLO:
            welcome = {
                "protocol": wire.PROTOCOL,
                "relay": kernel.relay,
                "have": self._have,
                "received": self._received,
            }
            welcome |= {
                "backlog": 0,
                "resend_from": 1,
                "clients": [],
                "execution_state": "idle",
                "kernel": "connected",
            }
            return wire.told(wire.WELCOME, {**welcome, "missed": {"messages": 0, "bytes": 0}})
        if kind > wire.IOPUB:
            return b""
        self._have = number
        self._received[kind] += len(payload)
        out = []
        for channel, message in kernel.answers(bytes(payload)):  # small requests only: each is one piece
            self._number += 1
            to = b"" if channel == wire.IOPUB else identity
            out.append(wire.record(channel, self._number, wire.ENDS, to, message))
        return b"".join([*out, wire.ack(self._have, self._received)])


class StubListener(asyncssh.SSHServerSession[bytes]):
    """The session of the control channel: what would be a shell, Python, a bridge and the listener."""

    def __init__(self, host: StubHost) -> None:
        self._host = host
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._data = bytearray()
        self._preface = -1
        """Bytes of the shipped source that are still to come; -1: how many there are is not known yet."""

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def exec_requested(self, command: str | bytes) -> bool:
        text = command if isinstance(command, str) else command.decode()
        found = re.search(r"bridge ([0-9a-f]{32})", text)
        self._marker = found[1] if found else ""
        return bool(found)

    def session_started(self) -> None:
        assert self._channel is not None
        self._channel.write(f"\n{self._marker}\n".encode())

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._data += data
        if self._preface < 0 and len(self._data) >= 8:
            self._preface = int(self._data[:8])
            del self._data[:8]
        if self._preface:
            taken = min(max(self._preface, 0), len(self._data))
            del self._data[:taken]
            self._preface -= taken if self._preface > 0 else 0
            if self._preface:
                return
        *lines, rest = bytes(self._data).split(b"\n")
        self._data = bytearray(rest)
        assert self._channel is not None
        if lines:
            self._channel.write(b"".join(self._answer(json.loads(line)) for line in lines))

    def eof_received(self) -> bool:
        return False

    def _answer(self, request: dict[str, Any]) -> bytes:
        number, op = request.pop("id"), request.pop("op")
        try:
            answer = {"id": number, "result": self._host.obey(op, request)}
        except KeyError:
            error = {"type": "unknown-kernel", "message": "there is no such kernel here"}
            answer = {"id": number, "error": error}
        return json.dumps(answer).encode() + b"\n"


class StubHost:
    """One host: its kernels, and who may log in."""

    def __init__(self, number: int) -> None:
        self.name = f"stub{number}"
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.kernels: dict[str, StubKernel] = {}
        self._bundles: set[str] = set()
        self._launched = 0

    def obey(self, op: str, request: dict[str, Any]) -> dict[str, Any]:
        """Raises KeyError for a kernel that is not there, and for an operation that no stub knows."""
        answer: Callable[[dict[str, Any]], dict[str, Any]] | None = getattr(self, f"op_{op}", None)
        return {} if answer is None else answer(request)

    def op_hello(self, request: dict[str, Any]) -> dict[str, Any]:
        return {
            "protocol": request["protocol"], "version": "stub", "pid": os.getpid(), "start": 1, "hostname": self.name,
            "user": getpass.getuser(), "uid": os.getuid(), "home": "/", "platform": "linux", "python": "3.11.0",
            "identity": self.name, "boot_id": self.name, "directory": "/tmp/dp-stub", "socket": "/tmp/dp-stub/listener",
            "bundles": sorted(self._bundles), "detached": True, "notes": [], "drained": False, "drain_reason": "",
            "kernels": [kernel.status for kernel in self.kernels.values()],
        }  # fmt: skip

    def op_ship(self, request: dict[str, Any]) -> dict[str, Any]:
        self._bundles.add(request["bundle"])
        return {}

    def op_launch(self, request: dict[str, Any]) -> dict[str, Any]:
        self._launched += 1
        kernel = self.kernels[request["kernel_id"]] = StubKernel(request, self._launched)
        return kernel.launched()

    def op_attach(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"kernels": [self.kernels[wanted["kernel_id"]].status for wanted in request["kernels"]]}

    def op_end(self, request: dict[str, Any]) -> dict[str, Any]:
        self.kernels[request["kernel_id"]].status["state"] = "exited"
        return {"code": -9, "reason": "signal", "detail": "killed by SIGKILL"}

    def op_forget(self, request: dict[str, Any]) -> dict[str, Any]:
        del self.kernels[request["kernel_id"]]
        return {}

    op_cancel = op_forget

    def relay_at(self, path: str) -> StubRelay:
        """A channel to a Unix socket of this host: of a relay, or of the listener, which is only asked whether it is there."""
        kernels = (kernel for kernel in self.kernels.values() if kernel.status["relay"] == path)
        return StubRelay(next(kernels, None))

    async def listen(self, client_key: asyncssh.SSHKey) -> int:
        """Accept connections on some port of 127.0.0.1, for the owner of this key."""
        acceptor = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=lambda: _Server(self), server_host_keys=[self.key], encoding=None,
            authorized_client_keys=asyncssh.import_authorized_keys(client_key.export_public_key().decode()),
            agent_forwarding=False, backlog=128,
        )  # fmt: skip
        return acceptor.get_port()


class _Server(asyncssh.SSHServer):
    def __init__(self, host: StubHost) -> None:
        self._host = host

    def session_requested(self) -> StubListener:
        return StubListener(self._host)

    def unix_connection_requested(self, dest_path: str) -> StubRelay:
        return self._host.relay_at(dest_path)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "nobody listens there")


async def serve(count: int, directory: Path) -> None:
    """Be `count` hosts until standard input ends."""
    client_key = asyncssh.generate_private_key("ssh-ed25519")
    hosts = [StubHost(number) for number in range(1, count + 1)]
    ports = [await host.listen(client_key) for host in hosts]
    write_client(directory, client_key, hosts, ports)
    print(json.dumps({"ports": ports}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    left = sum(len(host.kernels) for host in hosts)
    print(json.dumps({"left": left, "cpu": time.process_time()}), flush=True)


def write_client(directory: Path, key: asyncssh.SSHKey, hosts: list[StubHost], ports: list[int]) -> None:
    """What a client's HOME needs to log in to them."""
    ssh = directory / ".ssh"
    ssh.mkdir(mode=0o700, parents=True)
    key.write_private_key(ssh / "id_ed25519")
    os.chmod(ssh / "id_ed25519", 0o600)
    known = (
        f"[127.0.0.1]:{port} {host.key.export_public_key().decode().strip()}\n"
        for host, port in zip(hosts, ports, strict=True)
    )
    (ssh / "known_hosts").write_text("".join(known))
    lines = [
        "Host 127.0.0.1",
        f"User {getpass.getuser()}",
        f"IdentityFile {ssh / 'id_ed25519'}",
        "IdentitiesOnly yes",
    ]
    lines += [f"UserKnownHostsFile {ssh / 'known_hosts'}", "StrictHostKeyChecking yes", ""]
    (ssh / "config").write_text("\n".join(lines))


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
