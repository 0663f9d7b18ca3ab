"""The near ends of a kernel's channels from one launch to the next. Everything here runs on the I/O loop."""

from __future__ import annotations

import asyncio
from functools import cached_property

from ..errors import ProvisionerError
from ..kernel_log import Log
from ..kernel_on_host import ASK_TIMEOUT
from ..local_endpoints import new_prefix
from ..ssh import Attachment, RelayAttachment

LINGER = 10.0
"""Seconds that clients of a kernel that has ended stay connected, for a restart."""


class NearEnds:
    """Those of a kernel that has ended are let go, or spared: a restart finds its clients still connected to them."""

    def __init__(self) -> None:
        self._closing: asyncio.Task[None] | None = None
        self._spare: RelayAttachment | None = None
        self._timer: asyncio.TimerHandle | None = None

    @cached_property
    def prefix(self) -> str:
        """Of their paths; the kernel's for good."""
        return new_prefix()

    def let_go(self, attachment: Attachment, why: str, log: Log) -> None:
        """The kernel has ended; `why`, unless empty, is said in the cell that was running. Done in the background."""
        self._closing = asyncio.ensure_future(self._let_go(attachment, why, log))

    async def gone(self) -> None:
        """Return when those that were let go are closed or spared: the next ones may lie at the same paths."""
        if self._closing is not None:
            await asyncio.wait([self._closing], timeout=ASK_TIMEOUT)
            self._closing = None

    def take_spare(self) -> RelayAttachment | None:
        """The spared ones, which are the caller's from now on."""
        spare, self._spare = self._spare, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return spare

    async def close_spare(self, *, hear_out: bool = False) -> None:
        """End the connections of clients; with `hear_out` once they have what the kernel said at its end."""
        spare = self.take_spare()
        if spare is not None:
            try:
                if hear_out and spare.count:
                    await spare.finish("")
            finally:
                await spare.close()

    async def _let_go(self, attachment: Attachment, why: str, log: Log) -> None:
        try:
            if isinstance(attachment, RelayAttachment):
                if why:
                    await attachment.finish(why)
                self._keep(attachment)
            else:
                await attachment.close()
        except (ProvisionerError, OSError) as error:
            log.debug("its channels did not close cleanly: %s", error)

    def _keep(self, attachment: RelayAttachment) -> None:
        attachment.rest()
        self._spare = attachment
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LINGER, lambda: asyncio.ensure_future(self.close_spare()))
