"""The hosts on which a server had kernels lately: a hint that makes its next start quick, and without which nothing is lost.

With it, the start waits for these hosts alone; others that are configured are asked beside. It also has hosts that no configuration
names (any more).
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .errors import ConfigurationError
from .finding import Place
from .models import HostAddress, Login
from .persistence import login_from_json, login_to_json

_log = logging.getLogger(__name__)


class HostHints:
    """One file of mode 0600 for a server; no password is in it. What goes wrong with it is no harm."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: list[Place] = []

    def read(self, password: str | None) -> list[Place]:
        """The hosts of the server's last run."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, ConfigurationError):
            data = json.loads(self._path.read_text(encoding="utf-8"))
            return [
                Place(HostAddress.parse(each["host"]), login_from_json(each["login"], password))
                for each in data["hosts"]
            ]
        return []

    def add(self, places: Iterable[Place]) -> None:
        """There are kernels on these hosts now."""
        with self._lock:
            new = [place for place in dict.fromkeys(places) if place not in self._known]
            if new:
                self._known += new
                threading.Thread(target=self._write, args=(list(self._known),), daemon=True).start()

    def _write(self, known: list[Place]) -> None:
        hosts = [{"host": str(place.address), "login": login_to_json(place.login)} for place in known]
        temporary = self._path.with_name(f"{self._path.name}.{threading.get_ident()}")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
            ) as file:
                json.dump({"hosts": hosts}, file)
            os.replace(temporary, self._path)
        except OSError as error:
            _log.debug("the hosts in use were not written down: %s", error)


_hints: list[HostHints] = []


def use_hints(hints: HostHints) -> None:
    """Have the hosts of this process's launches written there."""
    _hints[:] = [hints]


def remember_host(address: HostAddress, login: Login) -> None:
    """A kernel was launched there. Does nothing in processes whose kernels nobody will look for."""
    for hints in _hints:
        hints.add([Place(address, login)])
