"""The hosts on which a server had kernels lately: a hint that makes its next start quick, and without which nothing is lost.

With it, the start waits for these hosts alone; others that are configured are asked beside. It also has hosts that no configuration
names (any more).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import ConfigurationError
from .finding import Place
from .models import HostAddress, Login
from .persistence import login_from_json, login_to_json
from .server_files import ServerFile


class HostHints:
    """One file for a server; no password is in it."""

    def __init__(self, path: Path) -> None:
        self._file = ServerFile(path)
        self._lock = threading.Lock()
        self._known: list[Place] = []

    def read(self, password: str | None) -> list[Place]:
        """The hosts of the server's last run."""
        with suppress(KeyError, TypeError, ValueError, AttributeError, ConfigurationError):
            return [
                Place(HostAddress.parse(each["host"]), login_from_json(each["login"], password))
                for each in self._file.read()["hosts"]
            ]
        return []

    def add(self, places: Iterable[Place]) -> None:
        """There are kernels on these hosts now."""
        with self._lock:
            new = [place for place in dict.fromkeys(places) if place not in self._known]
            if new:
                self._known += new
                self._file.write(self._content)

    def _content(self) -> Any:
        with self._lock:
            known = list(self._known)
        return {
            "hosts": [{"host": str(place.address), "login": login_to_json(place.login)} for place in known]
        }


_hints: list[HostHints] = []


def use_hints(hints: HostHints) -> None:
    """Have the hosts of this process's launches written there."""
    _hints[:] = [hints]


def remember_host(address: HostAddress, login: Login) -> None:
    """A kernel was launched there. Does nothing in processes whose kernels nobody will look for."""
    for hints in _hints:
        hints.add([Place(address, login)])
