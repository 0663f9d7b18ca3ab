"""One near end: a listening Unix socket of mode 0600, at a place that may have been somebody's before."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress


class NearEnd:
    """`bind()`, `listen()`, `close()`, `unlink()`, in this order; the first and the last touch the file system."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket: socket.socket | None = None
        self._server: asyncio.AbstractServer | None = None
        self._inode: tuple[int, int] | None = None

    def bind(self) -> None:
        """Make the socket; one that a process before us has left there is replaced. Blocks a little."""
        with suppress(OSError):
            if stat.S_ISSOCK(os.lstat(self.path).st_mode):
                os.unlink(self.path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self._socket.bind(self.path)
        os.chmod(self.path, 0o600)
        status = os.lstat(self.path)
        self._inode = (status.st_dev, status.st_ino)

    async def listen(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Take connections from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(protocol, sock=self._socket)

    def close(self) -> None:
        """Take no more connections; those that are there stay."""
        if self._server is not None:
            self._server.close()
        elif self._socket is not None:
            self._socket.close()
        self._server = self._socket = None

    def unlink(self) -> None:
        """Remove the socket's file, unless a later one lies there already. Blocks a little."""
        with suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == self._inode:
                os.unlink(self.path)
        self._inode = None
