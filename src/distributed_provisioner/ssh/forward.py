"""Near ends of a kernel's sockets: Unix sockets here, each connection to one of them a channel to the kernel's socket there.

The near ends outlive the SSH connection. Who connects while the host is away is kept waiting and is served when it is back: that is
quicker, and cheaper, than ZMQ's connecting again and again. Not asyncssh's own forwards, because there an error in one of them
(the far end closes at once) ends the whole SSH connection, and a near end that goes away early leaves its channel open.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence

import asyncssh

from ..errors import ConfigurationError
from ..models import CHANNELS, RemoteProcess
from ..traffic import NearEnd
from .beside import NoThread, beside
from .line import Line

LONGEST_PATH = 100
"""Bytes of a near end's path; macOS takes 103, Linux 107."""
MAX_WAITING = 64
"""Connections that are kept waiting at one near end while the host is away."""
MAX_EARLY = 256 << 10
"""Bytes that are kept of each of them."""

_log = logging.getLogger(__name__)

Connection = asyncssh.SSHClientConnection
Channel = asyncssh.SSHUNIXChannel[bytes] | asyncssh.SSHTCPChannel[bytes]
FarEnd = str | tuple[str, int]


class Attachment:
    """Where Jupyter reaches a kernel: `transport` (`ipc` or `tcp`), `ip` and `ports`, as in a connection file."""

    def __init__(
        self, transport: str, ip: str, ports: Mapping[str, int], forwards: list[Forward] | None = None
    ) -> None:
        self.transport = transport
        self.ip = ip
        self.ports = dict(ports)
        self._forwards = forwards or []
        self.on_close: Callable[[Attachment], None] | None = None

    def resume(self, line: Line) -> None:
        """The host is (again) reached by this line."""
        # Backwards, iopub before shell: what a cell prints is lost to those whose iopub is connected later than their shell.
        for forward in reversed(self._forwards):
            # Where paths are another user's, a path that its listener tells would be opened as who has logged in.
            if line.connection is not None and (line.forwards_paths or not forward.is_to_path):
                forward.resume(line.connection)

    def suspend(self) -> None:
        """The host is away: let connections wait."""
        for forward in self._forwards:
            forward.suspend()

    async def finish(self, why: str) -> None:
        """The kernel has ended: hand on what is still on its way, and tell whom a sentence helps; `close()` comes after it."""

    async def close(self) -> None:
        """Close all channels and remove the sockets."""
        for forward in self._forwards:
            forward.close()
        if self.on_close is not None:
            self.on_close(self)
            self.on_close = None
        await in_thread([forward.unlink for forward in self._forwards])

    @property
    def count(self) -> int:
        """How many connections there are to its near ends."""
        return sum(forward.count for forward in self._forwards)

    def __repr__(self) -> str:
        return f"<Attachment {self.transport}:{self.ip} channels={self.count}>"


async def attach_remote(process: RemoteProcess, local_prefix: str, host: str) -> Attachment:
    """Make the five near ends `{local_prefix}-1` … `-5`, not served by a connection yet.

    Raises:
        ConfigurationError: the path is too long for a Unix socket.
        OSError: a socket cannot be made there.
    """
    if process.kernel_transport == "direct":
        return Attachment("tcp", process.ip, process.ports)
    checked(local_prefix)
    forwards: list[Forward] = []
    for number, channel in enumerate(CHANNELS, 1):
        port = process.ports[channel]
        far: FarEnd = (process.ip, port) if process.kernel_transport == "tcp" else f"{process.ip}-{port}"
        forwards.append(Forward(f"{local_prefix}-{number}", far, host))
    try:
        await in_thread([forward.bind for forward in forwards])
        for forward in forwards:
            await forward.listen(forward.accepting)
    except BaseException:
        await Attachment("ipc", local_prefix, {}, forwards).close()
        raise
    ports = {channel: number for number, channel in enumerate(CHANNELS, 1)}
    return Attachment("ipc", local_prefix, ports, forwards)


def checked(local_prefix: str) -> str:
    """The prefix, if sockets may lie there. Raises ConfigurationError."""
    if len(os.fsencode(f"{local_prefix}-{len(CHANNELS)}")) > LONGEST_PATH:
        raise ConfigurationError(
            f"The path {local_prefix}-1 is too long for a Unix socket ({LONGEST_PATH} bytes). Set TMPDIR to a shorter one."
        )
    return local_prefix


