"""Who wants to know what happens to which kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..models import ExitReason

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KernelEvent:
    """Something that a watcher is told, on the I/O loop."""

    kind: Literal["running", "exited", "lost", "regained", "unknown", "note"]
    """`lost`: the host cannot be asked; `regained`: it can again, and the kernel lives; `unknown`: the host does not know the kernel."""
    reason: ExitReason | None = None
    log_tail: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    """The listener's own words: its status or event."""


class Watch:
    """A kernel that is watched. After `exited` or `unknown` nothing more is told."""

    def __init__(
        self,
        watches: Watches,
        kernel_id: str,
        generation: int,
        on_event: Callable[[KernelEvent], None],
        identity: str,
    ) -> None:
        self.kernel_id = kernel_id
        self.generation = generation
        self.identity = identity
        """The host's identity when the kernel was last known to be there; empty if that is not known."""
        self.over = False
        self._watches = watches
        self._on_event = on_event

    def tell(self, event: KernelEvent) -> None:
        if self.over:
            return
        self.over = event.kind in ("exited", "unknown")
        try:
            self._on_event(event)
        except Exception:
            _log.exception("a watcher of kernel %s failed", self.kernel_id)

    def close(self) -> None:
        """Tell it nothing any more."""
        self.over = True
        self._watches.discard(self)

    def __repr__(self) -> str:
        return f"<Watch {self.kernel_id}:{self.generation}{' over' if self.over else ''}>"


class Watches:
    """All watches of one host."""

    def __init__(self) -> None:
        self._watches: list[Watch] = []

    def add(
        self, kernel_id: str, generation: int, on_event: Callable[[KernelEvent], None], identity: str
    ) -> Watch:
        watch = Watch(self, kernel_id, generation, on_event, identity)
        self._watches.append(watch)
        return watch

    def discard(self, watch: Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)

    def __iter__(self) -> Iterator[Watch]:
        """Those that are to be told something."""
        return iter([watch for watch in self._watches if not watch.over])

    def __len__(self) -> int:
        return sum(not watch.over for watch in self._watches)

    def tell_all(self, event: KernelEvent) -> None:
        for watch in self:
            watch.tell(event)

    def dispatch(self, message: Mapping[str, Any]) -> None:
        """Hand an event of the listener to its kernel's watchers."""
        event = event_of(message)
        if event is None:
            return
        for watch in self:
            if (watch.kernel_id, watch.generation) == (message.get("kernel_id"), message.get("generation")):
                watch.tell(event)

    def compare(self, statuses: list[dict[str, Any]], identity: str) -> None:
        """After the host is back: who lives, who is gone?"""
        found = {(status.get("kernel_id"), status.get("generation")): status for status in statuses}
        for watch in self:
            status = found.get((watch.kernel_id, watch.generation), {"state": "unknown"})
            if watch.identity and watch.identity != identity:
                # Whatever has this kernel's name there now is another one: its processes ended with the host's.
                watch.tell(KernelEvent("exited", ExitReason(None, "host rebooted", "its host was restarted")))
                continue
            watch.identity = identity
            state = status.get("state")
            if state == "exited":
                watch.tell(KernelEvent("exited", _reason(status), str(status.get("log_tail") or ""), status))
            elif state == "unknown":
                watch.tell(KernelEvent("unknown", status=status))
            else:
                watch.tell(KernelEvent("regained", status=status))


def event_of(message: Mapping[str, Any]) -> KernelEvent | None:
    """What the listener's event says; None for one that this version does not know."""
    kind = message.get("event")
    if kind == "exited":
        return KernelEvent("exited", _reason(message), str(message.get("log_tail") or ""), message)
    if kind == "note":
        return KernelEvent("note", status=message)
    if kind == "running":
        return KernelEvent("running", status=message)
    return None


def _reason(status: Mapping[str, Any]) -> ExitReason:
    return ExitReason(
        status.get("code"), str(status.get("reason") or "unknown"), str(status.get("detail") or "")
    )
