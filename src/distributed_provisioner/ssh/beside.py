"""Work that may block (files, name servers, commands of ssh's configuration), beside the I/O loop.

Each piece has a daemon thread of its own and not one of the loop's few executor threads: a name server or a file system that hangs keeps
its thread for minutes, must not keep the others' work waiting, and must not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def beside(call: Callable[[], T]) -> T:
    """Run `call` in a thread and await what it gives. Nobody waits for the thread when the caller is cancelled or the process ends.

    Raises:
        NoThread: see there.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = call()
        except Exception as caught:
            error = caught
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    try:
        threading.Thread(target=work, name="distributed-provisioner-work", daemon=True).start()
    except RuntimeError as error:
        raise NoThread from error
    return await outcome


class NoThread(Exception):
    """The interpreter is ending and starts no more threads."""


class Lookups:
    """Calls that are under way once for each key, however many wait for them: those that hang are not piled up."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Task[Any]] = {}

    async def get(self, key: Hashable, call: Callable[[], T]) -> T:
        """What `call` gives, or the call for the same key that is under way already."""
        task: asyncio.Task[T] | None = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(beside(call))
            task.add_done_callback(lambda done: self._over(key, done))
        return await asyncio.shield(task)

    def _over(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        self._under_way.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waits for it has it
