"""One host as this process sees it: its connection, made when needed and made again while kernels are watched on it.

All methods are called on the I/O loop. Requests under way fail at once when the line is lost; what waits for the host's return are the
watches, the attachments and what is to be ended there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal

import asyncssh

from ..errors import ConnectionLostError, HostError, HostUnreachableError, ProvisionerError
from ..models import HostAddress, HostCondition, KernelIdentity, KernelTransport, Login, RemoteProcess
from ..traffic import Receiver, Writer
from . import transport as ssh
from .beside import beside
from .control import Control, NeedBundle
from .errors import Progress, lost, translate
from .forward import Attachment, attach_remote
from .line import Line
from .local import is_local
from .relay_channel import attach_relay
from .shipping import Bundle, pieces, read_bundle
from .watching import KernelEvent, Watch, Watches
from .welcome import Welcome, greet

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Seconds between attempts to reach a host again on which kernels are watched."""
LONGEST_IDLE_PAUSE = 30.0
"""The same where nothing is watched but something is to be ended, or the host is there but refuses us."""
REACH_TIMEOUT = 3.5
"""Seconds that such an attempt waits for a TCP connection, whose first packets are sent again after 1 and 3 s."""
MAX_TO_END = 1000
NOBODY = KernelIdentity()

_log = logging.getLogger(__name__)

State = Literal["idle", "connecting", "connected", "lost", "closed"]


