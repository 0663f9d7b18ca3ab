"""One kernel's life, over all its launches: what is known of it, and how it is asked to do things.

The work is done on the I/O loop; callers come from any loop and any thread. `poll()` and the attributes are reads of memory.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from .errors import HostError, LaunchError, ProvisionerError
from .hosts import HostPool
from .io_thread import CLEANUP_TIMEOUT, Caller, IOThread
from .kernel_log import Log, PrefixedLog
from .kernel_on_host import ASK_TIMEOUT, KernelOnHost, exit_reason
from .launching import Launch, Launched, shielded
from .local_endpoints import new_prefix
from .models import (
    CHANNELS,
    ExitReason,
    KernelIdentity,
    KernelState,
    LaunchRequest,
    Login,
    RemoteProcess,
)
from .ssh import HostConnection, KernelEvent, RelayAttachment
from .turns import take_turn

LONGEST_RETRY = 30.0
LINGER = 10.0
"""Seconds that clients of a kernel that has ended stay connected, for a restart."""

_UNREACHABLE_END = (
    "ended when its host could not be reached: what is left of it is ended when the host is back"
)


class RemoteKernel:
    """A kernel on some host. Launched, restarted and ended through one object, which survives all its processes.

    Args:
        log: gets lines that begin with `[kernel=… host=…]`.
        unreachable_timeout: seconds, 0 for never; when the host could not be reached for so long, `on_given_up` is called on
            the I/O thread, and whoever gets it answers with `give_up()`.
    """

    def __init__(
        self,
        kernel_id: str,
        log: Log,
        *,
        unreachable_timeout: float = 0.0,
        on_given_up: Callable[[], None] | None = None,
    ) -> None:
        self.kernel_id = kernel_id
        self.state = KernelState.EXITED
        self.exit_reason: ExitReason | None = None
        """Set once the kernel of the last launch is no more."""
        self.log_tail = ""
        """The last lines of its log, once it has exited."""
        self.process: RemoteProcess | None = None
        """Where the kernel runs, or ran last."""
        self.phases: dict[str, float] = {}
        """Seconds of the last launch: reserve, connect, ship, start, forward, ready."""
        self.unreachable_since: float | None = None
        """`time.monotonic()` of the moment when the link was lost."""
        self.generation = 0
        self.login = Login()
        self.ending = False
        """Whether the kernel was asked to end, so that its end is no news."""
        self.unreachable_timeout = unreachable_timeout
        self._log = log
        self._on_given_up = on_given_up
        self._prefix = ""
        self._held: Launched | None = None
        self._closing: asyncio.Task[None] | None = None
        self._spare: RelayAttachment | None = None
        """The near ends of a kernel that has ended: a restart finds its clients still connected to them."""
        self._spare_timer: asyncio.TimerHandle | None = None
        self._identity = KernelIdentity()
        self._attaching: asyncio.Task[None] | None = None
        self._to_forget = False
        self._caller: Caller | None = None
        self._launching: asyncio.Task[Mapping[str, Any]] | None = None
        self._ended = _Ended()
        self._timer: asyncio.TimerHandle | None = None

    # --- from any thread ---------------------------------------------------------------------------------------------------

    @property
    def notes(self) -> tuple[str, ...]:
        """What the host remarked about the last launch."""
        return self.process.notes if self.process else ()

    def poll(self) -> int | None:
        """The exit status, None while the kernel runs, starts or cannot be asked. Never waits, never asks anybody."""
        if self.state is not KernelState.EXITED:
            return None
        return self.exit_reason.returncode if self.exit_reason else 0

    async def launch(self, request: LaunchRequest) -> Mapping[str, Any]:
        """Start the kernel and give Jupyter's connection info (the key as text). Leaves nothing when it fails or is cancelled.

        A second launch is a restart: same host, if it can be reached, and same endpoints.

        Raises:
            NoHostAvailableError: no host could take it.
            LaunchError: it does not start.
        """
        thread = IOThread.current()
        await self._abandon_last()
        caller = self._caller = Caller()
        try:
            info = await thread.run(self._launch_for(caller, request))
            await take_turn()
        except GeneratorExit:  # the task is thrown away, so nothing can be awaited here
            with suppress(RuntimeError):
                thread.submit(self._abandon(caller))
            raise
        except BaseException:
            caller.served = True
            if self._held is not None:  # it was cancelled in the moment of success
                undone = asyncio.wrap_future(thread.submit(self._cleanup(False)))
                await asyncio.wait([undone], timeout=CLEANUP_TIMEOUT)
            raise
        caller.served = True
        return info

    async def send_signal(self, number: int) -> None:
        """SIGINT goes where `interrupt_target` says, SIGKILL to the whole descent, any other signal to the process group.

        Raises:
            HostUnreachableError: the host cannot be asked; the kernel may well be alive.
        """
        if number == signal.SIGKILL:
            await self.kill()
        elif number and self.state is not KernelState.EXITED:
            target = "default" if number == signal.SIGINT else "group"
            await IOThread.current().run(self._signal(int(number), target))

    async def terminate(self) -> None:
        """SIGTERM to the process group. A kernel whose host cannot be reached counts as exited from here, and is ended later."""
        self.ending = True
        if self.state is not KernelState.EXITED:
            await IOThread.current().run(self._terminate())

    async def kill(self) -> None:
        """End the whole descent. Where the host cannot be asked: as `terminate`."""
        self.ending = True
        if self.state is not KernelState.EXITED:
            await IOThread.current().run(self._end())

    async def shutdown_requested(self) -> None:
        """The kernel was asked over its own channels to end; that message gets nowhere when the host cannot be reached."""
        self.ending = True
        if self.state is KernelState.UNREACHABLE:
            await self.kill()

    async def wait(self) -> int | None:
        """Return the exit status when the kernel has exited."""
        if self.state is not KernelState.EXITED:
            await self._ended.wait()
        return self.poll()

    async def cleanup(self, restart: bool = False) -> None:
        """Leave nothing of the kernel here and on its host; with `restart`, keep what the next launch needs to be like this one."""
        await self._abandon_last()
        if self._to_forget:
            await IOThread.current().run(self._cleanup(restart))

    async def log(self, limit: int = 65536) -> str:
        """The last `limit` bytes of what the kernel wrote to its standard output and error.

        Raises:
            HostUnreachableError: the host cannot be asked, and the kernel has not exited.
        """
        if self.process is None:
            return ""
        try:
            return await IOThread.current().run(self._on_host().log(limit))
        except (HostError, LaunchError):
            if self.state is KernelState.EXITED:
                return self.log_tail[-limit:]
            raise

    async def adopt(
        self, process: RemoteProcess, login: Login, key: str = "", signature_scheme: str = "hmac-sha256"
    ) -> Mapping[str, Any]:
        """Take a kernel over that another process launched. It is attached in the background, as soon as its host can be reached.

        Returns:
            where its endpoints will be on this side, as connection info.
        """
        return await IOThread.current().run(self._adopt(process, login, key, signature_scheme))

    def take_over(
        self, process: RemoteProcess, login: Login, key: str = "", signature_scheme: str = "hmac-sha256"
    ) -> Mapping[str, Any]:
        """As `adopt`, for callers that cannot await."""
        return IOThread.current().submit(self._adopt(process, login, key, signature_scheme)).result()

    def detach(self) -> None:
        """Let go of the kernel, which runs on for whoever adopts it. To this process it has ended. Returns when all is let go here."""
        IOThread.current().submit(self._detach()).result(ASK_TIMEOUT)

    def on_host(self) -> KernelOnHost | None:
        """What its host can be asked, on the I/O loop; None while there is no process."""
        return None if self.process is None or self.state is KernelState.EXITED else self._on_host()

    def discard(self) -> None:
        """Nobody wants a kernel that has exited any more: have its host forget it, in the background."""
        if self._to_forget and self.state is KernelState.EXITED:
            IOThread.current().submit(self._cleanup(False))

    def give_up(self) -> None:
        """Count an unreachable kernel as exited; nothing starts it again by itself. Its host ends it when it is back."""
        self.ending = True
        IOThread.current().submit(self._give_up())

    def __repr__(self) -> str:
        where = f" on {self.process.host}" if self.process else ""
        pid = f" pid={self.process.pid}" if self.process else ""
        why = f" ({self.exit_reason})" if self.state is KernelState.EXITED and self.exit_reason else ""
        return f"<RemoteKernel {self.kernel_id[:8]}{where} {self.state.value}{why}{pid}>"

    async def _abandon_last(self) -> None:
        """Whoever asks for a launch, or for the end, while a launch is under way, will not have that one any more."""
        caller = self._caller
        if caller is not None and not caller.served:
            await IOThread.current().run(self._abandon(caller))

    # --- on the I/O loop: launching ------------------------------------------------------------------------------------------

    async def _launch_for(self, caller: Caller, request: LaunchRequest) -> Mapping[str, Any]:
        launching = self._launching = asyncio.ensure_future(self._launch(request))
        IOThread.current().guard(self._look_after(caller))
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            launching.cancel()
            await asyncio.wait([launching])
            raise

    async def _look_after(self, caller: Caller) -> None:
        """Undo the launch whose caller has gone without a word."""
        try:
            await caller.gone()
        finally:
            await shielded(self._abandon(caller))

    async def _abandon(self, caller: Caller) -> None:
        if caller.served or caller is not self._caller:
            return
        caller.served = True
        caller.cancel()
        if self._launching is not None and not self._launching.done():
            self._launching.cancel()
            await asyncio.wait([self._launching])
        if self._held is not None:
            self._logger().info("nobody waits for its start any more: it is ended")
            with suppress(ProvisionerError):
                await self._clean(False)

    async def _launch(self, request: LaunchRequest) -> Mapping[str, Any]:
        await self._settle()
        self._prefix = self._prefix or new_prefix()
        previous = self.process
        self.login = request.login
        self.state, self.exit_reason, self.log_tail, self.ending = KernelState.STARTING, None, "", False
        self._ended = _Ended()
        launch = Launch(
            request,
            prefix=self._prefix,
            previous=previous,
            spare=self._take_spare(),
            next_generation=self._next_generation,
            watcher=self._watcher,
            log=PrefixedLog(self._log, self.kernel_id),
        )
        try:
            launched = await launch.run()
        except BaseException:
            self.state = KernelState.EXITED
            raise
        self._hold(launched)
        self.phases = launch.phases
        self._report_launch(previous)
        return launched.info

    def _hold(self, launched: Launched) -> None:
        self.process, self._held, self._to_forget = launched.process, launched, True
        if self.exit_reason is not None:  # it ended while its channels were being attached
            self._exited(self.exit_reason, self.log_tail)
        elif self.state is KernelState.STARTING:
            self.state = KernelState.RUNNING

    def _report_launch(self, previous: RemoteProcess | None) -> None:
        process, log = self.process, self._logger()
        if process is None:
            return
        times = " ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in self.phases.items())
        log.debug("launched, pid %s: %s", process.pid, times)
        for note in process.notes:
            log.info("%s", note)
        if previous is not None and previous.host != process.host:
            log.warning("started on %s: %s, where it ran before, cannot take it", process.host, previous.host)
            self._on_host(previous).end_later()

    def _next_generation(self) -> int:
        # Milliseconds, so that it grows over restarts of the server, too.
        self.generation = max(self.generation + 1, int(time.time() * 1000))
        self.exit_reason, self.log_tail = None, ""
        return self.generation

    # --- on the I/O loop: what happens to it -----------------------------------------------------------------------------------

    def _watcher(self, generation: int) -> Callable[[KernelEvent], None]:
        def on_event(event: KernelEvent) -> None:
            if generation == self.generation:
                self._on_event(event)

        return on_event

    def _on_event(self, event: KernelEvent) -> None:
        if self.exit_reason is not None:
            return
        if event.kind == "exited":
            self._exited(event.reason or ExitReason(None, "unknown", "ended, nobody saw how"), event.log_tail)
        elif event.kind == "note":
            self._logger().info("%s", event.status.get("text", ""))
        elif self._held is None:
            pass  # while it is launched, the launch itself learns what becomes of the connection
        elif event.kind == "unknown":
            self._exited(ExitReason(None, "unknown", "its host does not know it any more"), event.log_tail)
        elif event.kind == "lost" and self.state is not KernelState.UNREACHABLE:
            self._lost()
        elif event.kind in ("regained", "running") and self.state is KernelState.UNREACHABLE:
            self._regained()

    def _lost(self) -> None:
        if self._held is None:
            return
        self.state, self.unreachable_since = KernelState.UNREACHABLE, time.monotonic()
        self._logger().warning(
            "its host cannot be reached; the kernel counts as alive, and nothing is restarted"
        )
        if self.unreachable_timeout > 0:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.unreachable_timeout, self._timed_out)

    def _regained(self) -> None:
        away = time.monotonic() - (self.unreachable_since or time.monotonic())
        self.state, self.unreachable_since = KernelState.RUNNING, None
        self._stop_timer()
        self._logger().info("its host is back after %.1f s, the kernel lives", away)

    def _timed_out(self) -> None:
        self._logger().warning(
            "its host could not be reached for %g s (unreachable_timeout): the kernel is given up",
            self.unreachable_timeout,
        )
        if self._on_given_up is None:
            self.give_up()
        else:
            self._on_given_up()

    async def _give_up(self) -> None:
        if self.state is KernelState.UNREACHABLE:
            self._leave_for_later()

    def _exited(self, reason: ExitReason, log_tail: str) -> None:
        """Set the state; from here `poll()` has an answer. All that this side holds is let go."""
        self.exit_reason, self.log_tail = reason, log_tail
        if self._held is None and self.state is KernelState.STARTING:
            return  # the launch is not over: it tells
        self.state, self.unreachable_since = KernelState.EXITED, None
        self._stop_timer()
        if not self.ending:
            tail = log_tail.strip()
            last = f". The last lines of its log:\n{tail}" if tail else ". Its log is empty"
            self._logger().warning("the kernel has ended: %s%s", reason, last)
        self._ended.tell()
        held, self._held = self._held, None
        if held is not None:
            held.reservation.release()
            held.watch.close()
            why = (
                ""
                if self.ending
                else f"[distributed-provisioner] The kernel on {held.process.host} has ended: {reason}."
            )
            self._closing = asyncio.ensure_future(self._close(held, why))

    async def _close(self, held: Launched, why: str) -> None:
        try:
            if isinstance(held.attachment, RelayAttachment):
                if why:
                    await held.attachment.finish(why)
                self._keep_spare(held.attachment)
            else:
                await held.attachment.close()
        except (ProvisionerError, OSError) as error:
            self._logger().debug("its channels did not close cleanly: %s", error)

    def _keep_spare(self, attachment: RelayAttachment) -> None:
        attachment.rest()
        self._spare = attachment
        loop = asyncio.get_running_loop()
        self._spare_timer = loop.call_later(LINGER, lambda: asyncio.ensure_future(self._close_spare()))

    def _take_spare(self) -> RelayAttachment | None:
        spare, self._spare = self._spare, None
        if self._spare_timer is not None:
            self._spare_timer.cancel()
            self._spare_timer = None
        return spare

    async def _close_spare(self) -> None:
        spare = self._take_spare()
        if spare is not None:
            await spare.close()

    async def _settle(self) -> None:
        """Wait until nothing of the last process is held: sockets of the next one may lie at the same paths."""
        if self._held is not None:
            await self._end()
        if self._closing is not None:
            await asyncio.wait([self._closing], timeout=ASK_TIMEOUT)
            self._closing = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- on the I/O loop: what it is asked to do ---------------------------------------------------------------------------

    async def _signal(self, number: int, target: str) -> None:
        if self.process is None:
            return
        if self.state is KernelState.UNREACHABLE:
            seconds = time.monotonic() - (self.unreachable_since or time.monotonic())
            raise self._on_host().unreachable(f"cannot be reached since {seconds:.0f} s")
        with suppress(LaunchError):  # the host does not know it: its end is on the way to us
            await self._on_host().signal(number, target)

    async def _terminate(self) -> None:
        try:
            await self._signal(signal.SIGTERM, "group")
        except HostError:
            self._leave_for_later()

    async def _end(self) -> None:
        if self.process is None or self.state is KernelState.EXITED:
            return
        self.ending = True
        if self.state is KernelState.UNREACHABLE:
            return self._leave_for_later()
        try:
            reason = await self._on_host().end()
        except HostError:
            return self._leave_for_later()
        if self.exit_reason is None:
            self._exited(reason, "")

    def _leave_for_later(self) -> None:
        if self.process is not None and self.state is not KernelState.EXITED:
            self._on_host().end_later()
            self._exited(ExitReason(None, "unknown", _UNREACHABLE_END), "")

    async def _cleanup(self, restart: bool) -> None:
        await shielded(self._clean(restart))

    async def _clean(self, restart: bool) -> None:
        await self._settle()
        if not restart:
            await self._close_spare()
        if not restart and self.process is not None:
            self._to_forget = False
            await self._on_host().forget()

    # --- on the I/O loop: kernels of an earlier process ------------------------------------------------------------------

    async def _adopt(
        self, process: RemoteProcess, login: Login, key: str, signature_scheme: str
    ) -> Mapping[str, Any]:
        self._identity = KernelIdentity(self.kernel_id, key, signature_scheme)
        self.process, self.login = process, login
        self.generation = max(self.generation, process.generation)
        self.state, self.exit_reason, self._ended, self._to_forget = (
            KernelState.STARTING,
            None,
            _Ended(),
            True,
        )
        self._prefix = self._prefix or new_prefix()
        connection = self._on_host().connection
        self._attaching = asyncio.ensure_future(self._attach_when_reachable(process, connection))
        if connection.is_local and not process.relay:
            ip, ports = process.ip, process.ports
            transport = "ipc" if process.kernel_transport == "ipc" else "tcp"
        elif process.kernel_transport == "direct":
            transport, ip, ports = "tcp", process.ip, process.ports
        else:
            transport, ip, ports = (
                "ipc",
                self._prefix,
                {name: number for number, name in enumerate(CHANNELS, 1)},
            )
        return {
            "transport": transport,
            "ip": ip,
            **{f"{channel}_port": ports[channel] for channel in CHANNELS},
        }

    async def _attach_when_reachable(self, process: RemoteProcess, connection: HostConnection) -> None:
        pause = 0.5
        while self.generation == process.generation and self.state is not KernelState.EXITED:
            watch = connection.watch(self.kernel_id, process.generation, self._watcher(process.generation))
            try:
                await connection.connect()
                status = await self._on_host().status()
                if status["state"] in ("exited", "unknown"):
                    watch.close()
                    self.state = KernelState.RUNNING
                    self._exited(exit_reason(status), status.get("log_tail") or "")
                    return
                attachment = await connection.attach(process, self._prefix, self._identity)
            except asyncio.CancelledError:
                watch.close()
                raise
            except (HostError, OSError) as error:
                watch.close()
                self.state = KernelState.UNREACHABLE
                self.unreachable_since = self.unreachable_since or time.monotonic()
                self._logger().info("cannot be attached yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY)
                continue
            self.unreachable_since, self.state = None, KernelState.STARTING
            reservation = HostPool.current().reserve_at(process.host)
            self._hold(Launched(process, connection, reservation, watch, attachment, {}))
            return

    async def _detach(self) -> None:
        self.ending, self._to_forget = True, False
        if self._attaching is not None:
            self._attaching.cancel()
        if self.state is not KernelState.EXITED:
            self._exited(ExitReason(None, "unknown", "left running for the next server"), "")
            self.state = KernelState.EXITED  # also while it was being adopted
            self._ended.tell()
        if self._closing is not None:
            await asyncio.wait([self._closing], timeout=ASK_TIMEOUT)
        await self._close_spare()

    def _on_host(self, process: RemoteProcess | None = None) -> KernelOnHost:
        process = process or self.process
        assert process is not None
        return KernelOnHost(self.kernel_id, process, self.login)

    def _logger(self) -> PrefixedLog:
        return PrefixedLog(self._log, self.kernel_id, str(self.process.host) if self.process else "")


class _Ended:
    """Tells all who wait, on whatever loop they came, that the kernel has exited."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = False
        self._waiting: list[Future[None]] = []

    def tell(self) -> None:
        with self._lock:
            self._told = True
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    async def wait(self) -> None:
        future: Future[None] = Future()
        with self._lock:
            if self._told:
                return
            self._waiting.append(future)
        await asyncio.wrap_future(future)
