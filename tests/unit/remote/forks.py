"""Launches of kernels that may be forks, and what there is of their templates, for tests."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

from .driver import REMOTE, Bridge, lives, until

ARGV = [
    sys.executable,
    str(REMOTE / "launch_ipykernel.py"),
    "--kernel-id",
    "{kernel_id}",
    "--response-address",
    "{response_address}",
]
WAITS = ("7", "47", "73", "212")
"""Numbers of poll and recvmsg: x86, ARM."""
NO_TEMPLATE = "there is no process yet that could fork it"


class Launches:
    """Launches real kernels with one set of parameters, each under an id of its own."""

    def __init__(self, bridge: Bridge, **parameters: Any) -> None:
        self.bridge, self.parameters, self.number = bridge, parameters, 0

    def __call__(self, **more: Any) -> dict[str, Any]:
        self.number += 1
        values = {"prefork": True, **self.parameters, **more}
        argv = values.pop("argv", ARGV)
        kernel_id = values.pop("kernel_id", f"k{id(self):x}-{self.number}")
        return dict(self.bridge.launch(argv, kernel_id, **values), kernel_id=kernel_id)

    def why(self, **more: Any) -> str:
        """Why a launch was cold; "" for a fork."""
        told = self(**more)["prefork"]
        assert told["used"] == (not told["why"])
        return str(told["why"])

    def end(self, reply: dict[str, Any]) -> dict[str, Any]:
        return self.bridge.request("end", kernel_id=reply["kernel_id"], generation=1, grace=0)


def templates(bridge: Bridge) -> list[int]:
    """Pids of the listener's templates."""
    return [pid for pid in forkers(bridge) if not is_spare(pid)]


def spares(bridge: Bridge) -> list[int]:
    """Pids of the forks that wait for an order."""
    return [pid for pid in forkers(bridge) if is_spare(pid)]


def forkers(bridge: Bridge) -> list[int]:
    listener = bridge.welcome["pid"]
    children = Path(f"/proc/{listener}/task/{listener}/children").read_text().split()
    return [int(pid) for pid in children if lives(int(pid)) and "prefork_template" in command(int(pid))]


def is_spare(pid: int) -> bool:
    """Whether it was forked: templates lead sessions of their own."""
    with contextlib.suppress(OSError):
        return os.getsid(pid) != pid
    return False


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return ""


def kernels(kernel_id: str) -> list[int]:
    """Processes whose command line says that they are this kernel."""
    return [
        int(p.name)
        for p in Path("/proc").glob("[0-9]*")
        if kernel_id in command(int(p.name)) and lives(int(p.name))
    ]


def template_is_ready(bridge: Bridge) -> int:
    """The pid of the last template, once it waits for orders."""

    def waiting() -> int:
        for pid in reversed(templates(bridge)):
            with contextlib.suppress(OSError):
                name, place = (Path(f"/proc/{pid}/{file}").read_text() for file in ("comm", "wchan"))
                call = Path(f"/proc/{pid}/syscall").read_text().split()[0] if os.getuid() == 0 else ""
                if name.strip() == "dp-prefork" and (call in WAITS or re.search("poll|recv|unix", place)):
                    return pid
        return 0

    pid: int = until(waiting, 30)
    return pid


def listener_log(home: Path) -> str:
    return "".join(path.read_text() for path in home.rglob("listener.log"))


@contextlib.contextmanager
def connected(reply: dict[str, Any]) -> Iterator[BlockingKernelClient]:
    client = BlockingKernelClient()
    info: Any = {f"{channel}_port": port for channel, port in reply["ports"].items()}
    info.update((name, reply[name]) for name in ("ip", "transport", "key", "signature_scheme"))
    client.load_connection_info(info)
    client.start_channels()
    try:
        client.wait_for_ready(timeout=20)
        yield client
    finally:
        client.stop_channels()


def printed(reply: dict[str, Any], code: str) -> str:
    """What a cell prints in the kernel that was launched."""
    texts: list[str] = []
    with connected(reply) as client:
        client.execute_interactive(
            code,
            timeout=30,
            output_hook=lambda m: texts.append(
                m["content"].get("text") or str(m["content"].get("evalue", ""))
            ),
        )
    return "".join(texts).strip()


def warm(launches: Launches) -> int:
    """One cold launch, and the template that comes of it."""
    assert launches.why() == NO_TEMPLATE
    return template_is_ready(launches.bridge)


NO_SPARE = """
import select
class Poll:
    def register(self, *_): pass
    def poll(self, *_): return [1]
select.poll = Poll
"""
"""Of a module that is preloaded: the template always seems to have something to read, so each kernel is forked when it is asked for."""


def spare_is_ready(bridge: Bridge) -> int:
    """The pid of the fork that waits, once there is one."""
    (pid,) = until(lambda: spares(bridge))
    return int(pid)


def write(path: Path, text: str) -> None:
    """A file that is older than any template."""
    path.write_text(text + "\n")
    os.utime(path, (time.time() - 60, time.time() - 60))
