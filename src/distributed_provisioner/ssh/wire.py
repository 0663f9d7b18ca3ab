"""Two ways to the bridge on a host: an SSH session channel, and the pipes of a child process. Bytes are pushed, never polled for."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import asyncssh

MAX_STDERR = 16 << 10
"""Bytes of what the other end complained about that are kept, for error messages."""

HANDED_OVER = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""What the bridge on this machine gets of the server's environment, beside LC_*: passwords and tokens of the server are no listener's and
no kernel's business. This Python itself may need LD_LIBRARY_PATH to start; kernels do not get that."""

Received = Callable[[bytes], None]
Ended = Callable[["BaseException | None"], None]


class Wire(ABC):
    """Bytes to and from a bridge. `ended` is called once, with what broke the line, or None when the bridge ended by itself."""

    def __init__(self, received: Received, ended: Ended) -> None:
        self.stderr = b""
        self.exit_status: int | None = None
        self._received: Received | None = received
        self._ended: Ended | None = ended
        self._writable = asyncio.Event()
        self._writable.set()
        self.on_flow: Callable[[bool], None] | None = None
        """Called with whether more may be written, when that changes."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send; await `writable()` before."""

    def close(self) -> None:
        """End the bridge. `ended` is not called any more."""
        self._received = self._ended = self.on_flow = None
        self._writable.set()

    async def wait_closed(self) -> None:
        """Wait, after `close()`, until nothing of the line is left here: for a line without a process of its own, at once."""
        return

    @property
    def is_writable(self) -> bool:
        return self._writable.is_set()

    def _flow(self, writable: bool) -> None:
        if writable:
            self._writable.set()
        else:
            self._writable.clear()
        if self.on_flow is not None:
            self.on_flow(writable)

    async def writable(self) -> None:
        """Wait until the line takes more bytes (or is gone)."""
        await self._writable.wait()

    def _take(self, data: bytes, is_stderr: bool) -> None:
        if is_stderr:
            self.stderr = (self.stderr + data)[-MAX_STDERR:]
        elif self._received is not None:
            self._received(data)

    def _end(self, error: BaseException | None) -> None:
        ended, self._received, self._ended = self._ended, None, None
        self._writable.set()
        if ended is not None:
            ended(error)


class SessionWire(Wire):
    """The session channel of an SSH connection, without a pseudo-terminal. It must be the connection's first channel: sshd sets
    TCP_NODELAY when a session starts, and forwards without it take 40 ms for each small message."""

    def __init__(self, received: Received, ended: Ended) -> None:
        super().__init__(received, ended)
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None

    async def open(self, connection: asyncssh.SSHClientConnection, command: str) -> None:
        """Start the bridge by a command line. Raises asyncssh.ChannelOpenError."""
        channel, _ = await connection.create_session(
            lambda: _Session(self),
            command,
            encoding=None,
            request_pty=False,
            env=None,
            send_env=None,
        )
        self._channel = channel

    def write(self, data: bytes) -> None:
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(data)

    def close(self) -> None:
        super().close()
        if self._channel is not None:
            self._channel.close()


class _Session(asyncssh.SSHClientSession[bytes]):
    def __init__(self, wire: SessionWire) -> None:
        self._wire = wire

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._wire._take(data, datatype is not None)

    def exit_status_received(self, status: int) -> None:
        self._wire.exit_status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._wire.exit_status = -1

    def pause_writing(self) -> None:
        self._wire._flow(False)

    def resume_writing(self) -> None:
        self._wire._flow(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire._end(exc)


class ProcessWire(Wire):
    """A bridge on this machine: a child process, in a session of its own, with what a log-in would have of this process's environment."""

    def __init__(self, received: Received, ended: Ended) -> None:
        super().__init__(received, ended)
        self._transport: asyncio.SubprocessTransport | None = None
        self._stdin: asyncio.WriteTransport | None = None
        self._gone = asyncio.Event()

    async def open(self, argv: Sequence[str]) -> None:
        """Start the bridge. Raises OSError."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.subprocess_exec(
            lambda: _Child(self), *argv, start_new_session=True, env=_environment()
        )
        self._transport = transport
        self._stdin = transport.get_pipe_transport(0)  # type: ignore[assignment]

    def write(self, data: bytes) -> None:
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.write(data)

    def close(self) -> None:
        super().close()
        if self._transport is not None:
            with suppress(PermissionError):  # below sudo it is another user's; the end of its input ends it
                self._transport.close()  # kills the bridge, which holds nothing

    async def wait_closed(self) -> None:
        # asyncio logs a warning about a child whose end it cannot tell to a loop that is closed.
        if self._transport is not None:
            await self._gone.wait()


def _environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name in HANDED_OVER or name.startswith("LC_")
    }


class _Child(asyncio.SubprocessProtocol):
    def __init__(self, wire: ProcessWire) -> None:
        self._wire = wire
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._wire._take(data, fd == 2)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        # The exit status comes by another thread; nobody needs to wait for it to know that the line is gone.
        if fd == 1:
            asyncio.get_running_loop().call_later(0.2, self._over)

    def process_exited(self) -> None:
        self._wire.exit_status = self._transport.get_returncode()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire._gone.set()
        self._over()

    def pause_writing(self) -> None:
        self._wire._flow(False)

    def resume_writing(self) -> None:
        self._wire._flow(True)

    def _over(self) -> None:
        self._wire._end(None)
