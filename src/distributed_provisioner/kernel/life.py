"""What is known of a kernel, and what becomes of that as events arrive from its host.

Changed on the I/O loop only; `RemoteKernel` shows it to callers of any thread, for whom it is a read of memory.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from ..kernel_log import Log, PrefixedLog
from ..kernel_on_host import KernelOnHost
from ..models import ExitReason, KernelState, Login, RemoteProcess
from ..ssh import KernelEvent
from .launching import Launched
from .near_ends import NearEnds

END_EXPECTED = 1.0
"""Seconds after a polite request within which its answer, the kernel's end, is waited for where it would else be asked for in turns."""
_UNREACHABLE_END = (
    "ended when its host could not be reached: what is left of it is ended when the host is back"
)


class KernelLife:
    """A kernel's state over all its launches, and what this side holds for it."""

    def __init__(
        self, kernel_id: str, log: Log, unreachable_timeout: float, on_given_up: Callable[[], None]
    ) -> None:
        self.kernel_id = kernel_id
        self.state = KernelState.EXITED
        self.exit_reason: ExitReason | None = None
        self.log_tail = ""
        self.process: RemoteProcess | None = None
        self.phases: dict[str, float] = {}
        self.unreachable_since: float | None = None
        """`time.monotonic()` of the moment when the link was lost."""
        self.generation = 0
        self.login = Login()
        self.ending = False
        """Whether the kernel was asked to end, so that its end is no news."""
        self.end_expected = 0.0
        """`time.monotonic()` until which an end that was asked for is worth waiting for; 0: nobody has asked."""
        self.launching = False
        """Whether a launch is under way, which tells its caller what becomes of it."""
        self.held: Launched | None = None
        self.to_forget = False
        """Whether its host has something of it."""
        self.near_ends = NearEnds()
        self.ended = Ended()
        self._log = log
        self._unreachable_timeout = unreachable_timeout
        self._on_given_up = on_given_up
        self._timer: asyncio.TimerHandle | None = None

    # --- a launch --------------------------------------------------------------------------------------------------------------

    def start(self, login: Login) -> None:
        """It starts; from here those who wait for its end wait for this one's."""
        self.login = login
        self.state, self.exit_reason, self.end_expected = KernelState.STARTING, None, 0.0
        self.ended = Ended()

    def next_generation(self) -> int:
        """A number greater than all before, for an attempt to launch it."""
        # Milliseconds, so that it grows over restarts of the server, too.
        self.generation = max(self.generation + 1, int(time.time() * 1000))
        self.exit_reason, self.log_tail = None, ""
        return self.generation

    def hold(self, launched: Launched) -> None:
        """It was launched, or attached."""
        self.process, self.held, self.to_forget = launched.process, launched, True
        if self.exit_reason is not None:  # it ended while its channels were being attached
            self.exited(self.exit_reason, self.log_tail)
        elif self.state is KernelState.STARTING:
            self.state = KernelState.RUNNING

    # --- what happens to it ----------------------------------------------------------------------------------------------------

    def watcher(self, generation: int) -> Callable[[KernelEvent], None]:
        """The callback for the events of a launch; those of an earlier one are not heard."""

        def on_event(event: KernelEvent) -> None:
            if generation == self.generation:
                self.on_event(event)

        return on_event

    def on_event(self, event: KernelEvent) -> None:
        if self.exit_reason is not None:
            return
        if event.kind == "exited":
            self.exited(event.reason or ExitReason(None, "unknown", "ended, nobody saw how"), event.log_tail)
        elif event.kind == "note":
            self.logger().info("%s", event.status.get("text", ""))
        elif self.held is None:
            pass  # while it is launched, the launch itself learns what becomes of the connection
        elif event.kind == "unknown":
            self.exited(ExitReason(None, "unknown", "its host does not know it any more"), event.log_tail)
        elif event.kind == "lost" and self.state is not KernelState.UNREACHABLE:
            self._lost()
        elif event.kind in ("regained", "running") and self.state is KernelState.UNREACHABLE:
            self._regained()

    def _lost(self) -> None:
        self.away()
        self.logger().warning(
            "its host cannot be reached; the kernel counts as alive, and nothing is restarted"
        )

    def away(self) -> None:
        """Its host cannot be asked, for at most `unreachable_timeout` from the first of these calls."""
        self.state = KernelState.UNREACHABLE
        if self.unreachable_since is not None:
            return
        self.unreachable_since = time.monotonic()
        if self._unreachable_timeout > 0:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._unreachable_timeout, self._timed_out)

    def back(self, state: KernelState) -> None:
        """Its host can be asked again."""
        self.state, self.unreachable_since = state, None
        self._stop_timer()

    def _regained(self) -> None:
        away = time.monotonic() - (self.unreachable_since or time.monotonic())
        self.back(KernelState.RUNNING)
        self.logger().info("its host is back after %.1f s, the kernel lives", away)

    def _timed_out(self) -> None:
        self.logger().warning(
            "its host could not be reached for %g s (unreachable_timeout): the kernel is given up",
            self._unreachable_timeout,
        )
        self._on_given_up()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- its end ---------------------------------------------------------------------------------------------------------------

    def exited(self, reason: ExitReason, log_tail: str) -> None:
        """Set the state; from here `poll()` has an answer. All that this side holds is let go."""
        self.exit_reason, self.log_tail = reason, log_tail
        if self.held is None and self.launching:
            return  # the launch is not over: it tells
        self.back(KernelState.EXITED)
        if not self.ending:
            tail = log_tail.strip()
            last = f". The last lines of its log:\n{tail}" if tail else ". Its log is empty"
            self.logger().warning("the kernel has ended: %s%s", reason, last)
        self.ended.tell()
        held, self.held = self.held, None
        if held is not None:
            held.reservation.release()
            held.watch.close()
            sentence = f"[distributed-provisioner] The kernel on {held.process.host} has ended: {reason}."
            self.near_ends.let_go(held.attachment, "" if self.ending else sentence, self.logger())

    def leave_for_later(self) -> None:
        """It counts as exited though its host cannot be asked, which ends it when it is back."""
        if self.process is not None and self.state is not KernelState.EXITED:
            self.on_host().end_later()
            self.exited(ExitReason(None, "unknown", _UNREACHABLE_END), "")

    def expect_end(self) -> None:
        """It was asked to end, and may do that by itself."""
        self.ending, self.end_expected = True, time.monotonic() + END_EXPECTED

    async def expected_end(self) -> None:
        """Return when the end that was asked for has come; at once where none was asked for, or not of late. Any loop."""
        seconds = self.end_expected - time.monotonic()
        if seconds > 0 and self.state is not KernelState.EXITED:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ended.wait(), seconds)

    # --- for those who do something with it ------------------------------------------------------------------------------------

    def on_host(self, process: RemoteProcess | None = None) -> KernelOnHost:
        process = process or self.process
        assert process is not None
        return KernelOnHost(self.kernel_id, process, self.login)

    def logger(self) -> PrefixedLog:
        return PrefixedLog(self._log, self.kernel_id, str(self.process.host) if self.process else "")


class Ended:
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
