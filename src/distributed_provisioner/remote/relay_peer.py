"""One connection of a relay to a socket of its kernel: DEALER (for one client, on one channel) or SUB."""

from __future__ import annotations

import errno
import selectors
import socket
from collections import deque

from relay_io import AT_ONCE, Stream
from zmtp import Engine, ProtocolError, command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, Optional, Tuple, Union

    from relay_io import Loop

    Address = Union[str, Tuple[str, int]]

SUBSCRIBE_ALL = b"\0\1\1"
"""As a message: 3.0 and 3.1 both take it."""
SETTLE = 0.1
"""Seconds until a 3.0 publisher, which knows no PING, is taken to have read a subscription."""
RETRY = 0.05
HANDSHAKE = 10.0


class Chunk:
    """A piece for the kernel. `written` is called once, when it is in the kernel's socket or has been dropped."""

    __slots__ = ("data", "ends", "written")

    def __init__(self, data: bytes, ends: bool, written: Optional[Callable[[], None]]) -> None:
        self.data, self.ends, self.written = memoryview(data), ends, written

    def done(self) -> None:
        if self.written is not None:
            self.written()
            self.written = None


class Peer:
    """Whole messages wait while there is no connection; one of which the kernel had got a part goes with the connection."""

    def __init__(
        self,
        loop: Loop,
        socket_type: bytes,
        identity: bytes,
        on_piece: Callable[[memoryview, bool], None],
        on_ready: Callable[[], None],
        on_gone: Callable[[str, bool], None],
        settle: bool,
    ) -> None:
        self.loop, self.socket_type, self.identity = loop, socket_type, identity
        self.on_piece, self.on_ready, self.on_gone = on_piece, on_ready, on_gone
        self.settle = settle
        """Ready is only when the kernel is known to have read who we are and what we want."""
        self.stream: Optional[Stream] = None
        self.engine = Engine(socket_type)
        self.queue: Deque[Chunk] = deque()
        self.urgent = b""
        """Commands, which may stand between messages only."""
        self.begun = False
        """The kernel has a part of the first message in the queue (or of one that is still to come)."""
        self.unfinished = False
        """The last message that was given to `send` has not ended."""
        self.swallow = False
        """What still comes of that message is dropped."""
        self.ready = False
        self.closing = False
        self.why = ""

    # the connection

    def connect(self, address: Address) -> None:
        """Begin to connect; `on_ready` or `on_gone(why, in the middle of a message)` follows."""
        family = (
            socket.AF_UNIX
            if isinstance(address, str)
            else socket.AF_INET6
            if ":" in address[0]
            else socket.AF_INET
        )
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found = sock.connect_ex(address)
        if found not in (0, errno.EINPROGRESS):
            sock.close()
            self._lost(errno.errorcode.get(found, str(found)))
            return
        self.engine = Engine(self.socket_type, self.identity, connecting=True)
        self.why, self.closing = "", False
        self.stream = stream = Stream(self.loop, sock, self._data, self._closed, self.flush)
        stream.write(self.engine.take())
        if found:
            self.loop.selector.modify(sock, selectors.EVENT_WRITE, stream.ready)
            stream.events = selectors.EVENT_WRITE
        else:
            stream.flush()
        self.loop.later(HANDSHAKE, lambda: self._too_late(stream))

    def _too_late(self, stream: Stream) -> None:
        if self.stream is stream and not self.ready:
            self.why = "it does not answer"
            stream.close()

    def _data(self, data: bytes) -> None:
        engine = self.engine
        try:
            for name, body, ends in engine.feed(data):
                if not name:
                    self.on_piece(body, ends)
                elif name == b"READY":
                    self._greeted()
                elif name == b"PONG" and not self.ready:
                    self._become_ready()
        except ProtocolError as error:
            self.why = str(error)
            self._close()
            return
        self.urgent += engine.take()
        self.flush()

    def _greeted(self) -> None:
        if self.socket_type == b"SUB":
            self.urgent += SUBSCRIBE_ALL
        if not self.settle:
            self._become_ready()
        elif self.engine.minor:
            self.urgent += command(b"PING", b"\0\0dp")  # the PONG proves that all before it was read
        else:
            stream = self.stream
            self.loop.later(SETTLE, lambda: self._settled(stream))

    def _settled(self, stream: Optional[Stream]) -> None:
        if self.stream is stream and stream is not None and not self.ready:
            self._become_ready()

    def _become_ready(self) -> None:
        self.ready = True
        self.on_ready()

    def _close(self) -> None:
        if self.stream is not None:
            self.stream.close()

    def close(self) -> None:
        """Take what the kernel still has said, then leave; what waits stays in the queue."""
        stream = self.stream
        for _ in range(256):
            if stream is None or stream.closed or not stream.read():
                break
        self._close()

    def _closed(self) -> None:
        self.stream = None
        self._lost(self.why or "it closed the connection")

    def _lost(self, why: str) -> None:
        inside, self.ready, self.urgent = self.engine.scanner.inside, False, b""
        self.engine.scanner.inside = False
        if self.begun:
            self._drop_first()
        self.closing = False
        self.on_gone(why, inside)

    # to the kernel

    def send(self, data: bytes, ends: bool, written: Callable[[], None]) -> None:
        """A piece of a message; kept until there is a connection."""
        chunk = Chunk(data, ends, written)
        self.unfinished = not ends
        if self.swallow:
            self.swallow = not ends
            chunk.done()
            return
        self.queue.append(chunk)
        self.flush()

    def void(self) -> None:
        """The unfinished message will not be finished. Where the kernel has a part of it, only a new connection makes it forget that."""
        if not self.unfinished:
            return
        self.unfinished = False
        if self.swallow:
            self.swallow = False
            return
        whole = max((n for n, chunk in enumerate(self.queue, 1) if chunk.ends), default=0)
        while len(self.queue) > whole:
            self.queue.pop().done()
        if self.begun and not whole:
            self.begun = False
            self._start_afresh()

    def _start_afresh(self) -> None:
        """The kernel must see the end of this connection before a new one with the same identity comes: `on_gone` is called then."""
        stream = self.stream
        if stream is None or self.closing:
            return
        self.closing = True
        try:
            stream.sock.shutdown(socket.SHUT_WR)
        except OSError:
            stream.close()
        self.loop.later(HANDSHAKE, stream.close)  # where the kernel does not close its end

    def _drop_first(self) -> None:
        self.begun = False
        while self.queue:
            chunk = self.queue.popleft()
            chunk.done()
            if chunk.ends:
                return
        self.swallow = self.unfinished

    def flush(self) -> None:
        """Write what can be written."""
        stream = self.stream
        while stream is not None and not stream.closed and not self.closing:
            if self.urgent and not self.begun:
                stream.write(self.urgent)
                self.urgent = b""
            if stream.out:  # the greeting, or commands
                stream.flush()
                if stream.out or stream.closed:
                    return
            if not self.ready or not self.queue:
                return
            if not self._write_some(stream):
                return

    def _write_some(self, stream: Stream) -> bool:
        """Write from the head of the queue, to the end of a message where commands wait for that; False when the socket is full."""
        batch = []
        for chunk in self.queue:
            batch.append(chunk.data)
            if len(batch) == AT_ONCE or (self.urgent and chunk.ends):
                break
        try:
            sent = stream.sock.sendmsg(batch)
        except BlockingIOError:
            stream.events = selectors.EVENT_READ | selectors.EVENT_WRITE
            self.loop.selector.modify(stream.sock, stream.events, stream.ready)
            return False
        except OSError:
            stream.close()
            return False
        while self.queue and sent >= len(self.queue[0].data):
            chunk = self.queue.popleft()
            sent -= len(chunk.data)
            self.begun = not chunk.ends
            chunk.done()
        if sent:
            self.queue[0].data = self.queue[0].data[sent:]
            self.begun = True
        return True
