"""What was handed on counts as consumed, unless somebody who is worth waiting for reads too slowly."""

from __future__ import annotations

from .link import Link


class Meter:
    """The books of one kind of records."""

    def __init__(self, link: Link, kind: int) -> None:
        self._link, self._kind = link, kind
        self._blocked = False
        self._stuck = 0
        self._credit = link.credit

    def count(self, size: int) -> None:
        """So many bytes were written to clients, or are held."""
        if self._credit is not self._link.credit:  # another relay, another book
            self._credit, self._stuck = self._link.credit, 0
        if self._blocked:
            self._stuck += size
        else:
            self._credit.consume(self._kind, size)

    def block(self, blocked: bool) -> None:
        """Whether somebody has to read first."""
        self._blocked = blocked
        if not blocked and self._stuck:
            self._credit.consume(self._kind, self._stuck)
            self._stuck = 0
            self._link.acknowledge_soon()

    @property
    def is_blocked(self) -> bool:
        return self._blocked
