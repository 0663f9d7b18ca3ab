"""What a host keeps for the application with a kernel (its sessions, how it was started), told again until the host has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from .errors import HostError, ProvisionerError
from .io_thread import IOThread
from .kernel_log import Log
from .kernel_on_host import KernelOnHost

MAX_BYTES = 60 << 10
"""Of JSON; a listener takes 64 KB for a kernel."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


class Annotations:
    """Names and values (plain JSON) of one kernel.

    Args:
        on_host: the kernel where it runs now, None while it does not.
    """

    def __init__(self, on_host: Callable[[], KernelOnHost | None], log: Log) -> None:
        self._on_host = on_host
        self._log = log
        self._wanted: dict[str, Any] = {}
        self._known: dict[str, Any] = {}
        """What the host has."""
        self._telling: asyncio.Task[None] | None = None

    def __getitem__(self, name: str) -> Any:
        return self._wanted.get(name)

    def adopted(self, values: Mapping[str, Any]) -> None:
        """The host has these of an earlier process."""
        self._wanted, self._known = dict(values), dict(values)

    def returned(self, values: Mapping[str, Any]) -> None:
        """The host has these; what was set here while it was away is set in them, too."""
        news = difference(self._known, self._wanted)
        self.adopted(values)
        self.set(news)

    @property
    def values(self) -> dict[str, Any]:
        """All of them, as the host has them or is to have them."""
        return dict(self._wanted)

    def for_launch(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All that goes with a launch, these values included; a restart keeps the others."""
        self._wanted = fitting({**self._wanted, **values})
        self._known = dict(self._wanted)
        return dict(self._wanted)

    def set(self, values: Mapping[str, Any]) -> None:
        """Set these values (None removes one), here at once and on the host soon. Callable on any thread."""
        merged = {**self._wanted, **values}
        self._wanted = {name: value for name, value in merged.items() if value is not None}
        if self._wanted != self._known:
            with suppress(RuntimeError):  # the process is ending
                IOThread.current().submit(self._tell_soon())

    async def _tell_soon(self) -> None:
        if self._telling is None or self._telling.done():
            self._telling = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        """Tell the host what is new, as often as it takes."""
        pause = FIRST_PAUSE
        while news := difference(self._known, self._wanted):
            kernel = self._on_host()
            if kernel is None:
                return  # it has ended, or what is wanted goes with its launch
            try:
                await kernel.annotate(news)
            except HostError:
                await kernel.until_back(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            except ProvisionerError as error:
                self._log.debug("its host does not take annotations: %s", error)
                return
            else:
                merged = {**self._known, **news}
                self._known = {name: value for name, value in merged.items() if value is not None}


def difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What makes `wanted` of `known`: None for a name that is to go."""
    gone = dict.fromkeys(name for name in known if name not in wanted)
    return {**gone, **{name: value for name, value in wanted.items() if known.get(name) != value}}


def fitting(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, without those of the request's environment that the host has no room for: the largest go first."""
    result = dict(values)
    launch = dict(result.get("launch") or {})
    env = dict(launch.get("env") or {})
    for name in sorted(env, key=lambda name: len(env[name]), reverse=True):
        if len(json.dumps(result)) <= MAX_BYTES:
            break
        del env[name]
        result["launch"] = {**launch, "env": env}
    return result
