"""What a listener that was killed leaves behind: its directory of sockets, which lies outside its user's home."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path


def remove_socket_directories(home: Path) -> None:
    """Remove the directories that the listeners of `home` have recorded. For hosts whose listeners have ended."""
    for record in home.glob(".local/state/distributed-provisioner/*/listener-*.json"):
        with suppress(OSError, ValueError, KeyError):
            shutil.rmtree(json.loads(record.read_text())["directory"])
