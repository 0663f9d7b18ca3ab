"""What a host is asked about one launch of a kernel. Runs on the I/O loop; every question has a time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from .errors import HostUnreachableError, LaunchError, ProvisionerError
from .models import ExitReason, Login, RemoteProcess
from .ssh import Connections, HostConnection

ASK_TIMEOUT = 5.0
"""Seconds that a host gets to answer."""
LOOK_INTERVAL = 0.1


class KernelOnHost:
    """A kernel's process, as seen through the connection to its host.

    Raises (all coroutines):
        HostError: the host cannot be asked, or does not answer in time.
        LaunchError: the host knows no such kernel.
    """

    def __init__(self, kernel_id: str, process: RemoteProcess, login: Login) -> None:
        self._kernel_id = kernel_id
        self._process = process
        self._login = login

    @property
    def connection(self) -> HostConnection:
        return Connections.current().get(self._process.host, self._login)

    async def signal(self, number: int, target: str) -> None:
        await self._ask("signal", signal=number, target=target)

    async def end(self) -> ExitReason:
        """SIGKILL to the whole descent; returns when nothing is left of it."""
        try:
            return exit_reason(await self._ask("end", grace=0))
        except LaunchError:
            return ExitReason(None, "unknown", "its host does not know it any more")

    def end_later(self) -> None:
        """End it, and forget it, when its host can be reached again."""
        self.connection.end_later(self._kernel_id, self._process.generation)

    async def forget(self) -> None:
        """Remove its log, directory and record. Where that cannot be done now, it is done later."""
        try:
            await self._ask("forget", keep_log=False)
        except LaunchError:
            pass
        except ProvisionerError:
            self.end_later()

    async def status(self) -> Mapping[str, Any]:
        """Its status (see the protocol), `state` is `unknown` where the host knows nothing of it; its events come from now on."""
        wanted = [{"kernel_id": self._kernel_id, "generation": self._process.generation}]
        reply = await self._bounded(self.connection.request("attach", timeout=ASK_TIMEOUT, kernels=wanted))
        status: Mapping[str, Any] = reply["kernels"][0]
        return status

    async def annotate(self, values: Mapping[str, Any]) -> None:
        """Have the host keep these values (plain JSON) with the kernel; None removes one."""
        await self._ask("annotate", annotations=dict(values))

    async def until_back(self, seconds: float) -> None:
        """Wait for so long, or until the host is back if it is away now."""
        before, until = self.connection.state, time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, LOOK_INTERVAL))
            if before != "connected" and self.connection.state == "connected":
                return

    async def log(self, limit: int) -> str:
        return str((await self._ask("log", limit=limit))["text"])

    def unreachable(self, what: str) -> HostUnreachableError:
        """The error for people who asked something of the kernel."""
        host = str(self._process.host)
        return HostUnreachableError(
            f"Host {host} {what}, so the kernel on it was not asked. "
            "It may well be alive: try again when the host is back, or restart the kernel to have it elsewhere.",
            host=host,
            kernel_id=self._kernel_id,
        )

    async def _ask(self, operation: str, **params: Any) -> dict[str, Any]:
        names = {"kernel_id": self._kernel_id, "generation": self._process.generation}
        return await self._bounded(self.connection.request(operation, timeout=ASK_TIMEOUT, **names, **params))

    async def _bounded(self, question: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await asyncio.wait_for(question, ASK_TIMEOUT + 1)
        except asyncio.TimeoutError as error:
            if isinstance(error, ProvisionerError):
                raise
            raise self.unreachable(f"did not answer within {ASK_TIMEOUT:g} s") from error
        return answer


def exit_reason(status: Mapping[str, Any]) -> ExitReason:
    """From a status, an event or a reply of the listener."""
    code = status.get("code")
    reason, detail = status.get("reason") or "unknown", status.get("detail") or ""
    return ExitReason(None if code is None else int(code), reason, detail)
