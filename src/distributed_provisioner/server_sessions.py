"""Jupyter Server's sessions (which notebook has which kernel), kept on the kernels' hosts, where no crash of the server reaches them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

PREFIX = "session:"
"""Of the names of annotations; the session's id follows."""
COLUMNS = ("path", "name", "type")

_starting: ContextVar[Mapping[str, Any] | None] = ContextVar("session_being_started", default=None)


def session_being_started() -> dict[str, Any]:
    """The annotation for the session that a kernel is being started for by this task; empty where there is none."""
    return dict(_starting.get() or {})


def annotations_of(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Annotations for sessions by their ids."""
    return {
        f"{PREFIX}{session_id}": {name: row.get(name) for name in COLUMNS} for session_id, row in rows.items()
    }


def sessions_in(annotations: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The inverse of `annotations_of`; what is no session is left out."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in annotations.items()
        if name.startswith(PREFIX) and isinstance(value, Mapping)
    }


class Sessions:
    """The sessions of a Jupyter Server.

    Args:
        manager: its SessionManager, any subclass that keeps its rows in the table that Jupyter Server has.
        annotate: is told, with a kernel's id, of annotations that have changed; None for one that is to go.
    """

    def __init__(self, manager: Any, annotate: Callable[[str, dict[str, Any]], None]) -> None:
        self._manager = manager
        self._annotate = annotate
        self._told: dict[str, dict[str, Any]] = {}
        """By kernel: the annotations that were told."""

    def watch(self) -> None:
        """Follow all changes from now on."""
        for name in ("save_session", "update_session", "delete_session"):
            method = getattr(self._manager, name, None)
            if method is not None:
                setattr(self._manager, name, self._followed(method))
        method = getattr(self._manager, "start_kernel_for_session", None)
        if method is not None:
            self._manager.start_kernel_for_session = self._announced(method)

    def restore(self, kernel_id: str, annotations: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Make the rows of a kernel that was found again, unless they are there; gives its sessions.

        Rows of an earlier call for it that are no sessions any more go.
        """
        sessions = sessions_in(annotations)
        cursor = self._manager.cursor
        for session_id in sessions_in(self._told.get(kernel_id, {})):
            if session_id not in sessions:
                cursor.execute(
                    "DELETE FROM session WHERE session_id=? AND kernel_id=?", (session_id, kernel_id)
                )
        for session_id, row in sessions.items():
            cursor.execute("DELETE FROM session WHERE session_id=?", (session_id,))
            values = (session_id, *(row.get(name) for name in COLUMNS), kernel_id)
            cursor.execute(
                "INSERT INTO session (session_id, path, name, type, kernel_id) VALUES (?,?,?,?,?)", values
            )
        self._told[kernel_id] = annotations_of(sessions)
        return sessions

    def tell(self) -> None:
        """Tell what has changed since the last time."""
        found: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in self._manager.cursor.execute("SELECT * FROM session").fetchall():
            found.setdefault(row["kernel_id"], {})[row["session_id"]] = dict(row)
        now = {kernel_id: annotations_of(rows) for kernel_id, rows in found.items()}
        for kernel_id in {*self._told, *now}:
            before, after = self._told.get(kernel_id, {}), now.get(kernel_id, {})
            if before != after:
                self._annotate(
                    kernel_id, {**dict.fromkeys(name for name in before if name not in after), **after}
                )
        self._told = now

    def _followed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        async def followed(*args: Any, **kwargs: Any) -> Any:
            try:
                return await method(*args, **kwargs)
            finally:
                self.tell()

        return followed

    def _announced(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The session is in no table before its kernel runs; a crash in between shall not part them."""

        @functools.wraps(method)
        async def announced(session_id: str, *args: Any, **kwargs: Any) -> Any:
            row = {
                **dict(zip(COLUMNS, args, strict=False)),
                **{name: kwargs[name] for name in COLUMNS if name in kwargs},
            }
            token = _starting.set(annotations_of({session_id: row}))
            try:
                return await method(session_id, *args, **kwargs)
            finally:
                _starting.reset(token)

        return announced
