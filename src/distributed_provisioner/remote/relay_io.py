"""A relay's loop: non-blocking sockets in a selector, and a clock. (asyncio would take three times the memory.)"""

from __future__ import annotations

import contextlib
import heapq
import selectors
import socket
import time
from collections import deque

from relay_wire import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Deque, List, Optional, Tuple, Union

    Buffer = Union[bytes, bytearray, memoryview]

AT_ONCE = 32
"""Buffers in one call of sendmsg."""
SEND_BUFFER = 1 << 20
"""Bytes that a socket takes at once, as far as the system allows: with the usual 208 KB two processes wait for each other by turns."""


class Loop:
    """Calls what is registered with its sockets, and what is due."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.due: List[Tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.stopped = False
        self.idle: Optional[Callable[[], None]] = None
        """Called once, before the next look at the sockets."""

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.due, (time.monotonic() + seconds, self.count, call))

    def run(self) -> None:
        while not self.stopped:
            wait = max(0.0, self.due[0][0] - time.monotonic()) if self.due else None
            for key, mask in self.selector.select(wait):
                if key.fd in self.selector.get_map():  # else it was closed by what was called before
                    key.data(mask)
            while self.due and self.due[0][0] <= time.monotonic():
                heapq.heappop(self.due)[2]()
            if self.idle is not None:
                idle, self.idle = self.idle, None
                idle()


class Stream:
    """A non-blocking socket with a queue of buffers to be written. A connection that is not there yet may be written to."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_data: Callable[[bytes], None],
        on_close: Callable[[], None],
        on_drain: Optional[Callable[[], None]] = None,
    ) -> None:
        self.loop, self.sock, self.on_data, self.on_close, self.on_drain = (
            loop,
            sock,
            on_data,
            on_close,
            on_drain,
        )
        self.out: Deque[memoryview] = deque()
        self.waiting = 0
        """Bytes that are still to be written."""
        self.closed = False
        self.events = selectors.EVENT_READ
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        loop.selector.register(sock, self.events, self.ready)

    def write(self, *buffers: Buffer) -> None:
        """Queue; `flush` writes."""
        for buffer in buffers:
            if buffer:
                self.out.append(memoryview(buffer))
                self.waiting += len(buffer)

    def flush(self) -> None:
        try:
            while self.out and not self.closed:
                batch = [self.out[i] for i in range(min(len(self.out), AT_ONCE))]
                self._written(self.sock.sendmsg(batch))
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._want()

    def _written(self, sent: int) -> None:
        self.waiting -= sent
        while sent:
            first = self.out[0]
            if sent < len(first):
                self.out[0] = first[sent:]
                return
            sent -= len(self.out.popleft())

    def _want(self) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.out else 0)
        if events != self.events and not self.closed:
            self.events = events
            self.loop.selector.modify(self.sock, events, self.ready)

    def ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self.flush()
            if self.on_drain is not None and not self.closed:
                self.on_drain()
        if mask & selectors.EVENT_READ and not self.closed:
            self.read()

    def read(self) -> bool:
        """Take what is there, at most CHUNK; False where nothing was."""
        try:
            data = self.sock.recv(CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self.on_data(data)
        else:
            self.close()
        return bool(data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.loop.selector.unregister(self.sock)
            self.sock.close()
            self.out.clear()
            self.on_close()
