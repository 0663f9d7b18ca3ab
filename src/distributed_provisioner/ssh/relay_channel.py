"""The way to a kernel's relay: a channel of the SSH connection, or of the control channel where sshd forwards nothing, or a socket here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncssh

from ..models import CHANNELS, KernelIdentity, RemoteProcess
from ..traffic import Author, Bridge, NearEnd, Receiver, Writer, portioned
from .forward import Attachment, checked, in_thread
from .line import Line

T = TypeVar("T")

WRITE_BUFFER = 512 << 10
"""Bytes that may wait for a channel before no more is written."""

_opening: set[asyncio.Future[Any]] = set()


class RelayAttachment(Attachment):
    """Near ends that a bridge serves. They outlive the process that is the kernel: see `renew`."""

    def __init__(self, prefix: str, bridge: Bridge, identity: KernelIdentity, process: RemoteProcess) -> None:
        super().__init__("ipc", prefix, {channel: number for number, channel in enumerate(CHANNELS, 1)})
        self.process = process
        self._bridge = bridge
        self._identity = identity
        self._ends: list[NearEnd] = []

    async def listen(self) -> None:
        """Make the near ends. Raises ConfigurationError or OSError."""
        prefix = checked(self.ip)
        self._ends = [NearEnd(f"{prefix}-{number}") for number, _ in enumerate(CHANNELS, 1)]
        await in_thread([end.bind for end in self._ends])
        for end, protocol in zip(self._ends, self._bridge.protocols(), strict=True):
            await end.listen(protocol)

    def can_become(self, process: RemoteProcess) -> bool:
        """Whether a later process of this kernel is reached through the same relay."""
        return bool(process.relay) and (process.host, process.relay) == (
            self.process.host,
            self.process.relay,
        )

    async def renew(self) -> None:
        """Make the near ends anew, which Jupyter removes at a restart. Who is connected stays connected."""
        for end in self._ends:
            end.close()
        await self.listen()

    def relaunched(self, process: RemoteProcess, identity: KernelIdentity) -> None:
        """Another process is the kernel from now on."""
        self.process, self._identity = process, identity
        self._bridge.relaunched()

    def resume(self, line: Line) -> None:
        def opener(receiver: Receiver) -> Awaitable[Writer]:
            return open_stream(line, self.process, self._identity.kernel_id, receiver)

        self._bridge.resume(opener)

    def suspend(self) -> None:
        self._bridge.suspend()

    def rest(self) -> None:
        """The kernel has ended; its clients stay connected until another one is there, or `close()`."""
        self._bridge.rest()

    async def finish(self, why: str) -> None:
        await self._bridge.drain()
        if why:
            self._bridge.say(why)

    async def close(self) -> None:
        self._bridge.close()
        for end in self._ends:
            end.close()
        if self.on_close is not None:
            self.on_close(self)
            self.on_close = None
        await in_thread([end.unlink for end in self._ends])

    @property
    def count(self) -> int:
        return self._bridge.count


async def attach_relay(process: RemoteProcess, prefix: str, identity: KernelIdentity) -> RelayAttachment:
    """Near ends for a kernel with a relay, not connected to it yet.

    Raises:
        ConfigurationError: the path is too long for a Unix socket.
        OSError: a socket cannot be made there.
    """
    author = Author(identity.key, identity.signature_scheme)
    bridge = Bridge(author, str(process.host), f"kernel={identity.kernel_id[:8]} host={process.host}")
    attachment = RelayAttachment(prefix, bridge, identity, process)
    try:
        await attachment.listen()
    except BaseException:
        await attachment.close()
        raise
    return attachment


async def open_stream(line: Line, process: RemoteProcess, kernel_id: str, receiver: Receiver) -> Writer:
    """Raises asyncssh.Error, OSError, ProvisionerError."""
    if line.connection is None and line.forwards_paths:
        return await _local_stream(process.relay, receiver)
    if line.connection is not None and line.forwards_paths:
        opening = line.connection.create_unix_connection(lambda: _Channel(receiver), process.relay)
        channel, session = await _closed_if_late(opening, lambda pair: pair[0].close())
        channel.set_write_buffer_limits(WRITE_BUFFER)
        assert isinstance(session, _Channel)
        return session
    return await _closed_if_late(
        line.control.open_channel(kernel_id, process.generation, receiver), lambda writer: writer.close()
    )


async def _local_stream(path: str, receiver: Receiver) -> Writer:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    sock = portioned(socket.socket(socket.AF_UNIX))
    try:
        await loop.sock_connect(sock, path)
        _, protocol = await loop.create_unix_connection(lambda: _Socket(receiver), sock=sock)
    except BaseException:
        sock.close()
        raise
    return protocol


async def _closed_if_late(opening: Awaitable[T], close: Callable[[T], None]) -> T:
    """Never cancelled: a channel that opens after all must be closed, or it stays open on the host."""
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:

        def late(done: asyncio.Future[T]) -> None:
            _opening.discard(task)
            if not done.cancelled() and done.exception() is None:
                close(done.result())

        _opening.add(task)
        task.add_done_callback(late)
        raise


class _End:
    """What asyncssh's sessions and asyncio's protocols have in common."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._writer: asyncssh.SSHUNIXChannel[bytes] | asyncio.Transport | None = None

    def pause_writing(self) -> None:
        self._receiver.pause_writing()

    def resume_writing(self) -> None:
        self._receiver.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiver.lost(exc)

    def write(self, data: bytes | memoryview) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(data)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Channel(_End, asyncssh.SSHUNIXSession[bytes]):
    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        self._writer = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._receiver.data_received(data)

    def eof_received(self) -> bool:
        return False


class _Socket(_End, asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._writer = transport
        transport.set_write_buffer_limits(WRITE_BUFFER)

    def data_received(self, data: bytes) -> None:
        self._receiver.data_received(data)
