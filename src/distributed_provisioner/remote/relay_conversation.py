"""A stream that somebody has opened to a relay."""

from __future__ import annotations

import os
import socket
import struct

import relay_wire
from relay_io import Stream
from relay_wire import HELLO, TELL, Records, Rubbish, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Optional

    from relay import Relay
    from relay_reader import Reader

GREETING_TIME = 10.0
"""Seconds until the first record has to be there."""
MAX_WAITING = 16 << 20
"""Bytes that may wait for somebody who asks and does not listen."""


class Conversation:
    """One accepted stream. Rubbish closes it and harms no other."""

    def __init__(self, relay: Relay, sock: socket.socket) -> None:
        self.relay, self.role = relay, ""
        self.records = Records()
        self.reader: Optional[Reader] = None
        relay.conversations.add(self)
        self.stream = Stream(relay.loop, sock, self.data, self.closed, self.drained)
        relay.loop.later(GREETING_TIME, self.too_late)

    def data(self, data: bytes) -> None:
        try:
            for record in self.records.feed(data):
                if self.stream.closed:
                    return
                self.obey(record)
        except (Rubbish, UnicodeError, OverflowError):
            self.stream.close()
            return
        self.drained()

    def obey(self, record: relay_wire.Record) -> None:
        kind, payload = record[0], record[4]
        if not self.role:
            if kind != HELLO:
                raise Rubbish("no hello")
            self.relay.hello(self, loads(payload))
        elif self.role == "server":
            self.relay.obey(self, record)
        elif self.reader is not None:
            self.reader.obey(kind, payload)
        elif kind == TELL:
            self.relay.listener_says(self, loads(payload))
        else:
            raise Rubbish("a listener tells")

    def write(self, data: bytes) -> None:
        if not self.stream.closed:
            self.stream.write(data)
            self.stream.flush()
        if self.stream.waiting > MAX_WAITING:
            self.stream.close()

    def drained(self) -> None:
        if self.reader is not None:
            self.reader.pump()
        elif self is self.relay.server:
            self.relay.pump()

    def too_late(self) -> None:
        if not self.role:
            self.stream.close()

    def closed(self) -> None:
        self.relay.ended(self)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def same_user(sock: socket.socket) -> bool:
    """Whether the other end is our user (or root); True where the system cannot say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    return uid in (0, os.getuid())
