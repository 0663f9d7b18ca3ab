"""Processes of a pid namespace, read from outside, so that nobody has to run a program inside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostProcess:
    """A process on a host: `pid` and `ppid` as the host counts, `outer_pid` as the test's machine does."""

    pid: int
    ppid: int
    user: str
    args: list[str]
    state: str
    outer_pid: int

    @property
    def command(self) -> str:
        """The whole command line as one string, to search in."""
        return " ".join(self.args)

    @property
    def is_sshd(self) -> bool:
        """Whether this is sshd: the one that listens, or one of a connection."""
        return bool(self.args) and os.path.basename(self.args[0].split(":")[0].split()[0]).startswith("sshd")

    @property
    def is_sshd_listener(self) -> bool:
        """Whether this is the sshd that accepts connections."""
        return self.is_sshd and ("[listener]" in self.command or not self.args[0].startswith("sshd"))


def namespace_processes(init: int, names: dict[int, str]) -> Iterator[HostProcess]:
    """All processes in the pid namespace whose first process is `init`; `names` are the users."""
    namespace = os.readlink(f"/proc/{init}/ns/pid")
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                    yield read_process(Path("/proc", entry), names)
            except (OSError, ValueError, IndexError):  # it has just ended
                continue


def read_process(path: Path, names: dict[int, str]) -> HostProcess:
    """What /proc tells of one process; `names` are the users."""
    status = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines() if ":" in line)
    outer_parent = int(status["PPid"])
    return HostProcess(
        pid=int(status["NSpid"].split()[-1]),
        ppid=_inner_pid(outer_parent, len(status["NSpid"].split())),
        user=names.get(uid := int(status["Uid"].split()[0]), str(uid)),
        args=_arguments(path) or [f"[{status['Name'].strip()}]"],
        state=status["State"].split()[0],
        outer_pid=int(path.name),
    )


def _inner_pid(pid: int, depth: int) -> int:
    """The pid in the namespace `depth` levels down; 0 for a process that is not in it."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                numbers = line.split()[1:]
                return int(numbers[-1]) if len(numbers) == depth else 0
    except OSError:
        pass
    return 0


def _arguments(path: Path) -> list[str]:
    text = (path / "cmdline").read_bytes().decode(errors="surrogateescape")
    return text.rstrip("\0").split("\0") if text.strip("\0") else []
