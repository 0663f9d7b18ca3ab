"""The heartbeat."""

from __future__ import annotations

from .clients import Client


class Echo:
    """The heartbeat's near end: says what it hears, as long as the kernel lives."""

    def __init__(self) -> None:
        self.beats = True
        self._clients: set[Client] = set()

    def arrived(self, client: Client) -> None:
        self._clients.add(client)

    def left(self, client: Client) -> None:
        self._clients.discard(client)

    def said(self, client: Client, piece: memoryview, ends: bool) -> None:
        if self.beats:
            client.write(piece)

    def subscribes(self, client: Client, wanted: bool, topic: bytes) -> None:
        """Nobody can here."""

    def flows(self, client: Client, slow: bool) -> None:
        """A heartbeat is read, or its client is on its own."""

    def close(self) -> None:
        for client in list(self._clients):
            client.close()
