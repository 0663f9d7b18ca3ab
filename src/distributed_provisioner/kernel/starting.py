"""Launches for callers of any loop, who may go away without a word: a launch that nobody waits for any more is undone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..errors import ProvisionerError
from ..io_thread import CLEANUP_TIMEOUT, Caller, IOThread
from ..kernel_log import Log, PrefixedLog
from ..models import KernelState, LaunchRequest, RemoteProcess
from ..turns import take_turn
from .launching import Launch
from .life import KernelLife
from .orders import Orders
from .undoing import shielded


class Starting:
    """The launches of one kernel, one at a time."""

    def __init__(self, life: KernelLife, orders: Orders, log: Log) -> None:
        self._life = life
        self._orders = orders
        self._log = log
        self._caller: Caller | None = None
        self._launching: asyncio.Task[Mapping[str, Any]] | None = None

    # --- on the caller's loop --------------------------------------------------------------------------------------------------

    async def launch(self, request: LaunchRequest) -> Mapping[str, Any]:
        """As `RemoteKernel.launch`."""
        thread = IOThread.current()
        await self.abandon_last()
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
            if self._life.held is not None:  # it was cancelled in the moment of success
                undone = asyncio.wrap_future(thread.submit(self._orders.clean_to_the_end(False)))
                await asyncio.wait([undone], timeout=CLEANUP_TIMEOUT)
            raise
        caller.served = True
        return info

    async def abandon_last(self) -> None:
        """Whoever asks for a launch, or for the end, while a launch is under way, will not have that one any more."""
        caller = self._caller
        if caller is not None and not caller.served:
            await IOThread.current().run(self._abandon(caller))

    # --- on the I/O loop -------------------------------------------------------------------------------------------------------

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
        if self._life.held is not None:
            self._life.logger().info("nobody waits for its start any more: it is ended")
            with suppress(ProvisionerError):
                await self._orders.clean(False)

    async def _launch(self, request: LaunchRequest) -> Mapping[str, Any]:
        await self._orders.settle()
        life, previous = self._life, self._life.process
        life.start(request.login)
        life.log_tail, life.ending, life.launching = "", False, True
        launch = Launch(
            request,
            prefix=life.near_ends.prefix,
            previous=previous,
            spare=life.near_ends.take_spare(),
            next_generation=life.next_generation,
            watcher=life.watcher,
            log=PrefixedLog(self._log, life.kernel_id),
        )
        try:
            launched = await launch.run()
        except BaseException:
            life.state = KernelState.EXITED
            raise
        finally:
            life.launching = False
        life.hold(launched)
        life.phases = launch.phases
        self._report(launched.process, previous)
        return launched.info

    def _report(self, process: RemoteProcess, previous: RemoteProcess | None) -> None:
        log = self._life.logger()
        times = " ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in self._life.phases.items())
        forked = process.details.get("prefork") or {}
        how = (
            "forked"
            if forked.get("used")
            else f"cold ({forked.get('why') or 'an older host does not say why'})"
        )
        log.debug("launched, pid %s, %s: %s", process.pid, how, times)
        for note in process.notes:
            log.info("%s", note)
        if previous is not None and previous.host != process.host:
            log.warning("started on %s: %s, where it ran before, cannot take it", process.host, previous.host)
            self._life.on_host(previous).end_later()
