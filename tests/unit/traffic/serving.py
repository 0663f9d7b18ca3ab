"""A bridge on the I/O loop, with near ends in a directory of its own, and a stream to a relay that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import zmq
from jupyter_client.blocking.client import BlockingKernelClient

from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import CHANNELS
from distributed_provisioner.traffic import Author, Bridge, NearEnd, Receiver, Writer

from ..remote.relaying import KEY, FakeKernel, RelayProcess, wait_for

T = TypeVar("T")

SOCKETS = {"shell": zmq.DEALER, "control": zmq.DEALER, "stdin": zmq.DEALER, "iopub": zmq.SUB, "hb": zmq.REQ}


class Stream(asyncio.Protocol):
    """Bytes to the relay's socket."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.receiver.data_received(data)

    def pause_writing(self) -> None:
        self.receiver.pause_writing()

    def resume_writing(self) -> None:
        self.receiver.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.receiver.lost(exc)

    def write(self, data: bytes | memoryview) -> None:
        self.transport.write(data)

    def close(self) -> None:
        self.transport.close()


class Near:
    """The server's half for one relay, and clients of it."""

    def __init__(self, path: str, key: str = KEY, host: str = "host1") -> None:
        self.path = path
        self.directory = Path(tempfile.mkdtemp(prefix="dpn-", dir="/tmp"))
        self.prefix = str(self.directory / "k")
        self.streams: list[Stream] = []
        self.context = zmq.Context()
        self.sockets: list[zmq.Socket[bytes]] = []
        self.ends: list[NearEnd] = []
        self.bridge: Bridge = self.run(self._make(key, host))

    def run(self, coro: Any, timeout: float = 30) -> Any:
        return IOThread.current().submit(coro).result(timeout)

    def call(self, function: Callable[[], T]) -> T:
        async def work() -> T:
            return function()

        found: T = self.run(work())
        return found

    async def _make(self, key: str, host: str) -> Bridge:
        bridge = Bridge(Author(key), host, "test")
        await self._listen(bridge)
        bridge.resume(self.open)
        return bridge

    async def _listen(self, bridge: Bridge) -> None:
        self.ends = [NearEnd(f"{self.prefix}-{number}") for number in range(1, 6)]
        for end, protocol in zip(self.ends, bridge.protocols(), strict=True):
            end.bind()
            await end.listen(protocol)

    async def open(self, receiver: Receiver) -> Writer:
        _, stream = await asyncio.get_running_loop().create_unix_connection(
            lambda: Stream(receiver), self.path
        )
        self.streams.append(stream)
        return stream

    def cut(self) -> None:
        """Break the stream; another one is opened at once."""
        self.call(self.streams[-1].transport.abort)

    def suspend(self) -> None:
        self.call(self.bridge.suspend)

    def resume(self) -> None:
        self.call(lambda: self.bridge.resume(self.open))

    def is_up(self) -> bool:
        return bool(self.bridge.is_up)

    def connect(
        self, channel: str, identity: bytes = b"", *topics: bytes, **options: Any
    ) -> zmq.Socket[bytes]:
        """A client's socket; a SUB subscribes to everything unless told otherwise."""
        sock = self.context.socket(options.pop("socket_type", SOCKETS[channel]))
        self.sockets.append(sock)
        sock.linger = 0
        sock.rcvtimeo = sock.sndtimeo = options.pop("timeout", 20000)
        for name, value in options.items():
            setattr(sock, name, value)
        if identity:
            sock.identity = identity
        for topic in (topics or (b"",)) if channel == "iopub" else ():
            sock.subscribe(topic)
        sock.connect(f"ipc://{self.prefix}-{CHANNELS.index(channel) + 1}")
        return sock

    def subscriber(self, *topics: bytes, **options: Any) -> zmq.Socket[bytes]:
        """One whose subscription is in force."""
        before = len(self.bridge._publisher._live)
        sock = self.connect("iopub", b"", *topics, **options)
        wait_for(lambda: len(self.bridge._publisher._live) > before)
        return sock

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.context.term()

        def end() -> None:
            self.bridge.close()
            for near in self.ends:
                near.close()
                near.unlink()

        self.call(end)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def real_kernel() -> Iterator[dict[str, Any]]:
    """An IPython kernel; its connection info."""
    directory = Path(tempfile.mkdtemp(prefix="dpk-", dir="/tmp"))
    info = {
        "transport": "ipc", "ip": str(directory / "k"), "key": KEY, "signature_scheme": "hmac-sha256",
        **{f"{channel}_port": number for number, channel in enumerate(CHANNELS, 1)},
    }  # fmt: skip
    file = directory / "connection.json"
    file.write_text(json.dumps(info))
    process = subprocess.Popen(
        [sys.executable, "-m", "ipykernel_launcher", "-f", str(file), f"--IPKernelApp.parent_handle={0}"],
        cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: all((directory / f"k-{number}").exists() for number in range(1, 6)))
        yield {**info, "pid": process.pid}
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def client_of(near: Near) -> BlockingKernelClient:
    client = BlockingKernelClient()
    info: Any = {
        "transport": "ipc", "ip": near.prefix, "key": KEY.encode(), "signature_scheme": "hmac-sha256",
        **{f"{channel}_port": number for number, channel in enumerate(CHANNELS, 1)},
    }  # fmt: skip
    client.load_connection_info(info)
    client.start_channels()
    return client


@contextlib.contextmanager
def served(limit: int = 64 << 20) -> Iterator[tuple[Near, FakeKernel, RelayProcess]]:
    """A kernel made of sockets, its relay, and the server's half."""
    kernel, relay = FakeKernel(), RelayProcess(limit)
    try:
        assert relay.to_kernel(kernel.info) == {"tell": "connected"}
        kernel.subscribed()
        near = Near(relay.path)
        try:
            wait_for(near.is_up)
            yield near, kernel, relay
        finally:
            near.close()
    finally:
        relay.stop()
        kernel.stop()


@contextlib.contextmanager
def real(limit: int = 64 << 20) -> Iterator[tuple[Near, RelayProcess, dict[str, Any]]]:
    """The same with an IPython kernel."""
    with real_kernel() as info:
        relay = RelayProcess(limit)
        try:
            assert relay.to_kernel(info) == {"tell": "connected"}
            near = Near(relay.path)
            try:
                yield near, relay, info
            finally:
                near.close()
        finally:
            relay.stop()


def until(client: BlockingKernelClient, kind: str, timeout: float = 30) -> list[dict[str, Any]]:
    """iopub messages up to the first one of this kind."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + timeout
    while not found or found[-1]["msg_type"] != kind:
        found.append(client.get_iopub_msg(timeout=deadline - time.monotonic()))
    return found


STATUS_PARENT = {"msg_id": "m1", "msg_type": "execute_request", "session": "s"}


def busy(kernel: FakeKernel, state: str = "busy") -> None:
    kernel.publish("status", {"execution_state": state}, STATUS_PARENT)


def session_of(frames: list[bytes]) -> str:
    """In whose name a message is."""
    return str(json.loads(frames[frames.index(b"<IDS|MSG>") + 2])["session"])


def opened(frames: list[bytes]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Type, parent and content of one of our own messages, whose signature is looked at."""
    start = frames.index(b"<IDS|MSG>")
    signed = hmac.new(KEY.encode(), b"".join(frames[start + 2 :]), hashlib.sha256).hexdigest().encode()
    assert frames[start + 1] == signed
    header, parent, _, content = map(json.loads, frames[start + 2 : start + 6])
    return header["msg_type"], parent, content
