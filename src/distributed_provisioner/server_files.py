"""Small files that a server keeps for its next start, beside what the hosts know. Without them nothing is lost."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_data_dir

from .owner import owner

SHARE = 20
"""A write is followed by a pause of so many times what it took: in a burst of launches on a server with a thousand kernels the file grows
to megabytes, and writing it anew for each of them took more than the launches."""

_log = logging.getLogger(__name__)


def file_of_this_server(name: str) -> Path:
    """Where the file of that name of this process's owner is, or will be."""
    return Path(jupyter_data_dir(), "distributed-provisioner", f"{name}-{owner().rpartition(':')[2]}.json")


class ServerFile:
    """JSON in a file of mode 0600, written as a whole in a thread of its own. What goes wrong with it is no harm."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._content: Callable[[], Any] | None = None
        """What is to be written next."""
        self._writing = False
        self._in_a_hurry = False

    def read(self) -> Any:
        """What is in it; None where that cannot be read."""
        with suppress(OSError, ValueError):
            return json.loads(self._path.read_text(encoding="utf-8"))
        return None

    def write(self, content: Callable[[], Any]) -> None:
        """Have it written soon; of several contents that wait, only the last one is. `content` is called in the thread."""
        with self._changed:
            self._content = content
            if self._writing:
                return
            with suppress(RuntimeError):  # the process is ending
                threading.Thread(target=self._work, daemon=True, name="distributed-provisioner-file").start()
                self._writing = True

    def flush(self, timeout: float) -> None:
        """Wait, for at most `timeout` seconds, until all is written."""
        with self._changed:
            self._in_a_hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._writing, timeout)
            self._in_a_hurry = False

    def _work(self) -> None:
        while True:
            with self._changed:
                content, self._content = self._content, None
                if content is None:
                    self._writing = False
                    self._changed.notify_all()
                    return
            began = time.monotonic()
            try:
                self._replace(content())
            except (OSError, ValueError) as error:
                _log.debug("%s was not written: %s", self._path, error)
            except Exception:
                _log.exception("%s was not written", self._path)
            with self._changed:
                self._changed.wait_for(lambda: self._in_a_hurry, SHARE * (time.monotonic() - began))

    def _replace(self, content: Any) -> None:
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.{threading.get_ident()}")
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(content))  # in one go it is three times as quick
            os.replace(temporary, self._path)
        except BaseException:
            with suppress(OSError):
                os.remove(temporary)
            raise
