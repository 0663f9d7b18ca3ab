"""How many kernels start at once on this host: as many as it has cores, in the order in which they were asked for.

More at once would all be ready later, and a burst of them would make each wait until its time-out.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Callable, Deque, Type

BESIDE_CORES = 1
"""Starts above the number of cores: each waits for its disk or its relay now and then."""
SLOW = 5.0
"""Seconds after which a start no longer keeps others waiting: it does not compute, or takes long anyhow (a JVM)."""
TELL_EVERY = 5.0


def cores() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


class Admission:
    """The starts of one listener."""

    def __init__(self, places: int | None = None) -> None:
        self.free = places or cores() + BESIDE_CORES
        self.waiting: Deque[asyncio.Future[None]] = deque()

    def turn(self, tell: Callable[[str], None]) -> Turn:
        """A context that is entered when there is room. `tell` is called with a sentence while there is none."""
        return Turn(self, tell)

    def leave(self) -> None:
        """A place is free: the one that has waited for longest gets it."""
        while self.waiting:
            first = self.waiting.popleft()
            if not first.done():
                first.set_result(None)
                return
        self.free += 1


class Turn:
    """One start, from its arrival until it is over."""

    def __init__(self, admission: Admission, tell: Callable[[str], None]) -> None:
        self.admission, self.tell = admission, tell
        self.has_place = False

    async def __aenter__(self) -> Turn:
        admission = self.admission
        if admission.free > 0:
            admission.free -= 1
        else:
            await self._wait()
        self.has_place = True
        self.timer = asyncio.get_event_loop().call_later(SLOW, self.leave)
        return self

    async def _wait(self) -> None:
        admission = self.admission
        mine: asyncio.Future[None] = asyncio.get_event_loop().create_future()
        admission.waiting.append(mine)
        try:
            while not mine.done():
                before = admission.waiting.index(mine)
                self.tell(
                    f"waits for its turn: the host starts as many kernels as it has cores, and {before} wait before it"
                )
                await asyncio.wait([mine], timeout=TELL_EVERY)
        except asyncio.CancelledError:
            if mine.done():
                admission.leave()
            else:
                admission.waiting.remove(mine)
            raise

    def leave(self) -> None:
        if self.has_place:
            self.has_place = False
            self.admission.leave()

    async def __aexit__(
        self, kind: Type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.timer.cancel()
        self.leave()
