"""The listener of one user on one host: its connections and its kernels. What is asked of it is in operations.py."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import time

from admission import Admission
from children import Children
from connections import MAX_LINE, Connection, same_user
from drain import Drain
from housekeeping import Housekeeping
from login import LoginEnvironment
from operations import Operations
from places import Places, short_directory
from prefork import Prefork
from processes import become_subreaper, in_group, kill_all, kill_group
from reasons import Reasons
from relays import Relays
from server_listener import load_json, remove, start_time, write_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Coroutine

    from kernels import Kernel


def serve(digest: str, ready: int) -> None:
    """Run the listener; `ready` is the file descriptor of who waits for it. Kernels go on when it ends."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    listener = Listener(Places(), digest)
    gc.freeze()  # relays are forked from here: what is never collected stays shared with them
    asyncio.run(listener.run(ready))
    listener.leave()
    os._exit(0)


class Listener:
    """One for each user and host. All state is in memory and, for kernels, in records that a later listener reads again."""

    def __init__(self, places: Places, digest: str) -> None:
        self.places, self.digest = places, digest
        self.started = time.time()
        self.kernels: dict[str, Kernel] = {}
        self.connections: set[Connection] = set()
        self.login = LoginEnvironment(places.home)
        self.counter = 0
        self.tasks: set[asyncio.Future[Any]] = set()
        self.reasons = Reasons(places.CGROUPS, places.KERNEL_LOG)
        self.drain = Drain(places, self.tell_all)
        self.children = Children(self)
        self.relays = Relays(self)
        self.admission = Admission()
        self.prefork = Prefork(self)
        self.housekeeping = Housekeeping(self)
        self.operations = Operations(self)

    # life

    async def run(self, ready: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_event_loop().create_future()
        self.directory = self.children.take_over() or short_directory()
        become_subreaper()
        loop = asyncio.get_event_loop()
        loop.add_signal_handler(signal.SIGCHLD, self.children.reap)
        # Children must not inherit "ignored"; exec resets what is handled. A listener is ended by SIGTERM alone; its kernels stay.
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.spawn(self.housekeeping.keep_the_socket()))
        await self.listen()
        self.housekeeping.start()
        self.spawn(self.login.get())
        self.children.reap()
        os.write(ready, b"+")
        os.close(ready)
        await self.done

    def stop(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def listen(self) -> None:
        """Open the listener's socket, and tell bridges where it is."""
        self.socket_path = os.path.join(self.directory, "s")
        remove(self.socket_path)
        self.server = await asyncio.start_unix_server(self.accept, self.socket_path, limit=MAX_LINE)
        os.chmod(self.socket_path, 0o600)
        record: dict[str, Any] = {
            "socket": self.socket_path,
            "directory": self.directory,
            "version": self.digest,
            "hostname": socket.gethostname(),
        }
        record.update(pid=os.getpid(), start=start_time(os.getpid()))
        write_private(self.places.record, json.dumps(record).encode())

    def leave(self) -> None:
        """Remove what is ours alone; with kernels left, everything stays for the next listener."""
        if not self.kernels:
            if load_json(self.places.record).get("pid") == os.getpid():
                remove(self.places.record)
            remove(self.directory)

    # connections

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not same_user(writer.get_extra_info("socket")):
            writer.close()
            return
        connection = Connection(self, reader, writer)
        self.connections.add(connection)
        try:
            await connection.serve()
        finally:
            self.connections.discard(connection)
            for kernel in self.kernels.values():
                kernel.watchers.discard(connection)
            self.housekeeping.heard_of(connection.owner, connection.client)

    def tell(self, kernel: Kernel, event: str, **fields: Any) -> None:
        """Send an event to the connections that launched a kernel or attached to it."""
        message = dict(fields, event=event, kernel_id=kernel.kernel_id, generation=kernel.generation)
        for connection in kernel.watchers:
            connection.send(message)

    def tell_all(self, message: dict[str, Any]) -> None:
        for connection in self.connections:
            if connection.owner is not None:
                connection.send(message)

    def server_connected(self, kernel: Kernel) -> bool:
        """Whether the process of the server that has this kernel is here."""
        return any((each.owner, each.client) == (kernel.owner, kernel.client) for each in self.connections)

    def status(self, kernel: Kernel) -> dict[str, Any]:
        return dict(kernel.status(), server_connected=self.server_connected(kernel))

    # ending

    async def end(self, kernel: Kernel, grace: float) -> None:
        """TERM to the group, after `grace` seconds KILL to the whole descent; returns when nothing is left."""
        kernel.asked = True
        known = set(kernel.living().items())
        deadline = time.monotonic() + grace
        if grace > 0 and known:
            kill_all([p for p, _ in known if in_group(p, kernel.pgid)], signal.SIGTERM)
            while time.monotonic() < deadline and kernel.living(known):
                known |= set(kernel.living(known).items())
                await asyncio.sleep(0.02)
        left = kernel.living(known)
        give_up, pause = time.monotonic() + 5, 0.002
        while left and time.monotonic() < give_up:
            known |= set(left.items())
            kill_all(left, signal.SIGKILL)
            await kernel.exit_seen(0.01)
            left = kernel.living(known)
            if left:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.05)
        if kernel.state != "exited" and kernel.pid and not os.path.isdir("/proc/self"):
            kill_group(kernel.pgid, signal.SIGKILL)
        if kernel.pid:
            await kernel.exit_seen(2)

    async def discard(self, kernel: Kernel, keep_log: bool, keep_relay: bool = False) -> None:
        """End what is left of a kernel and remove its files and its record; a relay that is kept keeps its socket.

        Where it is asked for twice at the same time, the first one decides: the directory may be a later launch's afterwards.
        """
        if kernel.discarding is None:
            kernel.discarding = asyncio.ensure_future(self._discard(kernel, keep_log, keep_relay))
        await asyncio.shield(kernel.discarding)

    async def _discard(self, kernel: Kernel, keep_log: bool, keep_relay: bool) -> None:
        await self.end(kernel, 0)
        if kernel.log and kernel.private_log and not keep_log:
            remove(kernel.log)
        if keep_relay and kernel.relay:
            kernel.clear_home(os.path.basename(kernel.relay))
        else:
            await self.relays.end(kernel)
            remove(kernel.home)
        if self.kernels.get(kernel.kernel_id) is kernel:
            del self.kernels[kernel.kernel_id]
