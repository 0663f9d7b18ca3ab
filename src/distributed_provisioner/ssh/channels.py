"""Streams to kernels' relays inside a control channel, for hosts where sshd forwards nothing."""

from __future__ import annotations

import asyncio

from ..errors import ProvisionerError
from ..traffic import Receiver, Writer
from .frames import frame
from .wire import Wire

MAX_EARLY = 16
"""Channels of which something is kept before their openers run. A relay says nothing before it was greeted."""


class Channels:
    """Those of one control channel, by their numbers."""

    def __init__(self) -> None:
        self._receivers: dict[int, Receiver] = {}
        self._early: dict[int, list[bytes]] = {}
        """What came on channels of which the reply has not been read yet."""
        self._last = 0
        self._wire: Wire | None = None

    def open(self, number: int, receiver: Receiver, wire: Wire) -> Writer:
        """The listener has opened one, whose bytes come and go on `wire`."""
        self._receivers[number] = receiver
        self._last = max(self._last, number)
        self._wire = wire
        wire.on_flow = self._flow
        if not wire.is_writable:
            receiver.pause_writing()
        for data in self._early.pop(number, ()):
            asyncio.get_running_loop().call_soon(self.received, number, data)
        return _Channel(self, number)

    def write(self, number: int, data: bytes | memoryview) -> None:
        """Nothing: close it."""
        if self._wire is None:
            return
        if not data and self._receivers.pop(number, None) is None:
            return
        self._wire.write(b"".join((frame(number, data), data)))

    def received(self, number: int, data: bytes) -> None:
        """A frame has come."""
        receiver = self._receivers.get(number)
        if receiver is None:
            if number > self._last and len(self._early) < MAX_EARLY:
                self._early.setdefault(number, []).append(data)  # else it has been closed from this side
        elif data:
            receiver.data_received(data)
        else:
            del self._receivers[number]
            receiver.lost()

    def lost(self, failure: ProvisionerError) -> None:
        """The control channel has ended."""
        self._wire = None
        receivers, self._receivers = self._receivers, {}
        for receiver in receivers.values():
            receiver.lost(failure)

    def _flow(self, writable: bool) -> None:
        for receiver in list(self._receivers.values()):
            if writable:
                receiver.resume_writing()
            else:
                receiver.pause_writing()


class _Channel:
    """What a receiver writes to."""

    def __init__(self, channels: Channels, number: int) -> None:
        self._channels, self._number = channels, number

    def write(self, data: bytes | memoryview) -> None:
        if data:
            self._channels.write(self._number, data)

    def close(self) -> None:
        self._channels.write(self._number, b"")
