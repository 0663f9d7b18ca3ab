"""Kernels that another process launched: taken over in the background, or left running for the next. Runs on the I/O loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ..errors import HostError
from ..hosts import HostPool
from ..kernel_on_host import exit_reason
from ..models import CHANNELS, ExitReason, KernelIdentity, KernelState, Login, RemoteProcess
from ..ssh import Attachment, HostConnection
from .launching import Launched
from .life import KernelLife

FIRST_RETRY, LONGEST_RETRY = 0.5, 30.0
"""Seconds between attempts to attach a kernel whose host cannot be reached."""
CLIENTS_RETURN = 0.3
"""Seconds in which clients that wait find the near ends, all of each client: ZMQ tries every 0.1 s. Whose shell is served before its iopub
is there loses what its next cell prints."""


class Adopting:
    """Takes a kernel over from an earlier process, and lets go of it for a later one."""

    def __init__(self, life: KernelLife) -> None:
        self._life = life
        self._attaching: asyncio.Task[None] | None = None

    async def adopt(
        self, process: RemoteProcess, login: Login, identity: KernelIdentity
    ) -> Mapping[str, Any]:
        """Attach it as soon as its host can be reached. Returns where its endpoints will be, as connection info."""
        life = self._life
        life.process = process
        life.generation = max(life.generation, process.generation)
        life.start(login)
        life.to_forget = True
        connection = life.on_host().connection
        endpoints = endpoints_of(process, connection, life.near_ends.prefix)
        self._attaching = asyncio.ensure_future(self._attach_when_reachable(process, connection, identity))
        return endpoints

    async def detach(self) -> None:
        """Let go of it; it runs on. To this process it has ended."""
        life = self._life
        life.ending, life.to_forget = True, False
        if self._attaching is not None:
            self._attaching.cancel()
        if life.state is not KernelState.EXITED:
            life.exited(ExitReason(None, "unknown", "left running for the next server"), "")
        await life.near_ends.gone()
        await life.near_ends.close_spare()

    async def _attach_when_reachable(
        self, process: RemoteProcess, connection: HostConnection, identity: KernelIdentity
    ) -> None:
        life, pause = self._life, FIRST_RETRY
        while life.generation == process.generation and life.state is not KernelState.EXITED:
            try:
                return await self._attach(process, connection, identity)
            except (HostError, OSError) as error:
                life.away()
                life.logger().info("cannot be attached yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY)

    async def _attach(
        self, process: RemoteProcess, connection: HostConnection, identity: KernelIdentity
    ) -> None:
        life = self._life
        watch = connection.watch(life.kernel_id, process.generation, life.watcher(process.generation))
        attachment: Attachment | None = None
        try:
            await connection.connect()
            status = await life.on_host().status()
            if status["state"] in ("exited", "unknown"):
                watch.close()
                life.exited(exit_reason(status), status.get("log_tail") or "")
                return
            attachment = await connection.attach(process, life.near_ends.prefix, identity, serving=False)
            await asyncio.sleep(CLIENTS_RETURN)
            connection.serve(attachment)
        except (asyncio.CancelledError, HostError, OSError):
            watch.close()
            if attachment is not None:
                await attachment.close()
            raise
        life.back(KernelState.STARTING)
        reservation = HostPool.current().reserve_at(process.host)
        life.hold(Launched(process, connection, reservation, watch, attachment, {}))


def endpoints_of(process: RemoteProcess, connection: HostConnection, prefix: str) -> dict[str, Any]:
    """Where a kernel's endpoints will be once it is attached."""
    transport, ip, ports = "ipc", prefix, {name: number for number, name in enumerate(CHANNELS, 1)}
    if connection.is_local and not process.relay:
        transport = "ipc" if process.kernel_transport == "ipc" else "tcp"
        ip, ports = process.ip, dict(process.ports)
    elif process.kernel_transport == "direct":
        transport, ip, ports = "tcp", process.ip, dict(process.ports)
    return {"transport": transport, "ip": ip, **{f"{channel}_port": ports[channel] for channel in CHANNELS}}
