"""The I/O thread: one daemon thread with one event loop, which owns every connection, forward and timer of the process.

The caller's loop cannot own them: a synchronous `KernelManager` turns its loop only while a call lasts, nbclient makes new loops, several
threads may each have one, and a busy caller must not stop the traffic of other kernels.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import inspect
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

CLEANUP_TIMEOUT = 2.0
"""Seconds that a cancelled caller, or the end of the process, waits for clean-up on the I/O loop."""

ABANDONED = 1.0
LOOK_INTERVAL = 0.2
"""Seconds; see `Caller.gone`."""

_log = logging.getLogger(__name__)
_on = threading.local()
"""`thread`: on an I/O thread, the one that it is."""


class IOThread:
    """Runs coroutines on a loop of its own. `IOThread.current()` is the one of this process."""

    _current: IOThread | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = _new_loop()
        self._closers: list[Callable[[], Awaitable[None] | None]] = []
        self._guards: set[asyncio.Task[None]] = set()
        self._closed = False
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._turn, args=(started,), name="distributed-provisioner", daemon=True
        )
        self._thread.start()
        started.wait()

    @classmethod
    def current(cls) -> IOThread:
        """The I/O thread of this process, started at the first call. A forked child gets a fresh one."""
        own: IOThread | None = getattr(_on, "thread", None)
        if own is not None and own.pid == os.getpid():
            return own  # while it is closing, too: its work must not begin again on another one
        current = cls._current
        if current is not None and current.pid == os.getpid() and not current._closed:
            return current
        with cls._lock:
            current = cls._current
            if current is None or current.pid != os.getpid() or current._closed:
                if current is not None and current.pid != os.getpid():
                    _keep_for_ever(current)
                current = cls._current = IOThread()
            return current

    @property
    def closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closed

    def submit(self, coro: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start `coro` on the I/O loop, from any thread. Cancelling the future cancels the coroutine."""
        try:
            return asyncio.run_coroutine_threadsafe(coro, self.loop)
        except RuntimeError:
            coro.close()
            raise

    async def run(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run `coro` on the I/O loop and await its outcome from any loop (from the I/O loop itself: directly).

        When the awaiting task is cancelled, the work is cancelled too, and its clean-up awaited for at most `CLEANUP_TIMEOUT`. A task
        that merely lies on a loop that nobody turns any more (Ctrl-C in a synchronous call) learns nothing: see `Caller`.
        """
        loop = asyncio.get_running_loop()
        if loop is self.loop:
            return await coro
        work = _Work(coro, loop)
        try:
            self.loop.call_soon_threadsafe(work.start, self.loop)
        except RuntimeError:
            coro.close()
            raise
        try:
            return await asyncio.shield(work.outcome)
        except GeneratorExit:  # the task is thrown away: nothing can be awaited
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(work.cancel)
            raise
        except BaseException:
            if not work.outcome.done():
                self.loop.call_soon_threadsafe(work.cancel)
                await asyncio.wait([work.outcome], timeout=CLEANUP_TIMEOUT)
            work.outcome.add_done_callback(_seen)
            raise

    def guard(self, coro: Coroutine[Any, Any, None]) -> None:
        """Run `coro` beside what it looks after, on the I/O loop; when the process ends it is cancelled before anything is closed."""
        task = self.loop.create_task(coro)
        self._guards.add(task)
        task.add_done_callback(self._guards.discard)

    def on_close(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        """Call (and await) `callback` on the I/O loop when the process ends."""
        self._closers.append(callback)

    def close(self) -> None:
        """Call what `on_close` has collected, end all tasks, stop the thread; at most about `CLEANUP_TIMEOUT` seconds."""
        if self._closed or self.pid != os.getpid():
            return
        self._closed = True
        closing = asyncio.run_coroutine_threadsafe(self._close(), self.loop)
        try:
            closing.result(CLEANUP_TIMEOUT + 0.5)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            _log.debug("the connections took too long to close")
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(1.0)

    async def _close(self) -> None:
        guards = list(self._guards)
        for guard in guards:
            guard.cancel()
        if guards:
            await asyncio.wait(guards, timeout=CLEANUP_TIMEOUT / 2)
        calls = [asyncio.ensure_future(_call(callback)) for callback in reversed(self._closers)]
        if calls:
            await asyncio.wait(calls, timeout=CLEANUP_TIMEOUT if not guards else CLEANUP_TIMEOUT / 2)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=0.3)

    def _turn(self, started: threading.Event) -> None:
        _on.thread = self
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(started.set)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._thread.is_alive() else "stopped"
        return f"<IOThread pid={self.pid} {state}>"


class Caller:
    """Who waits for work on the I/O loop: a task of another loop. Make it in that task."""

    def __init__(self) -> None:
        self.served = False
        """Whether it has what it waited for, be that an error."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()

    async def gone(self) -> None:
        """Return when it does not wait any more, or is served; on the I/O loop.

        Ctrl-C in a synchronous call (`KernelManager.start_kernel`) stops the caller's loop and touches nothing else: the task stays
        as it is and nobody is told. So a loop that has stood still for `ABANDONED` seconds counts as left for good.
        """
        still = 0.0
        while not self.served and still < ABANDONED and not self._loop.is_closed():
            await asyncio.sleep(LOOK_INTERVAL)
            still = 0.0 if self._loop.is_running() else still + LOOK_INTERVAL

    def cancel(self) -> None:
        """End the task when its loop turns again, if ever."""
        if self._task is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._task.cancel)


class _Work:
    """A coroutine on the I/O loop, and its outcome as a future of the caller's loop."""

    def __init__(self, coro: Coroutine[Any, Any, Any], caller: asyncio.AbstractEventLoop) -> None:
        self.outcome: asyncio.Future[Any] = caller.create_future()
        self._coro = coro
        self._caller = caller
        self._task: asyncio.Task[Any] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._task = loop.create_task(self._coro)
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        # A cancellation that is not the caller's own must not look like one.
        ended = concurrent.futures.CancelledError("the work was cancelled on the I/O thread")
        error = ended if task.cancelled() else task.exception()
        result = None if error is not None else task.result()
        with suppress(RuntimeError):  # the caller's loop is closed: nobody waits any more
            self._caller.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.outcome.done():
            return
        if error is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)


async def _call(callback: Callable[[], Awaitable[None] | None]) -> None:
    try:
        answer = callback()
        if inspect.isawaitable(answer):
            await answer
    except Exception:
        _log.debug("a connection could not be closed", exc_info=True)


def _new_loop() -> asyncio.AbstractEventLoop:
    # Not the policy's: a host application may have made uvloop the default, or have a policy for tests.
    return asyncio.new_event_loop() if sys.platform == "win32" else asyncio.SelectorEventLoop()


def _seen(outcome: asyncio.Future[Any]) -> None:
    """Nobody waits for this outcome any more: no complaint when it is collected."""
    if not outcome.cancelled():
        outcome.exception()


# --- fork -----------------------------------------------------------------------------------------------------------------------------

_parents: list[IOThread] = []
"""What a forked child inherited. Kept for ever: collecting it would close, or kill, what is the parent's."""


def _keep_for_ever(thread: IOThread) -> None:
    _parents.append(thread)
    with suppress(ImportError):  # not even the interpreter's end may collect it
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thread))


def _after_fork_in_child() -> None:
    if IOThread._current is not None:
        _keep_for_ever(IOThread._current)
        IOThread._current = None
    IOThread._lock = threading.Lock()  # another thread of the parent may have held it


def _at_exit() -> None:
    if IOThread._current is not None:
        IOThread._current.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
