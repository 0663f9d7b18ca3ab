"""A bare-hands server for the tests of what runs on hosts: starts the bridge as ssh/ does and speaks the control protocol."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distributed_provisioner.ssh import bootstrap

REMOTE = Path(bootstrap.__file__).parents[1] / "remote"
MODULES = (
    "admission",
    "channels",
    "housekeeping",
    "listener",
    "login",
    "places",
    "reasons",
    "relays",
    "server_listener",
)

STUB_KERNEL = """
import json, os, socket, sys, time
info = json.load(open(sys.argv[1]))
held = []
for channel in ("shell", "iopub", "stdin", "control", "hb"):
    port = info[channel + "_port"]
    if info["transport"] == "ipc":
        s = socket.socket(socket.AF_UNIX); s.bind(f"{info['ip']}-{port}")
    else:
        s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((info["ip"], port))
    s.listen(); held.append(s)
exec(sys.argv[2] if len(sys.argv) > 2 else "")
time.sleep(600)
"""
"""Binds the five sockets of its connection file, runs argv[2], and waits: a kernel as far as the listener can see."""


def stub_argv(code: str = "", *more: str) -> list[str]:
    """argv of a kernelspec for the stub kernel."""
    return ["python", "-c", STUB_KERNEL, "{connection_file}", code, *more]


class ListenerError(Exception):
    """The `error` of a reply."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.kind = error["type"]
        self.fields = error


class Bridge:
    """A connection to the listener of this user, whose home is `home`."""

    def __init__(
        self,
        home: Path,
        python: str = sys.executable,
        owner: str = "me",
        client: str = "c",
        **environment: str,
    ) -> None:
        marker = bootstrap.new_marker()
        self.process = subprocess.Popen(
            [python, *bootstrap.local_command(marker)[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "HOME": str(home), **environment},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        self.input.write(bootstrap.preface())
        self.input.flush()
        while self.output.readline().strip() != marker.encode():
            assert self.process.poll() is None
        self.replies: dict[int, queue.Queue[dict[str, Any]]] = {}
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.frames: dict[int, queue.Queue[bytes]] = collections.defaultdict(queue.Queue)
        """What comes on each channel; b"" is its end."""
        self.number = 0
        threading.Thread(target=self._read, daemon=True).start()
        self.welcome = self.request("hello", protocol=1, owner=owner, client=client)

    def _read(self) -> None:
        with contextlib.suppress(ValueError):
            while first := self.output.read(1):
                if first == b"\0":
                    channel, length = struct.unpack("!II", self.output.read(8))
                    self.frames[channel].put(self.output.read(length))
                    continue
                message = json.loads(first + self.output.readline())
                if "event" in message:
                    self.events.put(message)
                else:
                    self.replies[message["id"]].put(message)

    def send(self, op: str, **parameters: Any) -> int:
        """Send a request; `reply` waits for the answer."""
        self.number += 1
        self.replies[self.number] = queue.Queue()
        self.input.write(json.dumps({**parameters, "id": self.number, "op": op}).encode() + b"\n")
        self.input.flush()
        return self.number

    def reply(self, number: int, timeout: float = 30) -> dict[str, Any]:
        message = self.replies[number].get(timeout=timeout)
        if "error" in message:
            raise ListenerError(message["error"])
        result: dict[str, Any] = message["result"]
        return result

    def request(self, op: str, **parameters: Any) -> dict[str, Any]:
        return self.reply(self.send(op, **parameters))

    def launch(
        self, argv: list[str], kernel_id: str = "k", generation: int = 1, **parameters: Any
    ) -> dict[str, Any]:
        """Launch; the parameters are those of the protocol, with defaults."""
        return self.request("launch", **launch_parameters(argv, kernel_id, generation, **parameters))

    def event(self, timeout: float = 10) -> dict[str, Any]:
        return self.events.get(timeout=timeout)

    def send_frame(self, channel: int, data: bytes = b"") -> None:
        """Bytes for a channel; none close it."""
        self.input.write(b"\0" + struct.pack("!II", channel, len(data)) + data)
        self.input.flush()

    def close(self) -> None:
        """End the bridge, as the end of an SSH connection does."""
        self.input.close()
        self.process.wait(10)
        self.output.close()


def launch_parameters(
    argv: list[str], kernel_id: str = "k", generation: int = 1, **parameters: Any
) -> dict[str, Any]:
    return {
        "kernel_id": kernel_id,
        "generation": generation,
        "argv": argv,
        "key": "the-signing-key",
        "transport": "ipc",
        "remote_python": sys.executable,
        "launch_timeout": 20,
        **parameters,
    }


@contextlib.contextmanager
def listener_home(directory: Path) -> Iterator[Path]:
    """A home whose listener, and whatever it has started, is ended afterwards."""
    directory.mkdir(exist_ok=True)
    try:
        yield directory
    finally:
        for record in directory.glob(".local/state/distributed-provisioner/*/listener-1.json"):
            told = json.loads(record.read_text())
            if "pid" not in told:
                continue
            kill(told["pid"])  # first, as it starts relays again
            for path in Path(told["directory"]).glob("*/record"):
                with contextlib.suppress(OSError, ValueError):
                    values = json.loads(path.read_text())
                    if values["relay_pid"]:
                        kill(values["relay_pid"])
                    os.killpg(values["pgid"], signal.SIGKILL)
            subprocess.run(["rm", "-rf", told["directory"]], check=True)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def changed_listener(home: Path, change: str, **environment: str) -> Iterator[int]:
    """A listener that bridges of `home` find; `change` is Python that runs before it serves. Gives its pid."""
    code = f"import sys; sys.path.insert(0, {str(REMOTE)!r}); import {', '.join(MODULES)}; {change}; "
    digest = hashlib.sha256(zlib.decompress(bootstrap.preface()[8:])).hexdigest()
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code + f"listener.serve({digest!r}, {writer})"],
        pass_fds=(writer,),
        env={**os.environ, "HOME": str(home), **environment},
        start_new_session=True,
    )
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"+"
        yield process.pid
    finally:
        os.close(reader)
        process.kill()
        process.wait()


def until(condition: Callable[[], Any], timeout: float = 10) -> Any:
    """The first true answer, asked for every 20 ms."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return answer


def lives(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False
