"""An SSH connection from nothing: socket or proxy command, jump hosts, handshake, log-in, all within one time limit.

The socket is made here and not by asyncssh, to tell the kinds of silence apart, and because asyncssh takes what a proxy command writes
to its standard error for the host's bytes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import asyncssh

from ..models import HostAddress, Login
from .beside import Lookups
from .config import CIPHERS, KEEPALIVE_COUNT, Target, find_target
from .errors import Dropped, Progress, timed_out, translate
from .host_keys import host_key_error
from .keys import Keyring
from .reach import Proxy, ReachTimeout, open_socket, spell
from .tickets import fetch_ticket, was_shown

FIRST_RETRY = 0.15
"""Seconds before a host that drops connections under load (MaxStartups) is asked again; grows, with jitter."""


OnLost = Callable[["SSHTransport", "BaseException | None"], None]


class Handshakes:
    """One handshake at a time for each machine, so that a burst does not meet sshd's MaxStartups; and one look-up for each name."""

    def __init__(self) -> None:
        self.lookups = Lookups()
        if logging.getLogger("asyncssh").level == logging.NOTSET:
            # It tells each channel at INFO, and there are five for each client of a kernel. A level that the application has set stays.
            logging.getLogger("asyncssh").setLevel(logging.WARNING)
        self._locks: dict[tuple[str, int], asyncio.Lock] = {}

    def lock(self, host: str, port: int) -> asyncio.Lock:
        return self._locks.setdefault((host.lower(), port), asyncio.Lock())


class SSHTransport:
    """A connection that is logged in, with the jump hosts and the proxy command that carry it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.connections: list[asyncssh.SSHClientConnection] = []
        self.proxies: list[Proxy] = []

    @property
    def connection(self) -> asyncssh.SSHClientConnection:
        return self.connections[-1]

    @property
    def peer_address(self) -> str | None:
        """The host's address as it is seen from here; None behind a jump host or a proxy command."""
        if len(self.connections) != 1 or self.proxies:
            return None
        peer = self.connection.get_extra_info("peername")
        return str(peer[0]) if peer else None

    def abort(self) -> None:
        """Let go at once, without a word to the host."""
        for connection in reversed(self.connections):
            connection.abort()
        for proxy in self.proxies:
            proxy.kill()

    async def close(self, timeout: float = 1.0) -> None:
        """Say goodbye, for at most `timeout` seconds."""
        for connection in reversed(self.connections):
            connection.close()
            with suppress(asyncio.TimeoutError, OSError, asyncssh.Error):
                await asyncio.wait_for(connection.wait_closed(), timeout)
        self.abort()
        for proxy in self.proxies:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(proxy.process.wait(), timeout)


async def connect(
    address: HostAddress,
    login: Login,
    handshakes: Handshakes,
    on_lost: OnLost,
    *,
    timeout: float,
    reach_timeout: float | None = None,
) -> SSHTransport:
    """Connect and log in within `timeout` seconds. `on_lost` is called when a connection that came about has ended.

    Args:
        reach_timeout: a shorter limit for the TCP connection alone.

    Raises:
        HostUnreachableError, HostKeyError, AuthenticationError, HostSetupError: each with its own sentence.
    """
    attempt = _Attempt(address, login, handshakes, on_lost, reach_timeout)
    try:
        return await asyncio.wait_for(attempt.run(), timeout)
    except asyncio.TimeoutError:
        raise (attempt.dropped or timed_out(attempt.progress, timeout)) from None
    except ReachTimeout:
        raise timed_out(attempt.progress, reach_timeout or timeout) from None


