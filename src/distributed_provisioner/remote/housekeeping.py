"""What the listener does by itself: short logs, leases, leaving when it is not used, clearing away what nothing uses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time

from files import KEEP_LOG, MAX_LOG, shorten
from kernels import accepts
from places import check_private, short_directory
from server_listener import load_json, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kernels import Kernel
    from listener import Listener

IDLE_EXIT = 600.0
"""Seconds after which a listener without kernels and without connections leaves."""
STALE = 30 * 86400.0
"""Seconds after which shipped files and state that nothing has used are cleared away."""
EXITED_KEPT = 7 * 86400.0
"""Seconds for which a kernel that has exited waits for its server where its lease never runs out."""
TOUCH = 43200.0
"""Seconds between signs of life for cleaners of temporary directories."""


class Housekeeping:
    """Started with the listener, never ended."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.idle_since: float | None = None
        self.touched = time.time()
        self.making: asyncio.Future[None] | None = None
        """Under way: the socket is made again."""

    def start(self) -> None:
        with contextlib.suppress(OSError):
            self.clear_leftovers()
        self.listener.spawn(self.watch_logs())
        self.listener.spawn(self.rounds())

    async def rounds(self) -> None:
        """Once a minute; what goes wrong in one round is tried again in the next."""
        while True:
            await asyncio.sleep(min(60, IDLE_EXIT / 4))
            try:
                await self.round()
            except Exception as error:
                print(f"housekeeping: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    async def round(self) -> None:
        self.listener.reasons.observe()
        self.listener.drain.check()
        for kernel in list(self.listener.kernels.values()):
            self.check_lease(kernel)
        self.listener.prefork.round()
        self.leave_when_unused()
        await self.keep_the_socket()
        if time.time() - self.touched > TOUCH:
            self.touched = time.time()
            self.touch()

    # leases

    def heard_of(self, owner: str | None, client: str) -> None:
        """A server's process connects or goes: its kernels' leases run from now."""
        for kernel in list(self.listener.kernels.values()):
            if (kernel.owner, kernel.client) == (owner, client):
                kernel.last_seen = time.monotonic()
                if kernel.orphan_timeout > 0:
                    loop = asyncio.get_event_loop()
                    loop.call_later(kernel.orphan_timeout + 0.1, self.check_lease, kernel)

    def check_lease(self, kernel: Kernel) -> None:
        """End a kernel whose server's process has not been heard of for its `orphan_timeout`; `attach` gives it to another process."""
        limit = kernel.orphan_timeout or (EXITED_KEPT if kernel.state == "exited" else 0.0)
        if limit <= 0 or self.listener.kernels.get(kernel.kernel_id) is not kernel:
            return
        if self.listener.server_connected(kernel):
            kernel.last_seen = time.monotonic()
        elif time.monotonic() - kernel.last_seen >= limit:
            kernel.reason = kernel.reason or "orphaned"
            self.listener.spawn(self.listener.discard(kernel, keep_log=not kernel.private_log))

    # logs

    async def watch_logs(self) -> None:
        """Keep each log short. The kernel's own end of it is open for appending, so it goes on at whatever the end then is."""
        pause = 2.0
        while True:
            await asyncio.sleep(pause)
            pause = min(pause * 2, 8.0)
            for kernel in self.listener.kernels.values():
                try:
                    size = os.stat(kernel.log).st_size
                except OSError:
                    continue
                if size - kernel.log_size > MAX_LOG // 16:
                    pause = 0.25
                if size > MAX_LOG:
                    shorten(kernel.log)
                    kernel.log_start = 0
                    size = KEEP_LOG
                kernel.log_size = size

    # the listener itself

    def leave_when_unused(self) -> None:
        if self.listener.kernels or self.listener.connections:
            self.idle_since = None
        elif self.idle_since is None:
            self.idle_since = time.monotonic()
        elif time.monotonic() - self.idle_since > IDLE_EXIT:
            self.listener.stop()

    async def keep_the_socket(self) -> None:
        """Somebody may clear /tmp, or our state: then the socket is made again, in the same directory if that is still ours."""
        listener = self.listener
        if self.making is None:
            if os.path.exists(listener.socket_path) and os.path.exists(listener.places.record):
                return
            self.making = asyncio.ensure_future(self._make_the_socket())
        await asyncio.shield(self.making)

    async def _make_the_socket(self) -> None:
        try:
            await self._listen_anew()
        finally:
            self.making = None

    async def _listen_anew(self) -> None:
        listener = self.listener
        os.makedirs(listener.places.state, mode=0o700, exist_ok=True)
        listener.server.close()
        try:
            os.makedirs(listener.directory, mode=0o700, exist_ok=True)
            check_private(listener.directory)
        except Exception:
            listener.directory = short_directory()
        for kernel in listener.kernels.values():
            with contextlib.suppress(OSError):
                os.makedirs(kernel.home, mode=0o700, exist_ok=True)
                kernel.save()  # for the next listener
        await listener.listen()
        listener.relays.listen_again()

    def touch(self) -> None:
        for place, _, files in os.walk(self.listener.directory):
            for name in ["", *files]:
                with contextlib.suppress(OSError):  # it went meanwhile
                    os.utime(os.path.join(place, name))
        os.utime(self.listener.places.state)

    def clear_leftovers(self) -> None:
        """Shipped files and state that nothing has used for a long time; other hosts may share this home, so age decides.

        A directory for sockets is on this host alone: one whose listener is gone, with its whole boot, is removed at once.
        """
        places = self.listener.places
        for name in os.listdir(places.states):
            record = load_json(os.path.join(places.states, name, os.path.basename(places.record)))
            directory = record.get("directory", "")
            here = record.get("hostname") == socket.gethostname() and os.path.isdir(directory)
            other = name != os.path.basename(places.state)
            if here and other and not accepts(socket.AF_UNIX, record.get("socket", "")):
                remove(directory)
        old = time.time() - STALE
        for parent in (places.cache, places.bundles, places.states):
            for name in os.listdir(parent):
                path = os.path.join(parent, name)
                if path in (places.bundles, places.state) or name.startswith("drained-"):
                    continue
                with contextlib.suppress(OSError):
                    if os.lstat(path).st_mtime < old:
                        remove(path)
