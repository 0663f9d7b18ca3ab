"""What a server may ask of the listener: each `op_NAME` is an operation of the control protocol (see server_listener.py)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys

from files import MAX_LOG, added_to, bundle_digest, write_piece
from kernels import Kernel, OpError, merged
from launch import Launch
from places import SetupError, user_name
from processes import ended_at_logout
from server_listener import PROTOCOL, remove, start_time
from usage import host_usage, kernels_usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from connections import Connection
    from listener import Listener

    Result = Dict[str, Any]


class Operations:
    """Each takes the connection that asks and the request's parameters, and gives the result, or raises OpError or OSError."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.superseding: dict[tuple[str, int], Launch] = {}
        """Launches that still wait for the end of what they take the place of."""

    # the listener

    def op_hello(self, connection: Connection, protocol: int, owner: str, client: str, **_: Any) -> Result:
        listener, places = self.listener, self.listener.places
        if protocol != PROTOCOL:
            raise OpError("setup", f"the listener speaks protocol {PROTOCOL}, the server {protocol}")
        connection.owner, connection.client = owner, client
        for each in self.listener.connections:
            if each is not connection and each.owner == owner:
                each.send(
                    {"event": "hello"}
                )  # a line whose other end is gone without a word is found out by it
        listener.housekeeping.heard_of(owner, client)
        listener.drain.check()
        return {
            "protocol": PROTOCOL, "version": listener.digest, "pid": os.getpid(), "start": start_time(os.getpid()),
            "hostname": socket.gethostname(), "user": user_name(), "uid": os.getuid(), "home": places.home, "platform": sys.platform,
            "python": sys.version.split()[0],
            "identity": places.identity, "boot_id": places.boot_id, "directory": listener.directory, "socket": listener.socket_path,
            "bundles": os.listdir(places.bundles), "detached": not ended_at_logout(), "notes": [],
            "kernels": [listener.status(kernel) for kernel in listener.kernels.values() if kernel.owner == owner],
            **listener.drain.reply(),
        }  # fmt: skip

    def op_ping(self, connection: Connection, **_: Any) -> Result:
        self.listener.drain.check()
        return {}

    def op_retire(self, connection: Connection, **_: Any) -> Result:
        """Leave, if there is nothing to do; asked by the bridge of another version."""
        listener = self.listener
        retired = not listener.kernels and listener.connections <= {connection}
        if retired:
            listener.leave()
            asyncio.get_event_loop().call_later(0.05, listener.stop)
        return {"retired": retired}

    def op_drain(self, connection: Connection, on: bool, reason: str = "", **_: Any) -> Result:
        """Take no new kernels (or take them again); what root has drained for all stays so."""
        self.listener.drain.set(bool(on), str(reason))
        return {"drained": self.listener.drain.state()[0]}

    async def op_list(self, connection: Connection, usage: bool = False, **_: Any) -> Result:
        """Every kernel of this user, whoever owns it."""
        listener = self.listener
        kernels = list(listener.kernels.values())
        await listener.relays.ask_states(kernels)
        statuses = [listener.status(kernel) for kernel in kernels]
        if usage:
            for status, used in zip(statuses, await kernels_usage(kernels)):
                status.update(used)
        about = {
            "pid": os.getpid(), "version": listener.digest, "hostname": socket.gethostname(), "started": listener.started,
            **listener.drain.reply(), **host_usage(),
        }  # fmt: skip
        return {"kernels": statuses, "listener": about}

    # servers and their kernels

    def op_attach(self, connection: Connection, kernels: list[dict[str, Any]], **_: Any) -> Result:
        statuses = []
        for wanted in kernels:
            kernel = self.listener.kernels.get(wanted["kernel_id"])
            if kernel is None or kernel.generation != wanted["generation"]:
                statuses.append(dict(wanted, state="unknown"))
            else:
                self.give(kernel, connection)
                statuses.append(self.listener.status(kernel))
        return {"kernels": statuses}

    async def op_adopt(self, connection: Connection, kernels: list[dict[str, Any]], **_: Any) -> Result:
        """As `attach`, for a successor of the server's process: it is told what it needs to speak with the kernels."""
        found = [self.listener.kernels.get(wanted["kernel_id"]) for wanted in kernels]
        await self.listener.relays.ask_states([kernel for kernel in found if kernel is not None])
        statuses = []
        for wanted, kernel in zip(kernels, found):
            if (
                kernel is None
                or self.listener.kernels.get(kernel.kernel_id) is not kernel
                or kernel.generation != wanted["generation"]
                or kernel.owner != connection.owner
                or kernel.client != wanted.get("client", kernel.client)  # another successor was quicker
                or kernel.state == "starting"
            ):
                statuses.append(dict(wanted, state="unknown"))
            else:
                self.give(kernel, connection)
                statuses.append(dict(self.listener.status(kernel), **kernel.secrets()))
        return {"kernels": statuses}

    def give(self, kernel: Kernel, connection: Connection) -> None:
        """The connection gets the kernel's events, and its server's process, if it owns the kernel, the lease."""
        kernel.watchers.add(connection)
        if kernel.owner == connection.owner and kernel.client != connection.client:
            kernel.client = connection.client
            kernel.try_to_save()

    def op_annotate(
        self, connection: Connection, kernel_id: str, generation: int, annotations: dict[str, Any], **_: Any
    ) -> Result:
        """Merge into what the server keeps with a kernel; null removes a name."""
        kernel = self.find(kernel_id, generation)
        before, kernel.annotations = kernel.annotations, merged(kernel.annotations, annotations)
        try:
            kernel.save()
        except OSError:
            kernel.annotations = before
            raise
        return {}

    def op_log(
        self, connection: Connection, kernel_id: str, limit: int = 65536, after: int | None = None, **_: Any
    ) -> Result:
        """The end of a kernel's log, and how long the log is; with that as `after`, what was added since."""
        kernel = self.listener.kernels.get(kernel_id)
        if kernel is None:
            raise OpError("unknown-kernel", f"there is no kernel {kernel_id} here")
        limit = max(0, min(limit, MAX_LOG))
        if after is None:
            # The length first: what is added between comes twice rather than never.
            end = added_to(kernel.log, 1 << 62, 0)[1]
            return {"text": kernel.log_tail(limit), "end": end}
        text, end = added_to(kernel.log, max(int(after), kernel.log_start), limit)
        return {"text": text, "end": end}

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

    async def op_relay(self, connection: Connection, kernel_id: str, generation: int, **_: Any) -> Result:
        """Connect to the kernel's relay; its bytes come and go as frames of a channel of this connection."""
        kernel = self.find(kernel_id, generation)
        if kernel.relay is None:
            raise OpError("no-relay", f"kernel {kernel_id} has no relay")
        return {"channel": await connection.channels.open(kernel.relay)}

    # the end of a kernel

    async def op_end(
        self, connection: Connection, kernel_id: str, generation: int, grace: float = 5.0, **_: Any
    ) -> Result:
        kernel = self.find(kernel_id, generation)
        await self.listener.end(kernel, grace)
        return {"code": kernel.code, "reason": kernel.reason, "detail": kernel.detail}

    async def op_forget(
        self, connection: Connection, kernel_id: str, generation: int, keep_log: bool = False, **_: Any
    ) -> Result:
        kernel = self.listener.kernels.get(kernel_id)
        if kernel is not None and kernel.generation == generation:
            await self.listener.discard(kernel, keep_log)
        return {}

    async def op_cancel(self, connection: Connection, kernel_id: str, generation: int, **_: Any) -> Result:
        if (kernel_id, generation) in self.superseding:
            self.superseding[kernel_id, generation].cancelled = True
        kernel = self.listener.kernels.get(kernel_id)
        if kernel is not None and kernel.generation == generation:
            launching = kernel.launching
            if launching is not None and not launching.done():
                launching.cancel()
                await asyncio.wait([launching])
            await self.listener.discard(kernel, keep_log=False)
        return {}

    # its beginning

    def op_ship(
        self, connection: Connection, bundle: str, files: list[dict[str, Any]], commit: bool = False, **_: Any
    ) -> Result:
        if not re.fullmatch("[0-9a-f]{64}", bundle):
            raise OpError("bad-request", "a bundle is named by its digest")
        bundles = self.listener.places.bundles
        target = os.path.join(bundles, bundle)
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
            raise OpError("resources", f"cannot write below {bundles}: {error.strerror}") from error
        finally:
            if commit:
                remove(partial)
        return {}

    async def op_launch(self, connection: Connection, **request: Any) -> Result:
        """Start a kernel and wait until its sockets answer; whatever goes wrong, nothing is left of it."""
        with contextlib.suppress(
            OSError, SetupError
        ):  # a full disk: that is tried again, and may not matter here
            await self.listener.housekeeping.keep_the_socket()  # its directory is needed now
        launch = Launch(self.listener, connection, request)
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

    def find(self, kernel_id: str, generation: int) -> Kernel:
        kernel = self.listener.kernels.get(kernel_id)
        if kernel is None:
            raise OpError("unknown-kernel", f"there is no kernel {kernel_id} here")
        if kernel.generation != generation:
            raise OpError("superseded", f"kernel {kernel_id} is at generation {kernel.generation}")
        return kernel
