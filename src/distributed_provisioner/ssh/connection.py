"""One host as this process sees it: its connection, made when needed and made again while kernels are watched on it.

All methods are called on the I/O loop. Requests under way fail at once when the line is lost; what waits for the host's return are the
watches, the attachments and what is to be ended there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from ..errors import ConnectionLostError, HostError, HostUnreachableError, ProtocolError, ProvisionerError
from ..models import HostAddress, HostCondition, KernelIdentity, KernelTransport, Login, RemoteProcess
from ..own_user import own_name
from ..traffic import Receiver, Writer
from .attachments import Attachments
from .control import Control
from .ending import KernelsToEnd
from .forward import Attachment
from .line import Lines
from .listener_errors import NeedBundle
from .shipping import Shipping
from .tasks import Tasks
from .transport import Handshakes
from .watching import KernelEvent, Watch, Watches
from .welcome import Welcome

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Seconds between attempts to reach a host again on which kernels are watched."""
LONGEST_IDLE_PAUSE = 30.0
"""The same where nothing is watched but something is to be ended, or the host is there but refuses us."""
REACH_TIMEOUT = 3.5
"""Seconds that such an attempt waits for a TCP connection, whose first packets are sent again after 1 and 3 s."""
NOBODY = KernelIdentity()

_log = logging.getLogger(__name__)

State = Literal["idle", "connecting", "connected", "lost", "closed"]


