"""What reaches a host: the SSH connection, and the control channel on it (a pipe to a child process for localhost)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import asyncssh

from ..errors import HostUnreachableError, ProvisionerError
from ..models import HostAddress, KernelTransport, Login
from ..own_user import own_name
from . import transport as ssh
from .control import Control
from .errors import Progress, lost, translate
from .local import is_local
from .run_as import RunAs
from .welcome import Welcome, greet


@dataclass(frozen=True)
class Line:
    """The ways to a host that stand now."""

    connection: asyncssh.SSHClientConnection | None
    """None: it is this machine."""
    control: Control
    forwards_paths: bool
    """Whether the kernels' Unix sockets can be connected to: by sshd's forwarding, or from here. Not those of another user."""


class Lines:
    """Makes them and makes them again; says when they are lost.

    Args:
        names: whose kernels they are, and which process this is, for the listener.
        on_event: gets the listener's events.
        on_lost: called with the reason when a line has ended that nobody closed, and with whether everything has: where only the
            control channel has, forwards go on, and a new channel can be opened on the same connection.
    """

    def __init__(
        self,
        address: HostAddress,
        login: Login,
        handshakes: ssh.Handshakes,
        names: Callable[[], Awaitable[tuple[str, str]]],
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[ProvisionerError, bool], None],
    ) -> None:
        self.is_local = is_local(address)
        self.transport: ssh.SSHTransport | None = None
        self.control: Control | None = None
        self.supports: frozenset[KernelTransport] = frozenset()
        """Which kernels can be attached; known after `open()`."""
        self._address = address
        self._login = login
        self._handshakes = handshakes
        self._names = names
        self._on_event = on_event
        self._on_lost = on_lost

    @property
    def now(self) -> Line | None:
        """The ways to the host that stand now; None where it cannot be asked."""
        if self.control is None or not (self.is_local or self.transport is not None):
            return None
        connection = self.transport.connection if self.transport is not None else None
        return Line(connection, self.control, "ipc" in self.supports)

    async def open(self, reach_timeout: float | None) -> Welcome:
        """Make what is missing, within `login.connect_timeout` seconds; `reach_timeout` is a shorter limit for the TCP connection.

        Raises:
            HostError: as `HostConnection.connect`. What was made is there for `drop()`.
        """
        started = time.monotonic()
        timeout = self._login.connect_timeout
        host = str(self._address)
        progress = Progress(host=host, at=host)
        try:
            if not self.is_local and self.transport is None:
                self.transport = await ssh.connect(
                    self._address,
                    self._login,
                    self._handshakes,
                    self._transport_lost,
                    timeout=timeout,
                    reach_timeout=reach_timeout,
                )
            return await asyncio.wait_for(self._greet(), max(timeout - (time.monotonic() - started), 0.5))
        except asyncio.TimeoutError:
            raise HostUnreachableError(self._too_slow(timeout), host=host) from None
        except (asyncssh.Error, OSError) as error:
            progress.user = self.transport.target.user if self.transport is not None else ""
            progress.connected = True
            raise translate(error, progress) from error

    def _too_slow(self, timeout: float) -> str:
        shell = "Check the shell's start-up files there (they must not wait for anything)"
        run_as = self.control.run_as if self.control is not None else None
        if run_as is None:
            return (
                f"{self._address} cannot be used: it lets the user log in, but its shell has not started Python within {timeout:g} s."
                f" {shell}, or raise connect_timeout."
            )
        return (
            f"{self._address} runs no kernels as {run_as.user}: it lets {run_as.own} log in, but sudo has not started Python within"
            f" {timeout:g} s. {shell}, and whether sudo and its directory of users answer there, or raise connect_timeout."
        )

    async def _greet(self) -> Welcome:
        run_as = self._run_as()
        self.control = control = Control(str(self._address), self._on_event, self._control_lost, run_as)
        if self.transport is None:
            await control.open_process()
        else:
            await control.open_session(self.transport.connection)
        connection = None if self.transport is None else self.transport.connection
        welcome, self.supports = await greet(control, connection, *await self._names())
        return welcome

    def _run_as(self) -> RunAs | None:
        """Whom sudo has to be asked for. Nobody may need to be."""
        own = own_name() if self.transport is None else self.transport.target.user
        wanted = self._login.run_as
        return None if wanted in (None, own) else RunAs(wanted, own)

    def _transport_lost(self, transport: ssh.SSHTransport, error: BaseException | None) -> None:
        if transport is self.transport:
            self.transport = None
            transport.abort()
            self._fail(lost(str(self._address), error), True)

    def _control_lost(self, failure: ProvisionerError) -> None:
        self._fail(failure, False)

    def _fail(self, failure: ProvisionerError, everything: bool) -> None:
        control, self.control = self.control, None
        if control is not None:
            control.fail(failure)
        self._on_lost(failure, everything)

    def drop(self) -> None:
        """Let go of them at once, without a word to the host."""
        control, self.control = self.control, None
        if control is not None:
            control.close()
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.abort()

    async def close(self) -> None:
        """Say goodbye."""
        control, transport, self.transport = self.control, self.transport, None
        self.drop()
        if transport is not None:
            await transport.close()
        if control is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(control.wait_closed(), 1.0)
