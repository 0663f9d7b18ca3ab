"""Many log-ins at once: sshd drops connections then (MaxStartups), so they are made one after the other, and again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from distributed_provisioner.errors import HostUnreachableError

from .conftest import Get, Run


class Sshd:
    """Counts those who have not logged in yet; drops the first ones as MaxStartups does, the others it greets with an SSH of old."""

    def __init__(self) -> None:
        self.drops = 0
        self.accepted = self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.entry = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        with connection:
            with self._lock:
                self.accepted += 1
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                dropped = self.accepted <= self.drops
            if not dropped:
                time.sleep(0.2)
                connection.sendall(b"SSH-1.5-ancient\r\n")
            with self._lock:
                self.at_once -= 1

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    running = Sshd()
    yield running
    running.close()


def test_one_handshake_at_a_time_for_each_host(sshd: Sshd, run: Run, get: Get) -> None:
    """If it fails: a burst of launches under different log-ins is dropped by sshd, and hosts are passed over that are well."""
    connections = [get(sshd.entry, connect_timeout=10 + number) for number in range(4)]

    async def burst() -> list[object]:
        return list(
            await asyncio.gather(
                *(connection.connect() for connection in connections), return_exceptions=True
            )
        )

    assert all(isinstance(error, HostUnreachableError) for error in run(burst()))
    assert (sshd.accepted, sshd.most_at_once) == (4, 1)


def test_a_connection_that_was_dropped_is_made_again(sshd: Sshd, run: Run, get: Get) -> None:
    """If it fails: a busy sshd that drops one connection in three costs a launch."""
    sshd.drops = 2
    with pytest.raises(HostUnreachableError, match="does not speak SSH 2"):
        run(get(sshd.entry, connect_timeout=8).connect())
    assert sshd.accepted == 3