class HostConnection:
    """The connection to one host as one user, and to the listener there of that user or of whom kernels are run as.

    Get it from `Connections`.
    """

    def __init__(
        self,
        address: HostAddress,
        login: Login,
        handshakes: Handshakes,
        names: Callable[[], Awaitable[tuple[str, str]]],
    ) -> None:
        self.address = address
        self.run_as = login.run_as
        self.state: State = "idle"
        self.unreachable_since: float | None = None
        """`time.monotonic()` since when the host could not be asked; None while it can, or was never asked."""
        self.error: HostError | None = None
        """Why it could not be reached at the last attempt."""
        self.welcome: Welcome | None = None
        self.drained = False
        """Whether the host takes no new kernels; as it said last, so it counts while `state` is "connected"."""
        self.drain_reason = ""
        self._lines = Lines(address, login, handshakes, names, on_event=self._told, on_lost=self._lost)
        self._attempt: asyncio.Task[Welcome] | None = None
        self._waiters = 0
        self._used = time.monotonic()
        self._returning: asyncio.Task[None] | None = None
        self._watches = Watches()
        self._tasks = Tasks()
        self._attachments = Attachments(str(address))
        self._to_end = KernelsToEnd(str(address), self.request)
        self._shipping = Shipping(str(address), self._connected, self._not_connected, self._tasks)

    @property
    def is_local(self) -> bool:
        """Whether it is this machine, reached without SSH."""
        return self._lines.is_local

    @property
    def supports(self) -> frozenset[KernelTransport]:
        """Which kernels can be attached; known after `connect()`."""
        return self._lines.supports

    @property
    def peer_address(self) -> str | None:
        """The host's address as it is seen from here; None where it is not seen directly."""
        transport = self._lines.transport
        return transport.peer_address if transport is not None else None

    @property
    def idle_for(self) -> float:
        """Seconds since it was last of use to anybody; 0 while it is."""
        wanted = len(self._watches) or self._to_end or len(self._attachments) or self._waiters
        if wanted or self._attempt is not None or self._returning is not None:
            return 0.0
        return time.monotonic() - self._used

    @property
    def is_away(self) -> bool:
        """Whether it is the host that cannot be reached now, and not a user who is refused there."""
        return isinstance(self.error, (HostUnreachableError, ConnectionLostError))

    @property
    def condition(self) -> HostCondition:
        """What is known of the host just now. A line that ended with nobody to want it back says nothing about its host."""
        drained = self.drained and self.state == "connected"
        away = self.unreachable_since is not None and self._returning is not None
        return HostCondition(drained, self.drain_reason if drained else "", away)

    # --- connecting -------------------------------------------------------------------------------------------------------------------

    async def connect(self) -> Welcome:
        """Connect unless that is done; all callers share one attempt, of at most `login.connect_timeout` seconds.

        Raises:
            HostError: HostUnreachableError, AuthenticationError, HostKeyError, HostSetupError.
        """
        self._used = time.monotonic()
        if self.state == "connected" and self.welcome is not None:
            return self.welcome
        if self.state == "closed":
            raise ConnectionLostError(f"The connection to {self.address} was closed.", host=str(self.address))
        if self._attempt is None:
            self._start_attempt()
        assert self._attempt is not None
        attempt = self._attempt
        self._waiters += 1
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled():
                raise ConnectionLostError(
                    f"The connection to {self.address} was closed.", host=str(self.address)
                ) from None
            raise
        finally:
            self._waiters -= 1
            if not self._waiters and not attempt.done() and self._returning is None:
                attempt.cancel()

    def _start_attempt(self, reach_timeout: float | None = None) -> asyncio.Task[Welcome]:
        self.state = "connecting"
        self._attempt = asyncio.ensure_future(self._connect(reach_timeout))
        self._attempt.add_done_callback(self._attempted)
        return self._attempt

    def _attempted(self, attempt: asyncio.Task[Welcome]) -> None:
        self._attempt = None
        error = None if attempt.cancelled() else attempt.exception()
        if attempt.cancelled() or error is not None:
            self._lines.drop()
            self._attachments.suspend()
            if self.state != "closed":
                self.state = "lost" if self.unreachable_since is not None or error is not None else "idle"
        if isinstance(error, HostError):
            self.error = error
            if self.unreachable_since is None:
                self.unreachable_since = time.monotonic()
            _log.debug("[host=%s] cannot be used: %s", self.address, error)  # whoever wanted it says so aloud
        self._return_later()

    async def _connect(self, reach_timeout: float | None) -> Welcome:
        started = time.monotonic()
        welcome = await self._lines.open(reach_timeout)
        self.welcome, self.error, self.unreachable_since = welcome, None, None
        self._shipping.there = set(welcome.bundles)
        self._be_drained(welcome.drained, welcome.drain_reason)
        self.state = "connected"
        _log.info(
            "[host=%s] connected as %s in %.0f ms (%s)",
            self.address, welcome.user, (time.monotonic() - started) * 1000, ", ".join(sorted(self.supports)),
        )  # fmt: skip
        for note in welcome.notes:
            _log.info("[host=%s] %s", self.address, note)
        await self._resume(welcome)
        return welcome

    def _told(self, event: dict[str, Any]) -> None:
        if event.get("event") == "drained":
            self._be_drained(bool(event.get("drained")), str(event.get("reason") or ""))
        else:
            self._watches.dispatch(event)

    def _be_drained(self, drained: bool, reason: str) -> None:
        if drained != self.drained:
            taken = "takes no new kernels: it is drained" if drained else "takes kernels again"
            _log.info("[host=%s] %s%s", self.address, taken, f" ({reason})" if drained and reason else "")
        self.drained, self.drain_reason = drained, reason

    async def _resume(self, welcome: Welcome) -> None:
        """The host is (again) there: serve the attachments, compare the kernels, end what was to be ended."""
        if (line := self._lines.now) is not None:
            self._attachments.resume(line)
        wanted = list(self._watches)
        if wanted:
            asked = [{"kernel_id": watch.kernel_id, "generation": watch.generation} for watch in wanted]
            reply = await self.request("attach", timeout=10.0, kernels=asked)
            self._watches.compare(reply["kernels"], welcome.identity)
        if self._to_end:
            self._tasks.start(self._to_end.end())

    # --- losing and regaining ---------------------------------------------------------------------------------------------------------

    def _lost(self, failure: ProvisionerError, everything: bool) -> None:
        if self.state == "connected":  # else an attempt fails by this, and tells
            self._away(failure)
        if everything:
            self._attachments.suspend()

    def _away(self, failure: ProvisionerError) -> None:
        self.state = "lost"
        self.unreachable_since = time.monotonic()
        self.error = failure if isinstance(failure, HostError) else None
        if len(self._watches):
            _log.warning("[host=%s] connection lost: %s", self.address, failure)
        else:
            _log.info(
                "[host=%s] the connection has ended; it carried no kernel and is made again when needed",
                self.address,
            )
            _log.debug("[host=%s] it ended like this: %s", self.address, failure)
        self._watches.tell_all(KernelEvent("lost"))
        self._return_later()

    def _return_later(self) -> None:
        wanted = len(self._watches) > 0 or bool(self._to_end)
        if wanted and self.state in ("lost", "idle") and self._returning is None:
            self._returning = asyncio.ensure_future(self._return())
            self._returning.add_done_callback(self._returned)

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._returning = None
        if not task.cancelled() and task.exception() is not None:
            _log.error("[host=%s] reconnecting failed", self.address, exc_info=task.exception())
        self._return_later()

    async def _return(self) -> None:
        """Try until the host is back or nobody wants it any more."""
        pause = FIRST_PAUSE
        while self.state in ("lost", "idle", "connecting") and (len(self._watches) or self._to_end):
            await asyncio.wait([self._attempt or self._start_attempt(REACH_TIMEOUT)])
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            if not isinstance(self.error, (HostUnreachableError, ConnectionLostError)):
                # It is there and refuses us: it may count many tries as an attack.
                pause = min(max(pause * 2, LONGEST_PAUSE * 2), LONGEST_IDLE_PAUSE)
            else:
                pause = min(pause * 1.6, LONGEST_PAUSE if len(self._watches) else LONGEST_IDLE_PAUSE)

    # --- asking -----------------------------------------------------------------------------------------------------------------------

    async def request(self, op: str, timeout: float | None = None, **params: Any) -> dict[str, Any]:
        """Ask the listener; `timeout` in seconds. A launch whose files the host lacks ships them and asks again.

        Raises:
            HostUnreachableError: not connected, or no answer in time.
            ConnectionLostError: the line was lost meanwhile.
            LaunchError, HostSetupError, ProtocolError: what the listener answered.
        """
        try:
            return await self._connected().request(op, params, timeout)
        except NeedBundle:
            directory = params.get("resource_dir") or ""
            self._shipping.there.discard(str(params.get("bundle")))
            if op != "launch" or await self.ship(directory) is None:
                raise
            return await self._connected().request(op, params, timeout)

    async def ship(self, resource_dir: str) -> str | None:
        """The digest of a kernelspec's directory, whose files are on the host after this; None where there is no directory.

        Raises:
            KernelSpecError: a file cannot be read.
            HostError: it could not be sent.
        """
        return await self._shipping.ship(resource_dir)

    async def open_relay(self, kernel_id: str, generation: int, receiver: Receiver) -> Writer:
        """A stream to a kernel's relay, inside the control channel. Raises as `request` does; LaunchError where it has no relay."""
        return await self._connected().open_channel(kernel_id, generation, receiver)

    def _connected(self) -> Control:
        self._used = time.monotonic()
        control = self._lines.control
        if control is None or control.failure is not None:
            raise self._not_connected()
        return control

    def _not_connected(self) -> HostUnreachableError:
        why = f": {self.error}" if self.error is not None else "."
        return HostUnreachableError(f"{self.address} is not connected now{why}", host=str(self.address))

    # --- kernels ----------------------------------------------------------------------------------------------------------------------

    def watch(self, kernel_id: str, generation: int, on_event: Callable[[KernelEvent], None]) -> Watch:
        """Tell `on_event`, on the I/O loop, what happens to a kernel, until the watch is closed.

        Launching a kernel makes its events come; for one that was there before, ask `attach` as well.
        """
        identity = self.welcome.identity if self.welcome is not None and self.state == "connected" else ""
        watch = self._watches.add(kernel_id, generation, on_event, identity)
        self._return_later()
        return watch

    def end_later(self, kernel_id: str, generation: int) -> None:
        """End and forget a kernel as soon as the host can be asked; of very many, the oldest wishes are dropped."""
        self._to_end.add(kernel_id, generation)
        if self.state == "connected":
            self._tasks.start(self._to_end.end())
        else:
            self._return_later()

    async def attach(
        self,
        process: RemoteProcess,
        local_prefix: str,
        identity: KernelIdentity = NOBODY,
        *,
        serving: bool = True,
    ) -> Attachment:
        """Near ends for a kernel's sockets; they are there until closed, also while the host is away.

        With `serving` false who connects to them waits for `serve`: the kernel is not there yet. For one with a relay, `identity` is
        needed.

        Raises:
            ConfigurationError: `local_prefix` is too long.
            HostUnreachableError: not connected.
            OSError: the sockets cannot be made.
        """
        if self.is_local and not process.relay:
            if process.kernel_transport == "ipc" and self.run_as not in (None, own_name()):
                raise ProtocolError(  # it could name sockets of this very user
                    f"The listener of {self.run_as} on {self.address} named sockets that nobody else can enter. "
                    "Log in there and end it (its process is called server_listener.py serve); kernels go on.",
                    host=str(self.address),
                )
            return Attachment(
                "ipc" if process.kernel_transport == "ipc" else "tcp", process.ip, process.ports
            )
        if self._lines.transport is None and not self.is_local:
            raise self._not_connected()
        attachment = await self._attachments.add(process, local_prefix, identity)
        if serving:
            self.serve(attachment)
        return attachment

    def serve(self, attachment: Attachment) -> None:
        """Connect those who wait at its near ends."""
        if (line := self._lines.now) is not None:
            attachment.resume(line)

    @property
    def forwarding(self) -> bool:
        """Whether somebody is connected to a kernel through it."""
        return self._attachments.in_use

    async def close(self) -> None:
        """Close for good: watchers are told nothing more."""
        self.state = "closed"
        for task in (self._returning, self._attempt):
            if task is not None:
                task.cancel()
        self._tasks.cancel()
        await self._attachments.close()
        self._attachments.suspend()
        await self._lines.close()

    def __repr__(self) -> str:
        since = ""
        if self.unreachable_since is not None:
            since = f" unreachable={time.monotonic() - self.unreachable_since:.0f}s"
        return f"<HostConnection {self.address} {self.state}{since} watched={len(self._watches)}>"