class HostConnection:
    """The connection to one host as one user. Get it from `Connections`."""

    def __init__(
        self,
        address: HostAddress,
        login: Login,
        handshakes: ssh.Handshakes,
        names: Callable[[], Awaitable[tuple[str, str]]],
    ) -> None:
        self.address = address
        self.is_local = is_local(address)
        self.state: State = "idle"
        self.unreachable_since: float | None = None
        """`time.monotonic()` since when the host could not be asked; None while it can, or was never asked."""
        self.error: HostError | None = None
        """Why it could not be reached at the last attempt."""
        self.welcome: Welcome | None = None
        self.drained = False
        """Whether the host takes no new kernels; as it said last, so it counts while `state` is "connected"."""
        self.drain_reason = ""
        self.supports: frozenset[KernelTransport] = frozenset()
        """Which kernels can be attached; known after `connect()`."""
        self._login = login
        self._handshakes = handshakes
        self._names = names
        self._control: Control | None = None
        self._transport: ssh.SSHTransport | None = None
        self._attempt: asyncio.Task[Welcome] | None = None
        self._waiters = 0
        self._returning: asyncio.Task[None] | None = None
        self._watches = Watches()
        self._attachments: set[Attachment] = set()
        self._to_end: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._bundles: set[str] = set()
        self._shipping: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def peer_address(self) -> str | None:
        """The host's address as it is seen from here; None where it is not seen directly."""
        return self._transport.peer_address if self._transport is not None else None

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
            self._drop_lines()
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
        timeout = self._login.connect_timeout
        progress = Progress(host=str(self.address), at=str(self.address))
        try:
            if not self.is_local and self._transport is None:
                self._transport = await ssh.connect(
                    self.address,
                    self._login,
                    self._handshakes,
                    self._line_lost,
                    timeout=timeout,
                    reach_timeout=reach_timeout,
                )
            welcome = await asyncio.wait_for(self._greet(), max(timeout - (time.monotonic() - started), 0.5))
        except asyncio.TimeoutError:
            raise HostUnreachableError(
                f"{self.address} cannot be used: it lets the user log in, but its shell has not started Python within {timeout:g} s. "
                "Check the shell's start-up files there (they must not wait for anything), or raise connect_timeout.",
                host=str(self.address),
            ) from None
        except (asyncssh.Error, OSError) as error:
            progress.user = self._transport.target.user if self._transport is not None else ""
            progress.connected = True
            raise translate(error, progress) from error
        self.welcome, self.error, self.unreachable_since = welcome, None, None
        self._bundles = set(welcome.bundles)
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

    async def _greet(self) -> Welcome:
        self._control = control = Control(str(self.address), self._told, self._control_lost)
        if self._transport is None:
            await control.open_process()
        else:
            await control.open_session(self._transport.connection)
        connection = None if self._transport is None else self._transport.connection
        welcome, self.supports = await greet(control, connection, *await self._names())
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
        line = self._line
        if line is not None:
            for attachment in self._attachments:
                attachment.resume(line)
        wanted = list(self._watches)
        if wanted:
            asked = [{"kernel_id": watch.kernel_id, "generation": watch.generation} for watch in wanted]
            reply = await self.request("attach", timeout=10.0, kernels=asked)
            self._watches.compare(reply["kernels"], welcome.identity)
        if self._to_end:
            self._spawn(self._end_those())

    # --- losing and regaining ---------------------------------------------------------------------------------------------------------

    def _line_lost(self, transport: ssh.SSHTransport, error: BaseException | None) -> None:
        """The SSH connection has ended, and everything on it."""
        if transport is self._transport:
            self._transport = None
            transport.abort()
            self._lost(lost(str(self.address), error))
            self._suspend()

    def _control_lost(self, failure: ProvisionerError) -> None:
        """The control channel has ended. The SSH connection may live; then the forwards go on, and a new channel is opened on it."""
        self._lost(failure)

    def _lost(self, failure: ProvisionerError) -> None:
        control, self._control = self._control, None
        if control is not None:
            control.fail(failure)
        if self.state != "connected":
            return  # an attempt fails by this, and tells
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

    def _drop_lines(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            control.close()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._suspend()

    def _suspend(self) -> None:
        for attachment in self._attachments:
            attachment.suspend()

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
            self._bundles.discard(str(params.get("bundle")))
            if op != "launch" or await self.ship(directory) is None:
                raise
            return await self._connected().request(op, params, timeout)

    async def ship(self, resource_dir: str) -> str | None:
        """The digest of a kernelspec's directory, whose files are on the host after this; None where there is no directory.

        Raises:
            KernelSpecError: a file cannot be read.
            HostError: it could not be sent.
        """
        bundle = await beside(lambda: read_bundle(resource_dir))
        if bundle is None:
            return None
        if bundle.digest not in self._bundles:
            task = self._shipping.get(bundle.digest)
            if task is None:
                task = self._shipping[bundle.digest] = self._spawn(self._ship(bundle))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise self._not_connected() from None
                raise
        return bundle.digest

    async def _ship(self, bundle: Bundle) -> None:
        try:
            control = self._connected()
            left = pieces(bundle)
            while (piece := await beside(lambda: next(left, None))) is not None:
                await control.request("ship", piece, timeout=60.0)
            self._bundles.add(bundle.digest)
            _log.debug("[host=%s] shipped %d files of %s", self.address, len(bundle.files), bundle.directory)
        finally:
            self._shipping.pop(bundle.digest, None)

    async def open_relay(self, kernel_id: str, generation: int, receiver: Receiver) -> Writer:
        """A stream to a kernel's relay, inside the control channel. Raises as `request` does; LaunchError where it has no relay."""
        return await self._connected().open_channel(kernel_id, generation, receiver)

    def _connected(self) -> Control:
        if self._control is None or self._control.failure is not None:
            raise self._not_connected()
        return self._control

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
        self._to_end[(kernel_id, generation)] = None
        while len(self._to_end) > MAX_TO_END:
            self._to_end.popitem(last=False)
        if self.state == "connected":
            self._spawn(self._end_those())
        else:
            self._return_later()

    async def _end_those(self) -> None:
        for kernel_id, generation in list(self._to_end):
            try:
                await self.request(
                    "forget", timeout=30.0, kernel_id=kernel_id, generation=generation, keep_log=False
                )
            except (HostUnreachableError, ConnectionLostError):
                return  # once more when the host is back
            except ProvisionerError as error:
                _log.debug("[host=%s] kernel %s was not ended: %s", self.address, kernel_id, error)
            self._to_end.pop((kernel_id, generation), None)

    @property
    def _line(self) -> Line | None:
        """The ways to the host that stand now."""
        if self._control is None or not (self.is_local or self._transport is not None):
            return None
        connection = self._transport.connection if self._transport is not None else None
        return Line(connection, self._control, "ipc" in self.supports)

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
            return Attachment(
                "ipc" if process.kernel_transport == "ipc" else "tcp", process.ip, process.ports
            )
        if self._transport is None and not self.is_local:
            raise self._not_connected()
        attachment: Attachment
        if process.relay:
            attachment = await attach_relay(process, local_prefix, identity)
        else:
            attachment = await attach_remote(process, local_prefix, str(self.address))
        attachment.on_close = self._attachments.discard
        self._attachments.add(attachment)
        if serving:
            self.serve(attachment)
        return attachment

    def serve(self, attachment: Attachment) -> None:
        """Connect those who wait at its near ends."""
        if (line := self._line) is not None:
            attachment.resume(line)

    @property
    def forwarding(self) -> bool:
        """Whether somebody is connected to a kernel through it."""
        return any(attachment.count for attachment in self._attachments)

    async def close(self) -> None:
        """Close for good: watchers are told nothing more."""
        self.state = "closed"
        for task in [self._returning, self._attempt, *self._tasks]:
            if task is not None:
                task.cancel()
        for attachment in list(self._attachments):
            await attachment.close()
        control, transport, self._transport = self._control, self._transport, None
        self._drop_lines()
        if transport is not None:
            await transport.close()
        if control is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(control.wait_closed(), 1.0)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it has it

    def __repr__(self) -> str:
        since = ""
        if self.unreachable_since is not None:
            since = f" unreachable={time.monotonic() - self.unreachable_since:.0f}s"
        return f"<HostConnection {self.address} {self.state}{since} watched={len(self._watches)}>"
