"""The health of one host, as a value: what a launch that failed, one that worked and the passing of time make of it.

    well ──failure──► failing ──pause──► well            the pause doubles with each failure
                         │ the third failure in a row
                         ▼
                      broken ──pause──► half open ──► on trial ──failure──► broken, for twice as long
                                                          └────success──► well

`drained` and `unreachable` are what a connection knows just now; they come with a question and are never kept here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from distributed_provisioner.models import HostCondition

FIRST_DELAY = 1.0
"""Seconds for which a host is set aside after its first failure; doubled by each further one."""
LONGEST_DELAY = 60.0
BREAK_AFTER = 3
"""Failures in a row after which a host gets one launch at a time until one has worked."""


class HostState(IntEnum):
    """The greater, the worse. Hosts up to `HALF_OPEN` are asked in their turn, worse ones when no such host is left."""

    WELL = 0
    HALF_OPEN = 1
    """It has failed again and again; the next launch is the trial."""
    FAILING = 2
    """Set aside for a while."""
    ON_TRIAL = 3
    """One launch tries whether it is well again; others wait for what becomes of that."""
    BROKEN = 4
    UNREACHABLE = 5
    DRAINED = 6
    """Never asked by a launch that has a choice, nor by one that has none."""

    @property
    def is_well(self) -> bool:
        """Whether it is asked in its turn, like every other."""
        return self <= HostState.HALF_OPEN


@dataclass(frozen=True)
class Health:
    """What the launches of this process have found out about a host. Times are those of one monotonic clock."""

    failures: int = 0
    """In a row."""
    failed_at: float = float("-inf")
    until: float = float("-inf")
    """Set aside so long."""
    trials: int = 0
    """Launches under way since it is half open; above 1 where pins or restarts left no choice."""

    def state(self, now: float, condition: HostCondition = HostCondition()) -> HostState:  # noqa: B008 -- frozen
        """What it is now, with what a connection knows of it."""
        if condition.drained:
            return HostState.DRAINED
        if condition.unreachable:
            return HostState.UNREACHABLE
        if self.failures < BREAK_AFTER:
            return HostState.FAILING if now < self.until else HostState.WELL
        if now < self.until:
            return HostState.BROKEN
        return HostState.ON_TRIAL if self.trials else HostState.HALF_OPEN

    def failed(self, now: float, chance: float, begun: float | None = None) -> Health:
        """It could not take a kernel: set aside for 1 s, 2 s, 4 s … 60 s, less up to a quarter (`chance`, 0 to 1).

        Launches of one burst fail of one cause: those that had `begun` before the last failure count as that one.
        """
        if begun is not None and begun <= self.failed_at:
            return self
        failures = self.failures + 1
        delay = min(FIRST_DELAY * 2 ** min(failures - 1, 10), LONGEST_DELAY)
        return replace(self, failures=failures, failed_at=now, until=now + delay * (1 - chance / 4))

    def worked(self) -> Health:
        """It took a kernel: its failures are forgotten."""
        return Health(trials=self.trials)

    def trial_begun(self) -> Health:
        return replace(self, trials=self.trials + 1)

    def trial_over(self) -> Health:
        return replace(self, trials=max(0, self.trials - 1))
