"""A kernel of an earlier process whose host is away: nothing but its place is known, and it is not touched before its host has told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .io_thread import IOThread
from .kernel import RemoteKernel
from .kernel.adopting import endpoints_of
from .models import ExitReason, KernelState, Login, RemoteProcess


class AwaitedKernel(RemoteKernel):
    """A kernel that can be awaited before it is taken over.

    It counts as unreachable: it cannot be interrupted, a shutdown or a restart leaves what there is of it to be ended when its host is
    back.
    """

    _awaited: RemoteProcess | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether it is to be taken over, or to be found dead."""
        return (
            self._awaited is not None
            and self.process is self._awaited
            and self.state is KernelState.UNREACHABLE
        )

    def await_host(self, process: RemoteProcess, login: Login) -> Mapping[str, Any]:
        """Count as unreachable from now on, until `take_over` or `found_dead`. Waits for the I/O thread only.

        Returns:
            where its endpoints will be once it is taken over, as connection info.
        """
        return IOThread.current().submit(self._await_host(process, login)).result()

    def found_dead(self, reason: ExitReason, log_tail: str) -> None:
        """Its host says that it is no more."""
        IOThread.current().submit(self._found_dead(reason, log_tail)).result()

    async def _await_host(self, process: RemoteProcess, login: Login) -> Mapping[str, Any]:
        life = self._life
        life.process = self._awaited = process
        life.generation = max(life.generation, process.generation)
        life.start(login)
        life.away()
        return endpoints_of(process, life.on_host().connection, life.near_ends.prefix)

    async def _found_dead(self, reason: ExitReason, log_tail: str) -> None:
        if self.is_awaited:
            self._life.exited(reason, log_tail)
