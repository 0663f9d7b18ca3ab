"""Clean-up that comes to its end, and launches that leave nothing behind. Everything here runs on the I/O loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ..errors import LaunchError, ProvisionerError
from ..ssh import HostConnection

UNDO_TIMEOUT = 5.0
"""Seconds that a host gets to undo a launch before that is left to be done later."""

_background: set[asyncio.Task[None]] = set()


async def undo(connection: HostConnection, kernel_id: str, generation: int) -> None:
    """Leave nothing of a launch on its host; where the host cannot be asked now, it is asked when it is back. Never raises."""
    try:
        await asyncio.wait_for(
            connection.request("cancel", timeout=UNDO_TIMEOUT, kernel_id=kernel_id, generation=generation),
            UNDO_TIMEOUT + 1,
        )
    except LaunchError:
        pass  # the host knows nothing of it
    except (ProvisionerError, OSError, asyncio.TimeoutError):
        connection.end_later(kernel_id, generation)


async def shielded(work: Coroutine[Any, Any, None]) -> None:
    """Run clean-up to its end, also when the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    _background.add(task)
    task.add_done_callback(_background.discard)
    await asyncio.shield(task)
