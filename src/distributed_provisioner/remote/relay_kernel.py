"""The kernel as a relay sees it: one SUB, and three DEALERs for each client."""

from __future__ import annotations

import contextlib
import os
import time

from relay_peer import HANDSHAKE, RETRY, Peer
from relay_wire import CHANNELS, CONTROL, ENDS, IOPUB, SHELL, STDIN, VOID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

    from relay_io import Loop
    from relay_peer import Address
    from relay_wire import Credit

MAX_CLIENTS = 256
"""Clients that may be connected at the same time; of those above, the one that was quiet for longest is forgotten."""
MAX_RETRY = 30.0
SOCKET_TYPES = {SHELL: b"DEALER", CONTROL: b"DEALER", STDIN: b"DEALER", IOPUB: b"SUB"}


class BadInfo(ValueError):
    """Connection info that leads to no kernel; the text is for people."""


class KernelSide:
    """Connects when told where the kernel is, and again when told that it is somewhere else (a restart)."""

    def __init__(
        self,
        loop: Loop,
        on_piece: Callable[[int, bytes, memoryview, bool], None],
        on_void: Callable[[int, bytes], None],
        on_state: Callable[[str], None],
        on_written: Callable[[Credit], None],
    ) -> None:
        self.loop, self.on_piece, self.on_void = loop, on_piece, on_void
        self.on_state, self.on_written = on_state, on_written
        self.addresses: Optional[List[Address]] = None
        self.info: Dict[str, Any] = {}
        self.state = "gone"
        self.iopub: Optional[Peer] = None
        self.peers: Dict[Tuple[int, bytes], Peer] = {}
        self.clients: Dict[bytes, float] = {}
        """identity -> when it last said something"""
        self.asked: Optional[Callable[[str], None]] = None
        """Who waits for the connection: called with why it failed, or ""."""
        self.deadline = self.pause = 0.0
        self.ways: Dict[int, int] = {}
        """channel -> a handle of the kernel's socket, which leads there also when its path was cleared away"""

    # the kernel as a whole

    def connect(self, info: Dict[str, Any], answer: Callable[[str], None]) -> None:
        """Go to where the kernel is now; `answer("")` when all that it publishes from then on is heard. Raises BadInfo."""
        addresses = [address_of(info, name) for name in CHANNELS]
        if self.asked is not None:
            self._answer("another kernel came first")
        if addresses == self.addresses and self._is_there():
            answer("")
            return
        self.leave()
        self.info, self.addresses, self.asked = info, addresses, answer
        self.deadline, self.pause = time.monotonic() + HANDSHAKE, RETRY
        self._connect_iopub()

    def _is_there(self) -> bool:
        """Whether the kernel that we are connected to still is, as far as can be seen now: its end may not have been read yet."""
        peer = self.iopub
        for _ in range(256):
            if peer is None or peer.stream is None or not peer.stream.read():
                break
        return self.state == "connected" and self.iopub is peer and peer is not None

    def leave(self) -> None:
        """Take what the kernel still has said, and forget where it was."""
        self.addresses = None
        while self.ways:
            os.close(self.ways.popitem()[1])
        for peer in [*self.peers.values(), *([self.iopub] if self.iopub else [])]:
            peer.close()
        self.iopub = None
        self._set_state("gone")

    def _connect_iopub(self) -> None:
        if self.addresses is not None:
            self.iopub = self._make(IOPUB, b"", self._subscribed, self._iopub_gone)
            self.iopub.connect(self._way(IOPUB))

    def _subscribed(self) -> None:
        self._answer("")
        self._hold_ways()
        self._set_state("connected")
        for kind, identity in list(self.peers):
            if self.peers[kind, identity].queue:
                self._start(kind, identity)

    def _hold_ways(self) -> None:
        for kind, address in enumerate(self.addresses or ()):
            if isinstance(address, str) and hasattr(os, "O_PATH"):  # Linux
                with contextlib.suppress(OSError):  # it was cleared away: the handle of before has to do
                    found = os.open(address, os.O_PATH)
                    if kind in self.ways:
                        os.close(self.ways[kind])
                    self.ways[kind] = found

    def _way(self, kind: int) -> Address:
        assert self.addresses is not None
        address = self.addresses[kind]
        if isinstance(address, str) and kind in self.ways and not os.path.exists(address):
            return f"/proc/self/fd/{self.ways[kind]}"
        return address

    def _iopub_gone(self, why: str, inside: bool) -> None:
        if inside:
            self.on_void(IOPUB, b"")
        was_connected, self.iopub = self.state == "connected", None
        self._set_state("gone")
        addresses = self.addresses
        if addresses is None:
            return
        late = time.monotonic() > self.deadline
        if late or why.startswith("not "):  # waiting does not teach it another protocol
            self._answer(why)
        if isinstance(addresses[IOPUB], str):
            self.pause = RETRY if self.asked or was_connected else min(2 * self.pause, MAX_RETRY)
            self.loop.later(self.pause, lambda: self._again(addresses))
        elif self.asked:
            self.loop.later(RETRY, lambda: self._again(addresses))
        elif was_connected:
            self.addresses = None  # the port may be somebody else's by now: wait to be told

    def _again(self, addresses: List[Address]) -> None:
        if self.addresses is addresses and self.iopub is None:
            self._connect_iopub()

    def _answer(self, why: str) -> None:
        asked, self.asked = self.asked, None
        if asked is not None:
            asked(why)

    def _set_state(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.on_state(state)

    # its clients

    def send(self, kind: int, identity: bytes, data: bytes, flags: int, credit: Credit) -> None:
        """A piece from a client; `credit` is told when it is in the kernel's socket."""
        size = len(data)

        def written() -> None:
            credit.consume(kind, size)
            self.on_written(credit)

        self._heard_of(identity)
        known = self.peers.get((kind, identity))
        if flags & VOID and known is not None:
            known.void()
        if not data:
            return
        peer = self._peer(kind, identity)
        peer.send(data, bool(flags & ENDS), written)
        if peer.stream is None:
            self._start(kind, identity)

    def open(self, identities: Sequence[bytes]) -> None:
        """Connect for clients of a relay that is gone: what the kernel still answers to them arrives here."""
        for identity in identities:
            self._heard_of(identity)
            for kind in (SHELL, CONTROL):
                self._peer(kind, identity)
                self._start(kind, identity)

    def close(self, identities: Sequence[bytes]) -> None:
        """These clients will not come again."""
        for identity in identities:
            self.clients.pop(identity, None)
            for kind in (SHELL, CONTROL, STDIN):
                peer = self.peers.pop((kind, identity), None)
                if peer is not None:
                    peer.close()
                    for chunk in peer.queue:
                        chunk.done()
                    peer.queue.clear()

    def void_unfinished(self) -> None:
        """The server is gone in the middle of messages, and another one has come."""
        for peer in self.peers.values():
            peer.void()

    def _heard_of(self, identity: bytes) -> None:
        self.clients.pop(identity, None)
        self.clients[identity] = time.monotonic()  # the last one in the dict
        if len(self.clients) > MAX_CLIENTS:
            self.close([next(iter(self.clients))])

    def _peer(self, kind: int, identity: bytes) -> Peer:
        peer = self.peers.get((kind, identity))
        if peer is None:
            failures = [0]

            def ready() -> None:
                failures[0] = 0
                if kind == STDIN and (SHELL, identity) in self.peers:
                    self._start(SHELL, identity)

            def gone(why: str, inside: bool) -> None:
                if inside:
                    self.on_void(kind, identity)
                failures[0] += 1
                self._retry(kind, identity, min(RETRY * 2 ** failures[0], MAX_RETRY))

            peer = self.peers[kind, identity] = self._make(kind, identity, ready, gone)
        return peer

    def _retry(self, kind: int, identity: bytes, seconds: float) -> None:
        """A connection was lost: as long as the kernel is there, so is the client for it."""
        addresses = self.addresses

        def again() -> None:
            if self.state == "connected" and self.addresses is addresses:
                self._start(kind, identity)

        if self.state == "connected":
            self.loop.later(seconds, again)

    def _start(self, kind: int, identity: bytes) -> None:
        """Connect, if there is a kernel and no connection. The kernel asks on stdin whoever sent a request: that one comes first."""
        peer = self.peers.get((kind, identity))
        if peer is None or peer.stream is not None or self.state != "connected" or self.addresses is None:
            return
        if kind == SHELL and identity:
            stdin = self._peer(STDIN, identity)
            if not stdin.ready:
                self._start(STDIN, identity)
                return
        peer.connect(self._way(kind))

    def _make(
        self, kind: int, identity: bytes, on_ready: Callable[[], None], on_gone: Callable[[str, bool], None]
    ) -> Peer:
        # An identity that begins with \0 is one that a ROUTER made up; another ROUTER refuses it.
        name = b"\1" + identity[1:] if identity[:1] == b"\0" else identity
        return Peer(
            self.loop,
            SOCKET_TYPES[kind],
            name,
            lambda piece, ends: self.on_piece(kind, identity, piece, ends),
            on_ready,
            on_gone,
            settle=kind in (STDIN, IOPUB),
        )


def address_of(info: Dict[str, Any], channel: str) -> Address:
    """Where one of a kernel's sockets is: a path, or (ip, port). Raises BadInfo."""
    try:
        ip, port = str(info["ip"]), int(info[f"{channel}_port"])
        transport = str(info["transport"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInfo(f"connection info without a usable {error}") from None
    if transport == "ipc":
        return f"{ip}-{port}"
    if transport != "tcp":
        raise BadInfo(f"kernels with the transport {transport[:20]!r} are not relayed")
    return (
        "127.0.0.1" if ip in ("*", "0.0.0.0", "localhost") else "::1" if ip == "::" else ip.strip("[]"),
        port,
    )
