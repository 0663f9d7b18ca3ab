"""The hosts of this process: who has how many kernels, who is unwell, whose turn it is."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType

from distributed_provisioner.models import HostAddress, LaunchRequest

from .balancing import choose, index_after

FIRST_DELAY = 1.0
"""Seconds for which a host is set aside after its first failure; doubled by each further one."""
LONGEST_DELAY = 60.0

_HostKey = tuple[str, int | None]


class HostPool:
    """Hands out reservations. One a process (`HostPool.current()`), used on the I/O loop only; it needs no lock."""

    _current: tuple[int, HostPool] | None = None

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._indexes: dict[tuple[HostAddress, ...], int] = {}
        self._kernels: Counter[_HostKey] = Counter()
        self._ill: dict[HostAddress, _Illness] = {}

    @classmethod
    def current(cls) -> HostPool:
        """The pool of this process. A forked child has none of its parent's kernels and starts with an empty one."""
        pid = os.getpid()
        if cls._current is None or cls._current[0] != pid:
            cls._current = (pid, cls())
        return cls._current[1]

    def reserve(self, request: LaunchRequest, not_these: Collection[HostAddress] = ()) -> Reservation | None:
        """A place on the host whose turn it is, or None when all that would do are in `not_these`.

        A pinned request gets its host, whatever the policy says, and moves no index.
        """
        if request.pin is not None:
            return None if request.pin in not_these else self.reserve_at(request.pin)
        hosts = request.hosts
        index = self._indexes.get(hosts, 0)
        loads = {host: self.load(host) for host in hosts}
        unwell = {host for host in hosts if self.is_unwell(host)}
        for position in choose(request.policy, hosts, index, loads, unwell):
            if hosts[position] not in not_these:
                if request.policy == "round-robin":
                    self._indexes[hosts] = index_after(len(hosts), position)
                return self.reserve_at(hosts[position])
        return None

    def reserve_at(self, address: HostAddress) -> Reservation:
        """A place on this very host: pins, restarts, kernels that are found again."""
        return Reservation(self, address)

    def load(self, address: HostAddress) -> int:
        """How many kernels of this process are on the host, those that are being launched included."""
        return self._kernels[_key(address)]

    def is_unwell(self, address: HostAddress) -> bool:
        """Whether the host failed so lately that others are asked first."""
        illness = self._ill.get(address)
        return illness is not None and self._clock() < illness.until

    def report_failure(self, address: HostAddress) -> None:
        """The host could not take a kernel: set it aside for 1 s, 2 s, 4 s … 60 s, less up to a quarter by chance."""
        failures = self._ill[address].failures + 1 if address in self._ill else 1
        delay = min(FIRST_DELAY * 2 ** min(failures - 1, 10), LONGEST_DELAY)
        self._ill[address] = _Illness(failures, self._clock() + delay * (1 - self._jitter() / 4))

    def report_success(self, address: HostAddress) -> None:
        """The host took a kernel: its failures are forgotten."""
        self._ill.pop(address, None)

    def _count(self, address: HostAddress, change: int) -> None:
        key = _key(address)
        self._kernels[key] += change
        if not self._kernels[key]:
            del self._kernels[key]

    def __repr__(self) -> str:
        unwell = sum(self.is_unwell(address) for address in self._ill)
        hosts = {_key(address) for known in self._indexes for address in known} | set(self._kernels)
        return f"<HostPool hosts={len(hosts)} kernels={self._kernels.total()} unwell={unwell}>"


class Reservation:
    """A kernel's place on a host, counted from here until `release()`.

    As a context manager it is released at the end of the block unless `commit()` was called in it.
    """

    def __init__(self, pool: HostPool, address: HostAddress) -> None:
        self.address = address
        self._pool = pool
        self._held = True
        self._committed = False
        pool._count(address, +1)

    def commit(self) -> None:
        """Keep the place beyond the `with` block, until `release()`."""
        self._committed = True

    def release(self) -> None:
        """Give the place back. May be called more than once."""
        if self._held:
            self._held = False
            self._pool._count(self.address, -1)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            self.release()

    def __repr__(self) -> str:
        state = "committed" if self._committed else "held"
        return f"<Reservation {self.address} {state if self._held else 'released'}>"


@dataclass(frozen=True)
class _Illness:
    failures: int
    until: float


def _key(address: HostAddress) -> _HostKey:
    """Two users on one machine load the same host; two ports of one name are two hosts (gateways, test clusters)."""
    return (address.host.lower(), address.port)
