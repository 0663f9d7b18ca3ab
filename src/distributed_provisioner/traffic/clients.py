"""Jupyter's clients as this side of a kernel: ZMQ sockets that connect to the near ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
import sys
from typing import Protocol

from .shared import zmtp

HIGH_WATER = 1 << 20
"""Bytes that wait for a client, above which it counts as slow."""
PATIENCE = 5.0
"""Seconds without any progress after which nobody waits for a slow client any more."""
MOST = 16 << 20
"""Bytes that are written to a client at most after nobody waits for it any more."""

TOGETHER = 32 << 10
"""Bytes of small messages that are written in one go: each write lets another thread have Python for 5 ms."""

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """Who serves a near end's clients."""

    def arrived(self, client: Client) -> None: ...
    def left(self, client: Client) -> None: ...
    def said(self, client: Client, piece: memoryview, ends: bool) -> None: ...
    def subscribes(self, client: Client, wanted: bool, topic: bytes) -> None: ...
    def flows(self, client: Client, slow: bool) -> None:
        """A client has become slow, or has read what waited for it."""


class Client(asyncio.Protocol):
    """One connection to a near end, from its greeting on."""

    def __init__(self, owner: Owner, socket_type: bytes) -> None:
        self.identity = b""
        self.made_up = False
        """Whether the identity is ours, because the client gave none."""
        self.pid = 0
        """Of the client's process, where that can be known."""
        self.since = 0.0
        self.slow = False
        self.hopeless = False
        """Slow, and without any progress for `PATIENCE` seconds."""
        self.topics: list[bytes] = []
        self._owner = owner
        self._engine = zmtp.Engine(socket_type)
        self._transport: asyncio.Transport | None = None
        self._there = False
        self._paused = False
        self._batch: list[bytes | memoryview] = []
        """Small pieces that are written at the end of this turn of the loop."""
        self._batched = 0
        self._written = 0
        self._seen = 0
        """How much it had read when it was looked at last."""
        self._given_up = 0
        """How much was written when it became hopeless."""
        self._watch: asyncio.TimerHandle | None = None

    # --- asyncio's side -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.since = asyncio.get_running_loop().time()
        self.pid = _peer(transport.get_extra_info("socket"))
        transport.set_write_buffer_limits(HIGH_WATER)
        _widen(transport.get_extra_info("socket"))
        transport.write(self._engine.take())

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            events = self._engine.feed(data)
        except zmtp.ProtocolError as error:
            _log.debug("a client was turned away: %s", error)
            self._transport.write(self._engine.take())
            self._transport.close()
            return
        if self._engine.output:
            self._transport.write(self._engine.take())
        for name, body, ends in events:
            if not name:
                self._owner.said(self, body, ends)
            elif name == b"READY":
                self._introduce()
            elif name in (b"SUBSCRIBE", b"CANCEL"):
                self._owner.subscribes(self, name == b"SUBSCRIBE", bytes(body))

    def _introduce(self) -> None:
        self._there = True
        self.identity = self._engine.identity
        if not self.identity or self.identity[:1] == b"\0":  # those are for ROUTERs to make up
            self.identity, self.made_up = b"\1" + secrets.token_bytes(15), True
        self._owner.arrived(self)

    def eof_received(self) -> None:
        """The transport closes itself."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        there, self._there = self._there, False
        if there:
            self._owner.left(self)

    def pause_writing(self) -> None:
        self.slow = True
        self.wait_anew()
        self._owner.flows(self, True)

    def resume_writing(self) -> None:
        self.slow = self.hopeless = False
        if self._watch is not None:
            self._watch.cancel()
        self._owner.flows(self, False)

    def wait_anew(self) -> None:
        """It has `PATIENCE` from now on to read something, if it is slow."""
        if self._watch is not None:
            self._watch.cancel()
        self.hopeless, self._seen = False, self.read
        if self.slow:
            self._watch = asyncio.get_running_loop().call_later(PATIENCE, self._look)

    def _look(self) -> None:
        was_hopeless = self.hopeless
        # Not by what waits: that grows, too, while somebody reads slowly.
        self.hopeless = self.read <= self._seen
        self._seen = self.read
        if self.hopeless and not was_hopeless:
            self._given_up = self._written
        self._watch = asyncio.get_running_loop().call_later(PATIENCE, self._look)
        if self.hopeless != was_hopeless:
            self._owner.flows(self, True)

    # --- our side -------------------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Bytes that it has not read."""
        return self._batched + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    @property
    def read(self) -> int:
        """Bytes that it has read."""
        return self._written - self.waiting

    def write(self, piece: bytes | memoryview) -> None:
        """Hand a piece of a message on. One that leaves too much unread loses its connection: half a message cannot be taken back."""
        if self._transport is None or self._transport.is_closing():
            return
        self._written += len(piece)
        if not self._batch:
            asyncio.get_running_loop().call_soon(self._flush)
        self._batch.append(piece)
        self._batched += len(piece)
        if self._batched >= TOGETHER:
            self._flush()
        if self.hopeless and self._written - self._given_up > MOST:
            self._transport.abort()

    def _flush(self) -> None:
        batch, self._batch, self._batched = self._batch, [], 0
        if batch and self._transport is not None:
            self._transport.write(batch[0] if len(batch) == 1 else b"".join(batch))

    def read_on(self, wanted: bool) -> None:
        """Whether what it says is wanted now."""
        if self._transport is None or self._transport.is_closing() or self._paused != wanted:
            return
        self._paused = not wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def abort(self) -> None:
        """Cut the connection: ZMQ makes another one, and forgets the half of a message that came through this one."""
        self._batch, self._batched = [], 0
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Cut it when all was read that was written, but do not wait long."""
        self._flush()
        if self._transport is not None:
            self._transport.close()
            if self.waiting:
                asyncio.get_running_loop().call_later(1.0, self._transport.abort)

    def __repr__(self) -> str:
        return f"<Client {self.identity.hex()[:8]}{' slow' if self.slow else ''} waiting={self.waiting}>"


def _widen(sock: socket.socket | None) -> None:
    """Let the system take as much at once as it may: with the usual 208 KB this process and the client wait for each other by turns."""
    with contextlib.suppress(OSError):
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, HIGH_WATER)


def _peer(sock: socket.socket | None) -> int:
    if sock is None or sys.platform != "linux":
        return 0
    try:
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", found)[0])
    except OSError:
        return os.getpid()
