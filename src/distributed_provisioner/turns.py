"""Taking turns on the caller's event loop, so that a burst of launches does not hold everything else up."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def take_turn() -> None:
    """Return when the caller's loop has been round once for each task that asked before.

    jupyter_client works for one to two milliseconds before and after each launch without letting go of the loop. Thirty launches
    that arrive, or are done, in the same turn of the loop would add up to a stall that people notice.
    """
    turns = _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with turns:
        await asyncio.sleep(0)