class _Attempt:
    def __init__(
        self,
        address: HostAddress,
        login: Login,
        handshakes: Handshakes,
        on_lost: OnLost,
        reach_timeout: float | None,
    ) -> None:
        self.progress = Progress(host=str(address), at=str(address), stage="configuration")
        self.dropped: Dropped | None = None
        self._address, self._login = address, login
        self._handshakes = handshakes
        self._on_lost = on_lost
        self._reach_timeout = reach_timeout

    async def run(self) -> SSHTransport:
        target = await self._handshakes.lookups.get(
            (self._address, self._login), lambda: find_target(self._address, self._login)
        )
        pause = FIRST_RETRY
        while True:
            transport = SSHTransport(target)
            try:
                await self._through_all(transport)
                return transport
            except Dropped as error:
                transport.abort()
                self.dropped = error
            except BaseException:
                transport.abort()
                raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 1.6, 2.0)

    async def _through_all(self, transport: SSHTransport) -> None:
        target = transport.target
        via = ""
        for hop in (*target.jumps, target):
            through = transport.connections[-1] if transport.connections else None
            last = hop is target
            self.progress = Progress(
                host=str(self._address) if last else hop.label,
                at=spell(hop.host, hop.port),
                user=hop.user,
                via=via,
                needs_ticket=hop.needs_ticket,
            )
            if not last:
                self.progress.host = f"The jump host {hop.label} of {self._address}"
            async with self._handshakes.lock(hop.host, hop.port):
                connection = await self._hop(hop, through, transport, last)
            transport.connections.append(connection)
            via = f" through the jump host {hop.label}"

    async def _hop(
        self,
        hop: Target,
        through: asyncssh.SSHClientConnection | None,
        transport: SSHTransport,
        last: bool,
    ) -> asyncssh.SSHClientConnection:
        progress = self.progress
        await self._have_ticket(hop, progress)
        keyring = Keyring(hop.keys, hop.agent, hop.only_named_keys)
        # A jump host's end ends what goes through it, too; it is told there.
        client = _Client(hop, keyring, progress, partial(self._on_lost, transport) if last else None)
        sock: socket.socket | None = None
        proxy: Proxy | None = None
        try:
            if through is None and hop.proxy_command:
                progress.proxy, progress.at = True, hop.proxy_command
                proxy = await Proxy.start(hop.proxy_command)
                transport.proxies.append(proxy)
                sock = proxy.sock
                progress.connected = True
            elif through is None:
                try:
                    sock = await asyncio.wait_for(self._open_socket(hop, progress), self._reach_timeout)
                except asyncio.TimeoutError:
                    raise ReachTimeout from None
                progress.connected = True
            connection = await _handshake(hop, through, sock, client, self._login.keepalive_interval)
            client.established = True
            return connection
        except asyncssh.HostKeyNotVerifiable as error:
            raise host_key_error(hop.identity, client.refused_key, hop.known_hosts, str(error)) from error
        except (OSError, asyncssh.Error, UnicodeError, ValueError) as error:
            if proxy is not None:
                await proxy.last_words()
            progress.proxy_words = proxy.words if proxy is not None else b""
            progress.ticket_shown = client.has_shown_ticket
            raise translate(error, progress) from error
        except asyncio.CancelledError:
            progress.proxy_words = proxy.words if proxy is not None else b""
            raise
        finally:
            keyring.close()
            if sock is not None and client.connection is None:
                sock.close()

    async def _have_ticket(self, hop: Target, progress: Progress) -> None:
        """Before the connection: sshd has no patience with those who say nothing for long."""
        if hop.gss:
            progress.stage = "ticket"
            progress.ticket = await fetch_ticket(hop.host, self._handshakes.lookups, hop.has_gssapi)
            progress.stage = "connection"

    async def _open_socket(self, hop: Target, progress: Progress) -> socket.socket:
        progress.stage = "name"
        found = await self._handshakes.lookups.get(
            (hop.host, hop.family),
            lambda: socket.getaddrinfo(hop.host, None, family=hop.family, type=socket.SOCK_STREAM),
        )
        progress.stage = "connection"
        return await open_socket(hop, found)


async def _handshake(
    hop: Target,
    through: asyncssh.SSHClientConnection | None,
    sock: socket.socket | None,
    client: _Client,
    keepalive_interval: float,
) -> asyncssh.SSHClientConnection:
    options: dict[str, Any] = {}
    if hop.options.config.get("Ciphers") is None:
        options["encryption_algs"] = CIPHERS
    if hop.host_key_algorithms is not None:
        options["server_host_key_algs"] = list(hop.host_key_algorithms)
    return await asyncssh.connect(
        hop.entry,
        hop.port,
        options=hop.options,
        config=None,
        sock=sock,
        tunnel=through,
        proxy_command=None,
        username=hop.user,
        password=hop.password,
        known_hosts=hop.known_hosts,
        client_factory=lambda: client,
        client_keys=None,  # the client gives them: a file that is missing or encrypted must not stop the log-in
        gss_auth=client.has_ticket,
        gss_kex=False,  # it would skip the check of the host's key
        gss_host=hop.host if client.has_ticket else None,
        compression_algs="none",
        connect_timeout=None,
        login_timeout=0,
        keepalive_interval=keepalive_interval,
        keepalive_count_max=KEEPALIVE_COUNT,
        **options,
    )


class _Client(asyncssh.SSHClient):
    """What asyncssh asks and tells while it connects."""

    def __init__(
        self,
        hop: Target,
        keyring: Keyring,
        progress: Progress,
        on_lost: Callable[[BaseException | None], None] | None,
    ) -> None:
        self.connection: asyncssh.SSHClientConnection | None = None
        self.refused_key: asyncssh.SSHKey | None = None
        self.established = False
        self._hop = hop
        self._keyring = keyring
        self._progress = progress
        self._on_lost = on_lost

    @property
    def has_ticket(self) -> bool:
        ticket = self._progress.ticket
        return ticket is not None and not ticket.problem

    @property
    def has_shown_ticket(self) -> bool:
        return self.has_ticket and self.connection is not None and was_shown(self.connection)

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn
        self._progress.connected = True

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.refused_key = key
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.refused_key = key
        return False

    def begin_auth(self, username: str) -> None:
        self._note()

    async def public_key_auth_requested(self) -> Sequence[asyncssh.SSHKeyPair] | None:
        self._allows()
        keys = await self._keyring.offer()
        self._progress.tried = list(self._keyring.tried)
        self._progress.skipped = [
            *(f"{path} needs a passphrase" for path in self._hop.keys.encrypted),
            *self._hop.keys.unusable,
            *([self._keyring.agent_failure] if self._keyring.agent_failure else []),
        ]
        return keys or None

    def password_auth_requested(self) -> str | None:
        self._allows()
        if self._hop.password is not None and "the password" not in self._progress.tried:
            self._progress.tried.append("the password")
        return None

    def kbdint_auth_requested(self) -> Any:
        self._allows()
        return NotImplemented  # asyncssh then answers with the password, if there is one

    def connection_lost(self, exc: Exception | None) -> None:
        self._note()
        if self.established and self._on_lost is not None:
            self._on_lost(exc)

    def _note(self) -> None:
        if self.connection is not None:
            self._progress.banner = str(self.connection.get_extra_info("server_version") or "")

    def _allows(self) -> None:
        self._note()
        if self.connection is not None:
            for method in self.connection.get_server_auth_methods():
                if method not in self._progress.allowed:
                    self._progress.allowed.append(method)
