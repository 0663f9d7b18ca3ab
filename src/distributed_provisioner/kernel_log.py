"""Log lines that say which kernel, on which host, they are about. The library configures no logging: the host application's log is used."""

from __future__ import annotations

from typing import Protocol


class Log(Protocol):
    """What of a logger is used here."""

    def debug(self, message: str, /, *args: object) -> None: ...
    def info(self, message: str, /, *args: object) -> None: ...
    def warning(self, message: str, /, *args: object) -> None: ...


class PrefixedLog:
    """A log whose lines say which kernel they are about."""

    def __init__(self, log: Log, kernel_id: str, host: str = "") -> None:
        self._log = log
        self._prefix = f"[kernel={kernel_id[:8]}{f' host={host}' if host else ''}] ".replace("%", "%%")

    def debug(self, message: str, /, *args: object) -> None:
        self._log.debug(self._prefix + message, *args)

    def info(self, message: str, /, *args: object) -> None:
        self._log.info(self._prefix + message, *args)

    def warning(self, message: str, /, *args: object) -> None:
        self._log.warning(self._prefix + message, *args)
