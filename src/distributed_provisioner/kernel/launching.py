"""One launch of a kernel: ask hosts in turn until one has it, and leave nothing behind wherever it does not.

Everything here runs on the I/O loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import (
    HostDrainedError,
    HostError,
    HostUnreachableError,
    LaunchError,
    NoHostAvailableError,
    ProvisionerError,
    RunAsError,
)
from ..hosts import HostPool, Reservation
from ..kernel_log import Log
from ..launch_errors import explained, nobody
from ..local_endpoints import keep_directory
from ..models import (
    CHANNELS,
    HostAddress,
    HostCondition,
    KernelIdentity,
    KernelTransport,
    LaunchRequest,
    Login,
    RemoteProcess,
)
from ..ssh import Attachment, Connections, HostConnection, KernelEvent, RelayAttachment, Watch
from ..ssh.beside import beside
from .question import UnfitHostError, question, transport_for
from .reply import read_reply
from .undoing import shielded, undo

ANSWER_MARGIN = 5.0
"""Seconds beyond `launch_timeout` after which a listener that says nothing is given up."""
PHASES = ("reserve", "connect", "ship", "start", "forward", "ready")


@dataclass(frozen=True)
class Launched:
    """A kernel that runs, and all that this side holds for it."""

    process: RemoteProcess
    connection: HostConnection
    reservation: Reservation
    watch: Watch
    attachment: Attachment
    info: Mapping[str, Any]
    """Connection info for Jupyter, the key as text."""


class Launch:
    """A launch under way; `run()` once.

    Args:
        previous: where the kernel ran before, for a restart: its host is asked first, its endpoints are kept.
        spare: the near ends of that kernel, where clients may still be connected. They are taken over, or closed.
        next_generation: gives a number greater than all before, one for each attempt.
        watcher: gives the callback for the events of a generation.
    """

    def __init__(
        self,
        request: LaunchRequest,
        *,
        prefix: str,
        previous: RemoteProcess | None,
        spare: RelayAttachment | None = None,
        next_generation: Callable[[], int],
        watcher: Callable[[int], Callable[[KernelEvent], None]],
        log: Log,
    ) -> None:
        self.request = request
        self.phases: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        """Seconds, summed over all attempts."""
        self._prefix = prefix
        self._previous = previous
        self._spare = spare
        self._next_generation = next_generation
        self._watcher = watcher
        self._log = log
        self._pool = HostPool.current()
        self._pool.ask(host_condition)
        self._tried: dict[HostAddress, HostError] = {}
        self._got_through = False
        self._waits = False
        """Whether the host has said of late that it waits for its turn there."""

    async def run(self) -> Launched:
        """Ask hosts until one has the kernel.

        Raises:
            NoHostAvailableError: all were asked; `tried` has their reasons.
            LaunchError: a host works, the kernel does not start on it; no other host is asked.
        """
        try:
            return await self._run()
        except BaseException:
            if self._spare is not None:
                await shielded(self._spare.close())
            raise

    async def _run(self) -> Launched:
        while True:
            with self._phase("reserve"):
                reservation = self._reserve()
            if reservation is None:
                raise self._nobody()
            with reservation:
                try:
                    launched = await self._on_host(reservation)
                except HostError as error:
                    self._tried[reservation.address] = error
                    if not isinstance(error, (UnfitHostError, HostDrainedError, RunAsError)):
                        reservation.failed()
                    self._log.info("host %s was passed over: %s", reservation.address, error)
                else:
                    reservation.worked()
                    reservation.commit()
                    return launched

    def _reserve(self) -> Reservation | None:
        request, previous = self.request, self._previous
        if (
            previous is not None
            and not self._tried
            and request.pin is None
            and previous.host in request.hosts
        ):
            return self._pool.reserve_at(previous.host)
        return self._pool.reserve(request, self._tried)

    async def _on_host(self, reservation: Reservation) -> Launched:
        self._got_through = False
        try:
            return await self._attempt(reservation)
        except HostError:
            connections = Connections.current()
            if not self._got_through or connections.closed:
                raise
            if connections.get(reservation.address, self.request.login).state in ("connected", "closed"):
                raise
            # The line may have been dead for long, with nobody there to notice it. The host itself is asked once more.
            return await self._attempt(reservation)

    async def _attempt(self, reservation: Reservation) -> Launched:
        request, address = self.request, reservation.address
        connection = Connections.current().get(address, request.login)
        with self._phase("connect"):
            await connection.connect()
        self._got_through = True
        transport = transport_for(request, connection)
        if transport == "tcp" and not request.encryption:
            self._log.info(
                "its sockets are on loopback TCP without Curve: other users of %s could read its messages",
                address,
            )
        with self._phase("ship"):
            bundle = await connection.ship(request.resource_dir) if request.resource_dir else None
        generation = self._next_generation()
        watch = connection.watch(request.kernel_id, generation, self._listening(generation))
        early: Attachment | None = None
        try:
            early = await self._attach_early(connection, transport)
            with self._phase("start"):
                reply = await self._ask(connection, generation, transport, bundle)
            process, info = read_reply(reply, address, generation, request)
            with self._phase("forward"):
                attachment = await self._attach(connection, process, info, early)
        except BaseException:
            watch.close()
            if early is not None and early is not self._spare:
                await shielded(early.close())
            await shielded(undo(connection, request.kernel_id, generation))
            raise
        self._split_start(reply)
        endpoints = {f"{channel}_port": int(attachment.ports[channel]) for channel in CHANNELS}
        info = {**info, "ip": attachment.ip, "transport": attachment.transport, **endpoints}
        return Launched(process, connection, reservation, watch, attachment, info)

    async def _attach_early(
        self, connection: HostConnection, transport: KernelTransport
    ) -> Attachment | None:
        """At a restart: clients of the kernel before are connected before the new one runs its first cell, and lose nothing."""
        if self._previous is None or not self._stays(connection, transport):
            return None
        await beside(lambda: keep_directory(self._prefix))
        if self._spare is not None:
            await self._spare.renew()
            return self._spare
        return await connection.attach(self._previous, self._prefix, self._identity({}), serving=False)

    async def _attach(
        self,
        connection: HostConnection,
        process: RemoteProcess,
        info: Mapping[str, Any],
        early: Attachment | None,
    ) -> Attachment:
        before, identity = self._previous, self._identity(info)
        for attachment in dict.fromkeys((early, self._spare)):
            if attachment is None:
                continue
            if attachment is early and before is not None and _becomes(attachment, before, process, identity):
                connection.serve(attachment)
                return attachment
            await attachment.close()
        return await connection.attach(process, self._prefix, identity)

    def _identity(self, info: Mapping[str, Any]) -> KernelIdentity:
        key, scheme = info.get("key", self.request.key), info.get("signature_scheme", "hmac-sha256")
        return KernelIdentity(self.request.kernel_id, key, scheme)

    def _stays(self, connection: HostConnection, transport: KernelTransport) -> bool:
        """Whether it is a restart that keeps its endpoints."""
        previous = self._previous
        return (
            previous is not None
            and previous.host == connection.address
            and previous.kernel_transport == transport
        )

    async def _ask(
        self, connection: HostConnection, generation: int, transport: KernelTransport, bundle: str | None
    ) -> Mapping[str, Any]:
        kept = self._previous if self._stays(connection, transport) else None
        params = question(self.request, connection, generation, transport, kept)
        asking = asyncio.ensure_future(connection.request("launch", bundle=bundle, **params))
        try:
            return await self._in_time(asking, str(connection.address))
        except LaunchError as error:
            raise explained(error, self.request, connection.address) from error.__cause__
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.wait([asking])
            if not asking.cancelled():
                asking.exception()  # looked at here, where the caller was cancelled in the same moment

    async def _in_time(self, asking: asyncio.Future[dict[str, Any]], host: str) -> Mapping[str, Any]:
        """The answer. While the kernel waits for its turn on the host, its time does not run. Raises HostUnreachableError."""
        limit = self.request.launch_timeout + ANSWER_MARGIN
        while True:
            self._waits = False
            done, _ = await asyncio.wait([asking], timeout=limit)
            if done:
                return asking.result()
            if not self._waits:
                raise HostUnreachableError(
                    f"{host} did not answer 'launch' within {limit:g} s. It may be overloaded: try again.",
                    host=host,
                )

    def _listening(self, generation: int) -> Callable[[KernelEvent], None]:
        watcher = self._watcher(generation)

        def on_event(event: KernelEvent) -> None:
            self._waits |= event.kind == "note" and bool(event.status.get("waiting"))
            watcher(event)

        return on_event

    def _nobody(self) -> NoHostAvailableError:
        reasons: dict[str, ProvisionerError] = {str(address): error for address, error in self._tried.items()}
        for address in self.request.hosts if self.request.pin is None else ():
            condition = self._pool.condition(address, self.request.login)
            if condition.drained and str(address) not in reasons:
                reasons[str(address)] = HostDrainedError(str(address), condition.drain_reason)
        return nobody(reasons, self.request.kernel_id)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] += time.perf_counter() - start

    def _split_start(self, reply: Mapping[str, Any]) -> None:
        """What the kernel took to open its sockets, as its host measured it, is a phase of its own."""
        ready = min(float((reply.get("phases") or {}).get("ready", 0.0)), self.phases["start"])
        self.phases["start"] -= ready
        self.phases["ready"] += ready


def host_condition(address: HostAddress, login: Login | None) -> HostCondition:
    """What this process's connections know of a host just now."""
    return Connections.current().condition(address, login)


def _becomes(
    attachment: Attachment, before: RemoteProcess, process: RemoteProcess, identity: KernelIdentity
) -> bool:
    """Whether near ends of the process before lead to this one."""
    if isinstance(attachment, RelayAttachment):
        if attachment.can_become(process):
            attachment.relaunched(process, identity)
            return True
        return False
    return not process.relay and (before.ip, before.ports) == (process.ip, process.ports)