class Forward(NearEnd):
    """One near end: a listening Unix socket of mode 0600, and the pairs of connections through it."""

    def __init__(self, path: str, far: FarEnd, host: str) -> None:
        super().__init__(path)
        self._far = far
        self._host = host
        self._connection: Connection | None = None
        self._near: set[_Near] = set()

    @property
    def is_to_path(self) -> bool:
        return isinstance(self._far, str)

    @property
    def count(self) -> int:
        return len(self._near)

    def resume(self, connection: Connection) -> None:
        self._connection = connection
        for near in list(self._near):
            near.open(connection)

    def suspend(self) -> None:
        self._connection = None

    def close(self) -> None:
        """Take no more connections and end those that are there; `unlink()` comes after it."""
        super().close()
        for near in list(self._near):
            near.close()

    def accepting(self) -> _Near:
        return _Near(self)

    def accepted(self, near: _Near) -> None:
        if self._connection is None and len(self._near) >= MAX_WAITING:
            near.close()
            return
        self._near.add(near)
        if self._connection is not None:
            near.open(self._connection)

    def ended(self, near: _Near) -> None:
        self._near.discard(near)

    async def dial(self, connection: Connection, near: _Near) -> None:
        """Open the channel for one near connection; what fails closes that one only."""
        try:
            if isinstance(self._far, str):
                await connection.create_unix_connection(lambda: _Far(near), self._far)
            else:
                await connection.create_connection(lambda: _FarPort(near), *self._far)
        except (asyncssh.Error, OSError) as error:
            _log.debug("[host=%s] no channel to %s: %s", self._host, self._far, error)
            near.close()


async def in_thread(calls: Sequence[Callable[[], None]]) -> None:
    """Run what touches the file system beside the loop, to its end even when the caller is cancelled."""

    def work() -> None:
        for call in calls:
            call()

    running = asyncio.ensure_future(beside(work))
    try:
        await asyncio.shield(running)
    except NoThread:  # the interpreter is ending
        work()
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


class _Near(asyncio.Protocol):
    """A local connection. What it says before its channel is open is kept."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._transport: asyncio.Transport | None = None
        self._far: Channel | None = None
        self._early = b""
        self._dialing: asyncio.Task[None] | None = None
        self._near_eof = self._far_eof = False
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._forward.accepted(self)

    def open(self, connection: Connection) -> None:
        # Never cancelled: a channel that opens after all must be closed, or it stays open on the host.
        if self._dialing is None and not self._closed:
            self._dialing = asyncio.ensure_future(self._forward.dial(connection, self))

    def opened(self, far: Channel) -> None:
        if self._closed or self._transport is None:
            far.close()
            return
        self._far = far
        if self._early:
            far.write(self._early)
            self._early = b""
        if self._near_eof:
            far.write_eof()
        else:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._far is not None:
            if not self._far.is_closing():
                self._far.write(data)
            return
        self._early += data
        if len(self._early) > MAX_EARLY and self._transport is not None:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._near_eof = True
        if self._far is None:
            return self._dialing is not None  # while the host is away, it has given up waiting
        if self._far_eof or self._far.is_closing():
            return False  # the transport closes, and this with it
        self._far.write_eof()
        return True  # the other direction stays open

    def from_far(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def far_eof(self) -> None:
        self._far_eof = True
        if self._near_eof:
            self.close()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def pause_writing(self) -> None:
        if self._far is not None:
            self._far.pause_reading()

    def resume_writing(self) -> None:
        if self._far is not None:
            self._far.resume_reading()

    def far_is_full(self, full: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._forward.ended(self)
        if self._transport is not None:
            self._transport.close()
        if self._far is not None:
            self._far.close()


class _FarMixin:
    """The channel's side of a pair."""

    def __init__(self, near: _Near) -> None:
        self._near = near

    def _made(self, channel: Channel) -> None:
        self._channel = channel

    def session_started(self) -> None:
        self._near.opened(self._channel)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._near.from_far(data)

    def eof_received(self) -> bool:
        self._near.far_eof()
        return True

    def pause_writing(self) -> None:
        self._near.far_is_full(True)

    def resume_writing(self) -> None:
        self._near.far_is_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._near.close()


class _Far(_FarMixin, asyncssh.SSHUNIXSession[bytes]):
    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        self._made(chan)


class _FarPort(_FarMixin, asyncssh.SSHTCPSession[bytes]):
    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._made(chan)
