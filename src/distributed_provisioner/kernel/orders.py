"""What a kernel is asked to do. Everything here runs on the I/O loop.

Asked to end, it counts as exited afterwards, whether its host could be told or not: what is left of it is ended when the host is back.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress

from ..errors import HostError, LaunchError
from ..models import KernelState
from .life import KernelLife
from .undoing import shielded


class Orders:
    """Signals to a kernel, its end, and what is left of it."""

    def __init__(self, life: KernelLife) -> None:
        self._life = life

    async def signal(self, number: int, target: str) -> None:
        """Raises HostError where the host cannot be asked."""
        life = self._life
        if life.process is None:
            return
        if life.state is KernelState.UNREACHABLE:
            seconds = time.monotonic() - (life.unreachable_since or time.monotonic())
            raise life.on_host().unreachable(f"cannot be reached since {seconds:.0f} s")
        with suppress(LaunchError):  # the host does not know it: its end is on the way to us
            await life.on_host().signal(number, target)

    async def terminate(self) -> None:
        """SIGTERM to the process group."""
        try:
            await self.signal(signal.SIGTERM, "group")
        except HostError:
            self._life.leave_for_later()

    async def end(self) -> None:
        """SIGKILL to the whole descent."""
        life = self._life
        if life.process is None or life.state is KernelState.EXITED:
            return
        life.ending = True
        if life.state is KernelState.UNREACHABLE:
            return life.leave_for_later()
        try:
            reason = await life.on_host().end()
        except HostError:
            return life.leave_for_later()
        if life.exit_reason is None:
            life.exited(reason, "")

    async def give_up(self) -> None:
        if self._life.state is KernelState.UNREACHABLE:
            self._life.leave_for_later()

    async def settle(self) -> None:
        """Wait until nothing of the last process is held: sockets of the next one may lie at the same paths."""
        if self._life.held is not None:
            await self.end()
        await self._life.near_ends.gone()

    async def clean(self, restart: bool) -> None:
        """Leave nothing of it; with `restart`, keep what the next launch needs to be like this one."""
        life, process = self._life, self._life.process
        await self.settle()
        if restart:
            return
        await life.near_ends.close_spare(hear_out=bool(life.end_expected))
        if process is not None:
            # Whoever was not waited for may have started the next one meanwhile.
            if life.process is process:
                life.to_forget = False
            await life.on_host(process).forget()

    async def clean_to_the_end(self, restart: bool) -> None:
        """As `clean`, also when the caller is cancelled meanwhile."""
        await shielded(self.clean(restart))
