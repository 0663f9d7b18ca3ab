"""The listener of one user on one host: its connections, its kernels, and what is asked of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time

from connections import MAX_LINE, Connection, same_user
from files import MAX_LOG, bundle_digest, write_piece
from housekeeping import Housekeeping
from kernels import Kernel, OpError
from launch import Launch
from login import LoginEnvironment
from processes import become_subreaper, describe_exit, ended_at_logout, in_group, kill_all, kill_group
from server_listener import (
    PROTOCOL,
    Places,
    SetupError,
    check_private,
    load_json,
    remove,
    short_directory,
    start_time,
    user_name,
    write_private,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Coroutine, Dict

    Result = Dict[str, Any]


def serve(digest: str, ready: int) -> None:
    """Run the listener; `ready` is the file descriptor of who waits for it. Kernels go on when it ends."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    listener = Listener(Places(), digest)
    asyncio.run(listener.run(ready))
    listener.leave()
    os._exit(0)


class Listener:
    """One for each user and host. All state is in memory and, for kernels, in records that a later listener reads again."""

    def __init__(self, places: Places, digest: str) -> None:
        self.places, self.digest = places, digest
        self.kernels: dict[str, Kernel] = {}
        self.superseding: dict[tuple[str, int], Launch] = {}
        """Launches that still wait for the end of what they take the place of."""
        self.connections: set[Connection] = set()
        self.login = LoginEnvironment(places.home)
        self.counter = 0
        self.tasks: set[asyncio.Future[Any]] = set()
        self.housekeeping = Housekeeping(self)

    # life

    async def run(self, ready: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_event_loop().create_future()
        self.directory = self.take_over() or short_directory()
        become_subreaper()
        loop = asyncio.get_event_loop()
        loop.add_signal_handler(signal.SIGCHLD, self.reap)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Children must not inherit "ignored"; exec resets what is handled. A listener is ended by SIGTERM alone; its kernels stay.
            loop.add_signal_handler(number, self.stop if number == signal.SIGTERM else lambda: None)
        await self.listen()
        self.housekeeping.start()
        self.spawn(self.login.get())
        self.reap()
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

    def take_over(self) -> str | None:
        """The directory of a listener that is gone, if its kernels are still there; they are watched from now on."""
        directory: str | None = load_json(self.places.record).get("directory")
        if not directory or not os.path.isdir(directory):
            return None
        try:
            check_private(directory)
        except (SetupError, OSError):
            return None  # it was cleared away, and somebody else has made one of that name
        for name in os.listdir(directory):
            home = os.path.join(directory, name)
            values = load_json(os.path.join(home, "record"))
            if name.isdigit():
                self.counter = max(self.counter, int(name))
            if not values:
                if name.isdigit():
                    remove(home)
                continue
            kernel = Kernel(home, **values)
            self.kernels[kernel.kernel_id] = kernel
            kernel.state = "running"
            if start_time(kernel.pid) == kernel.start:
                self.spawn(self.watch_foreign(kernel, kernel.pid, kernel.start))
            elif kernel.kernel_lives():  # its launcher had ended before
                self.spawn(self.watch_foreign(kernel, kernel.kernel_pid, kernel.kernel_start))
            else:
                self.exited(kernel, None)
        return directory

    async def watch_foreign(self, kernel: Kernel, pid: int, start: int | None) -> None:
        """A kernel that another listener started is not our child: wait for its end, whose status nobody can see."""
        try:
            handle = os.pidfd_open(pid)  # Linux, Python 3.9
        except (AttributeError, OSError):
            while start_time(pid) == start:
                await asyncio.sleep(1)
        else:
            gone: asyncio.Future[None] = asyncio.get_event_loop().create_future()
            asyncio.get_event_loop().add_reader(
                handle, lambda: None if gone.done() else gone.set_result(None)
            )
            await gone
            asyncio.get_event_loop().remove_reader(handle)
            os.close(handle)
        if self.kernels.get(kernel.kernel_id) is kernel:
            self.exited(kernel, None)

    def leave(self) -> None:
        """Remove what is ours alone; with kernels left, everything stays for the next listener."""
        if not self.kernels:
            if load_json(self.places.record).get("pid") == os.getpid():
                remove(self.places.record)
            remove(self.directory)

    # children

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for kernel in list(self.kernels.values()):
                if kernel.pid == pid and not kernel.leader_gone:
                    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                    kernel.leader_gone = True
                    if kernel.state != "running" or not kernel.kernel_lives():
                        self.exited(kernel, code)
                elif kernel.kernel_pid == pid and kernel.leader_gone and kernel.state == "running":
                    # The launcher had ended before; the kernel that it started is ours since then, as we are its subreaper.
                    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                    self.exited(kernel, code)

    def exited(self, kernel: Kernel, code: int | None) -> None:
        if kernel.state == "exited":
            return
        starting = kernel.state == "starting"
        kernel.state, kernel.code = "exited", code
        reason, kernel.detail = describe_exit(code)
        kernel.reason = kernel.reason or reason
        if kernel.ending is not None and not kernel.ending.done():
            kernel.ending.set_result(None)
        if not starting:
            self.tell(
                kernel,
                "exited",
                code=code,
                reason=kernel.reason,
                detail=kernel.detail,
                log_tail=kernel.log_tail(),
            )

    def tell(self, kernel: Kernel, event: str, **fields: Any) -> None:
        message = dict(fields, event=event, kernel_id=kernel.kernel_id, generation=kernel.generation)
        for connection in kernel.watchers:
            connection.send(message)

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

    # operations, each named as in the protocol

    def op_hello(self, connection: Connection, protocol: int, owner: str, client: str, **_: Any) -> Result:
        if protocol != PROTOCOL:
            raise OpError("setup", f"the listener speaks protocol {PROTOCOL}, the server {protocol}")
        connection.owner, connection.client = owner, client
        self.housekeeping.heard_of(owner, client)
        return {
            "protocol": PROTOCOL, "version": self.digest, "pid": os.getpid(), "start": start_time(os.getpid()),
            "hostname": socket.gethostname(), "user": user_name(), "uid": os.getuid(), "home": self.places.home, "platform": sys.platform,
            "python": sys.version.split()[0],
            "identity": self.places.identity, "boot_id": self.places.boot_id, "directory": self.directory, "socket": self.socket_path,
            "bundles": os.listdir(self.places.bundles), "detached": not ended_at_logout(), "notes": [],
            "kernels": [kernel.status() for kernel in self.kernels.values() if kernel.owner == owner],
        }  # fmt: skip

    def op_ping(self, connection: Connection, **_: Any) -> Result:
        return {}

    def op_retire(self, connection: Connection, **_: Any) -> Result:
        """Leave, if there is nothing to do; asked by the bridge of another version."""
        retired = not self.kernels and self.connections <= {connection}
        if retired:
            self.leave()
            asyncio.get_event_loop().call_later(0.05, self.stop)
        return {"retired": retired}

    def op_list(self, connection: Connection, **_: Any) -> Result:
        return {
            "kernels": [kernel.status() for kernel in self.kernels.values()],
            "listener": {"pid": os.getpid(), "version": self.digest},
        }

    def op_attach(self, connection: Connection, kernels: list[dict[str, Any]], **_: Any) -> Result:
        statuses = []
        for wanted in kernels:
            kernel = self.kernels.get(wanted["kernel_id"])
            if kernel is None or kernel.generation != wanted["generation"]:
                statuses.append(dict(wanted, state="unknown"))
            else:
                kernel.watchers.add(connection)
                if kernel.owner == connection.owner and kernel.client != connection.client:
                    kernel.client = connection.client
                    kernel.save()
                statuses.append(kernel.status())
        return {"kernels": statuses}

    def op_log(self, connection: Connection, kernel_id: str, limit: int = 65536, **_: Any) -> Result:
        kernel = self.kernels.get(kernel_id)
        if kernel is None:
            raise OpError("unknown-kernel", f"there is no kernel {kernel_id} here")
        return {"text": kernel.log_tail(max(0, min(limit, MAX_LOG)))}

    def op_signal(
        self,
        connection: Connection,
        kernel_id: str,
        generation: int,
        signal: int,
        target: str = "default",
        **_: Any,
    ) -> Result:
        self.find(kernel_id, generation).send_signal(int(signal), target)
        return {}

    async def op_end(
        self, connection: Connection, kernel_id: str, generation: int, grace: float = 5.0, **_: Any
    ) -> Result:
        kernel = self.find(kernel_id, generation)
        await self.end(kernel, grace)
        return {"code": kernel.code, "reason": kernel.reason, "detail": kernel.detail}

    async def op_forget(
        self, connection: Connection, kernel_id: str, generation: int, keep_log: bool = False, **_: Any
    ) -> Result:
        kernel = self.kernels.get(kernel_id)
        if kernel is not None and kernel.generation == generation:
            await self.discard(kernel, keep_log)
        return {}

    async def op_cancel(self, connection: Connection, kernel_id: str, generation: int, **_: Any) -> Result:
        if (kernel_id, generation) in self.superseding:
            self.superseding[kernel_id, generation].cancelled = True
        kernel = self.kernels.get(kernel_id)
        if kernel is not None and kernel.generation == generation:
            launching = kernel.launching
            if launching is not None and not launching.done():
                launching.cancel()
                await asyncio.wait([launching])
            await self.discard(kernel, keep_log=False)
        return {}

    def op_ship(
        self, connection: Connection, bundle: str, files: list[dict[str, Any]], commit: bool = False, **_: Any
    ) -> Result:
        if not re.fullmatch("[0-9a-f]{64}", bundle):
            raise OpError("bad-request", "a bundle is named by its digest")
        target = os.path.join(self.places.bundles, bundle)
        partial = connection.partial.setdefault(bundle, f"{target}.{os.getpid()}.{id(connection):x}")
        try:
            os.makedirs(partial, mode=0o700, exist_ok=True)
            for entry in files:
                write_piece(partial, entry)
            if commit:
                del connection.partial[bundle]
                if bundle_digest(partial) != bundle:
                    raise OpError("bad-request", "what arrived is not what was announced")
                if not os.path.isdir(target):
                    os.rename(partial, target)
        except OSError as error:
            raise OpError(
                "resources", f"cannot write below {self.places.bundles}: {error.strerror}"
            ) from error
        finally:
            if commit:
                remove(partial)
        return {}

    def find(self, kernel_id: str, generation: int) -> Kernel:
        kernel = self.kernels.get(kernel_id)
        if kernel is None:
            raise OpError("unknown-kernel", f"there is no kernel {kernel_id} here")
        if kernel.generation != generation:
            raise OpError("superseded", f"kernel {kernel_id} is at generation {kernel.generation}")
        return kernel

    # ending

    async def end(self, kernel: Kernel, grace: float) -> None:
        """TERM to the group, after `grace` seconds KILL to the whole descent; returns when nothing is left."""
        known = set(kernel.living().items())
        deadline = time.monotonic() + grace
        if grace > 0 and known:
            kill_all([p for p, _ in known if in_group(p, kernel.pgid)], signal.SIGTERM)
            while time.monotonic() < deadline and kernel.living(known):
                known |= set(kernel.living(known).items())
                await asyncio.sleep(0.02)
        left = kernel.living(known)
        give_up = time.monotonic() + 5
        while left and time.monotonic() < give_up:
            known |= set(left.items())
            kill_all(left, signal.SIGKILL)
            await asyncio.sleep(0.01)
            left = kernel.living(known)
        if kernel.state != "exited" and kernel.pid and not os.path.isdir("/proc/self"):
            kill_group(kernel.pgid, signal.SIGKILL)
        if kernel.state != "exited" and kernel.pid:
            if kernel.ending is None:
                kernel.ending = asyncio.get_event_loop().create_future()
            await asyncio.wait([kernel.ending], timeout=2)

    async def discard(self, kernel: Kernel, keep_log: bool) -> None:
        """End what is left of a kernel and remove its files and its record."""
        await self.end(kernel, 0)
        if kernel.log and kernel.private_log and not keep_log:
            remove(kernel.log)
        remove(kernel.home)
        if self.kernels.get(kernel.kernel_id) is kernel:
            del self.kernels[kernel.kernel_id]

    # launching

    async def op_launch(self, connection: Connection, **request: Any) -> Result:
        """Start a kernel and wait until its sockets answer; whatever goes wrong, nothing is left of it."""
        launch = Launch(self, connection, request)
        name = request["kernel_id"], request["generation"]
        self.superseding[name] = launch
        try:
            await launch.supersede()
        finally:
            del self.superseding[name]
        kernel = launch.kernel
        kernel.launching = asyncio.ensure_future(launch.run())
        try:
            reply: Result = await kernel.launching
            return reply
        except asyncio.CancelledError:
            if not kernel.launching.done():  # the connection went away, not `cancel`
                kernel.launching.cancel()
                await asyncio.wait([kernel.launching])
            raise OpError("cancelled", f"the launch of {kernel.kernel_id} was cancelled") from None
