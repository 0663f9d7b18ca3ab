"""The way to a hop's sshd before SSH begins: a TCP connection, or a proxy command."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..traffic import portioned
from .config import Target


class ReachTimeout(Exception):
    """No TCP connection within the limit for that alone."""


class Proxy:
    """A ProxyCommand: run by sh as ssh does it, its standard input and output a socket of ours."""

    def __init__(self, process: asyncio.subprocess.Process, sock: socket.socket) -> None:
        self.process = process
        self.sock = sock
        self.words = b""
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def start(cls, command: str) -> Proxy:
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", f"exec {command}", stdin=theirs.fileno(), stdout=theirs.fileno(),
                stderr=asyncio.subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, portioned(ours))

    async def last_words(self) -> None:
        """Give it a moment to say why it ended."""
        await asyncio.wait([self._reading], timeout=0.3)

    def kill(self) -> None:
        """End the command and what it has started."""
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self._reading.cancel()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while True:
            data = await self.process.stderr.read(4096)
            if not data:
                return
            self.words = (self.words + data)[:16384]


async def open_socket(hop: Target, found: Sequence[tuple[Any, ...]]) -> socket.socket:
    """A TCP connection to the first address of the host that answers. Raises OSError (of the first address).

    Args:
        found: what `socket.getaddrinfo` gave for the host, without a port.
    """
    loop = asyncio.get_running_loop()
    first: OSError | None = None
    for number, (family, kind, protocol, _, (ip, _port, *rest)) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hop.bind:
                sock.bind(hop.bind)
            # An address that is silent must not keep the next one from being tried.
            patience = None if number == len(found) - 1 else 2.0
            await asyncio.wait_for(loop.sock_connect(sock, (ip, hop.port, *rest)), patience)
            return portioned(sock)
        except (OSError, asyncio.TimeoutError) as error:
            sock.close()
            if first is None and isinstance(error, OSError) and not isinstance(error, asyncio.TimeoutError):
                first = error
        except BaseException:
            sock.close()
            raise
    raise first or TimeoutError()


def spell(host: str, port: int) -> str:
    """An address and a port as people write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
