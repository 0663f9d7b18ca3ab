"""Sockets of which an event loop reads a little at a time, so that a kernel that floods its output does not keep it from all else."""

from __future__ import annotations

import socket

PORTION = 64 << 10
"""Bytes that are read, and worked off, in one turn of a loop. asyncio asks for 256 KB: of small messages that is up to 17 ms of work,
and asyncssh copies what is left of them for each packet."""


class Portioned(socket.socket):
    """A socket that gives at most `PORTION` bytes at once."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(min(size, PORTION), flags)


def portioned(sock: socket.socket) -> Portioned:
    """The same socket, non-blocking, in portions; the one that was given is of no use afterwards."""
    found = Portioned(fileno=sock.detach())
    found.setblocking(False)
    return found
