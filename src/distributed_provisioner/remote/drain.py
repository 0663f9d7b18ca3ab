"""Whether this host takes new kernels: an operator may drain it for one user, or, as root, for all."""

from __future__ import annotations

import json
import os
import re
import socket
import time

from server_listener import load_json, read_text, remove, write_private

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from places import Places


class Drain:
    """Kept by host name, as state directories change with each boot; read anew each time, as other processes change it, too."""

    def __init__(self, places: Places, tell: Callable[[dict[str, Any]], None]) -> None:
        host = re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())
        self.path = os.path.join(places.states, f"drained-{host}")
        self.for_all = os.path.join(places.SYSTEM, "drained")
        """A file of root's, whose text is the reason."""
        self.tell = tell
        self.told = self.state()

    def state(self) -> tuple[bool, str]:
        """(whether drained, why)."""
        if os.path.lexists(self.for_all):
            return True, read_text(self.for_all).strip()[:1000]
        if os.path.lexists(self.path):
            return True, str(load_json(self.path).get("reason") or "")
        return False, ""

    def reply(self) -> dict[str, Any]:
        drained, reason = self.state()
        return {"drained": drained, "drain_reason": reason}

    def set(self, on: bool, reason: str) -> None:
        """Raises OSError."""
        if on:
            write_private(self.path, json.dumps({"reason": reason[:1000], "since": time.time()}).encode())
        else:
            remove(self.path)
        self.check()

    def check(self) -> None:
        """Tell every connection of a change."""
        state = self.state()
        if state != self.told:
            self.told = state
            self.tell({"event": "drained", "drained": state[0], "reason": state[1]})
