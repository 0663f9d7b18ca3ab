"""The hosts of this process: who has how many kernels, who is unwell, whose turn it is."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from types import TracebackType

from distributed_provisioner.models import HostAddress, HostCondition, LaunchRequest, Login

from .balancing import choose, index_after
from .health import Health, HostState

Ask = Callable[[HostAddress, "Login | None"], HostCondition]
"""What the connection to a host with a log-in knows of it; without one, the worst that any of them knows."""

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
        self._health: dict[HostAddress, Health] = {}
        """Of those that have failed lately."""
        self._ask: Ask = _nothing_known

    @classmethod
    def current(cls) -> HostPool:
        """The pool of this process. A forked child has none of its parent's kernels and starts with an empty one."""
        pid = os.getpid()
        if cls._current is None or cls._current[0] != pid:
            cls._current = (pid, cls())
        return cls._current[1]

    def ask(self, source: Ask) -> None:
        """Ask `source` from now on what the connections know of a host; it must answer from memory."""
        self._ask = source

    def reserve(self, request: LaunchRequest, not_these: Collection[HostAddress] = ()) -> Reservation | None:
        """A place on the host whose turn it is, or None when all that would do are in `not_these` or drained.

        Hosts that are not well come after all others, the least bad first. A pinned request gets its host, whatever policy and
        health say, and moves no index.
        """
        if request.pin is not None:
            return None if request.pin in not_these else Reservation(self, request.pin, launch=True)
        hosts = request.hosts
        rotation = request.rotation or hosts
        index = self._indexes.get(rotation, 0)
        loads = {host: self.load(host) for host in hosts} if request.policy == "least-connection" else {}
        states: dict[HostAddress, HostState] = {}

        def badness(host: HostAddress) -> int:
            state = states[host] = self.state(host, request.login)
            return 0 if state.is_well else int(state)

        for position in choose(request.policy, hosts, index, loads, badness):
            host = hosts[position]
            if host not in not_these and states[host] is not HostState.DRAINED:
                if request.policy == "round-robin":
                    self._indexes[rotation] = index_after(len(hosts), position)
                return Reservation(self, host, launch=True)
        return None

    def reserve_at(self, address: HostAddress) -> Reservation:
        """A place on this very host: restarts, kernels that are found again. Never a trial of the host."""
        return Reservation(self, address)

    def load(self, address: HostAddress) -> int:
        """How many kernels of this process are on the host, those that are being launched included."""
        return self._kernels[_key(address)]

    def state(self, address: HostAddress, login: Login | None = None) -> HostState:
        """How the host is now for a log-in (None: for any, the worst), as far as launches and connections have found out."""
        return self._health.get(address, Health()).state(self._clock(), self._ask(address, login))

    def condition(self, address: HostAddress, login: Login) -> HostCondition:
        """What the connection with a log-in knows of the host."""
        return self._ask(address, login)

    def is_unwell(self, address: HostAddress) -> bool:
        """Whether others are asked first."""
        return not self.state(address).is_well

    def report_failure(self, address: HostAddress, begun: float | None = None) -> None:
        """The host could not take a kernel. Launches that had begun before the last failure found out nothing new."""
        before = self._health.get(address, Health())
        self._keep(address, before.failed(self._clock(), self._jitter(), begun))

    def report_success(self, address: HostAddress) -> None:
        """The host took a kernel: its failures are forgotten."""
        self._keep(address, self._health.get(address, Health()).worked())

    def _keep(self, address: HostAddress, health: Health) -> None:
        if health == Health():
            self._health.pop(address, None)
        else:
            self._health[address] = health

    def _begin_trial(self, address: HostAddress) -> bool:
        """Whether a launch that goes there now is a trial of a host that had failed again and again."""
        health = self._health.get(address, Health())
        if health.state(self._clock()) not in (HostState.HALF_OPEN, HostState.ON_TRIAL):
            return False
        self._health[address] = health.trial_begun()
        return True

    def _end_trial(self, address: HostAddress) -> None:
        self._keep(address, self._health.get(address, Health()).trial_over())

    def _count(self, address: HostAddress, change: int) -> None:
        key = _key(address)
        self._kernels[key] += change
        if not self._kernels[key]:
            del self._kernels[key]

    def __repr__(self) -> str:
        addresses = {address for known in self._indexes for address in known} | set(self._health)
        hosts = {_key(address) for address in addresses} | set(self._kernels)
        states = Counter(self.state(address) for address in addresses)
        unwell = sum(count for state, count in states.items() if not state.is_well)
        told = "".join(
            f" {state.name.lower()}={count}"
            for state, count in sorted(states.items())
            if state is not HostState.WELL
        )
        return f"<HostPool hosts={len(hosts)} kernels={self._kernels.total()} unwell={unwell}{told}>"


class Reservation:
    """A kernel's place on a host, counted from here until `release()`.

    As a context manager it is released at the end of the block unless `commit()` was called in it.
    """

    def __init__(self, pool: HostPool, address: HostAddress, *, launch: bool = False) -> None:
        self.address = address
        self._pool = pool
        self._held = True
        self._committed = False
        self._begun = pool._clock()
        self._trial = launch and pool._begin_trial(address)
        pool._count(address, +1)

    def failed(self) -> None:
        """The host could not take the kernel."""
        self._pool.report_failure(self.address, self._begun)
        self._end_trial()

    def worked(self) -> None:
        """The host took the kernel."""
        self._pool.report_success(self.address)
        self._end_trial()

    def commit(self) -> None:
        """Keep the place beyond the `with` block, until `release()`."""
        self._committed = True
        self._end_trial()

    def release(self) -> None:
        """Give the place back. May be called more than once."""
        self._end_trial()
        if self._held:
            self._held = False
            self._pool._count(self.address, -1)

    def _end_trial(self) -> None:
        if self._trial:
            self._trial = False
            self._pool._end_trial(self.address)

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


def _nothing_known(address: HostAddress, login: Login | None) -> HostCondition:
    return HostCondition()


def _key(address: HostAddress) -> _HostKey:
    """Two users on one machine load the same host; two ports of one name are two hosts (gateways, test clusters)."""
    return (address.host.lower(), address.port)
