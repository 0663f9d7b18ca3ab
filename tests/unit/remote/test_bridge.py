"""The bridge copies bytes, whatever they are and whoever is slow."""

from __future__ import annotations

import ast
import json
import threading
import time
from pathlib import Path

from distributed_provisioner.ssh import bootstrap

from .driver import REMOTE, Bridge, until


class Pausing(Bridge):
    """A server that reads its first reply and then nothing until it is told to."""

    def __init__(self, home: Path) -> None:
        self.reading = threading.Event()
        super().__init__(home)

    def _read(self) -> None:
        self._take_one()
        self.reading.wait()
        super()._read()

    def _take_one(self) -> None:
        message = json.loads(self.output.readline())
        self.replies[message["id"]].put(message)


def test_requests_go_through_while_replies_wait(home: Path) -> None:
    """An interrupt must reach the host though the server is still busy with a flood of what came from there."""
    bridge = Pausing(home)
    numbers = [bridge.send("list") for _ in range(1500)]
    time.sleep(1)  # by now nothing more fits between the listener and us
    last = bridge.send("drain", on=True, reason="x")
    until(lambda: list(home.glob(".local/state/distributed-provisioner/drained-*")), 20)
    bridge.reading.set()
    for number in numbers:
        assert bridge.reply(number)["kernels"] == []
    assert bridge.reply(last) == {"drained": True}
    bridge.close()


def test_everything_that_the_listener_imports_is_shipped() -> None:
    """A file that is forgotten is missed on each host, and nowhere here."""
    found, waiting = {"server_listener.py"}, ["bridge.py", "listener.py", "login.py", "prefork_template.py"]
    while waiting:
        name = waiting.pop()
        found.add(name)
        for node in ast.walk(ast.parse((REMOTE / name).read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            files = {f"{each}.py" for each in names if (REMOTE / f"{each}.py").exists()}
            waiting += files - found
    # It is a program of its own, which the kernels' Python runs.
    assert "prefork_template.py" in (REMOTE / "prefork_process.py").read_text()
    assert found == set(bootstrap.SOURCES)
    assert len(bootstrap.SOURCES) == len(set(bootstrap.SOURCES))
