"""Kernels that are to be ended on a host that cannot be asked now."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import ConnectionLostError, HostUnreachableError, ProvisionerError

MAX_TO_END = 1000

_log = logging.getLogger(__name__)


class KernelsToEnd:
    """Wishes that are kept until the host has heard them; of very many, the oldest are dropped."""

    def __init__(self, host: str, request: Callable[..., Awaitable[dict[str, Any]]]) -> None:
        self._host = host
        self._request = request
        self._kernels: OrderedDict[tuple[str, int], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kernels)

    def add(self, kernel_id: str, generation: int) -> None:
        self._kernels[(kernel_id, generation)] = None
        while len(self._kernels) > MAX_TO_END:
            self._kernels.popitem(last=False)

    async def end(self) -> None:
        """End and forget them all, as far as the host can be asked."""
        for kernel_id, generation in list(self._kernels):
            try:
                await self._request(
                    "forget", timeout=30.0, kernel_id=kernel_id, generation=generation, keep_log=False
                )
            except (HostUnreachableError, ConnectionLostError):
                return  # once more when the host is back
            except ProvisionerError as error:
                _log.debug("[host=%s] kernel %s was not ended: %s", self._host, kernel_id, error)
            self._kernels.pop((kernel_id, generation), None)
