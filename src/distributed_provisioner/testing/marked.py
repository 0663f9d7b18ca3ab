"""Processes known by a variable in their environment, however far they have wandered from their parents."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import subprocess
import time
from pathlib import Path

from distributed_provisioner.testing.processes import HostProcess, read_process

VARIABLE = "DISTRIBUTED_PROVISIONER_TEST_HOST"


def processes(marker: str) -> list[HostProcess]:
    """All of this user's processes that carry `marker`; zombies have no environment any more."""
    if os.path.exists("/proc/self/environ"):
        return [_read(pid) for pid in _pids_from_proc(marker)]
    return _processes_from_ps(marker)


def kill(marker: str, *, timeout: float = 10) -> None:
    """SIGKILL until none is left; raises TimeoutError."""
    until = time.monotonic() + timeout
    while found := processes(marker):
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.outer_pid, signal.SIGKILL)
        if time.monotonic() > until:
            raise TimeoutError(f"these do not end: {found}")
        time.sleep(0.01)


def _pids_from_proc(marker: str) -> list[int]:
    wanted = f"{VARIABLE}={marker}".encode()
    result = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # another user's, or it has just ended
            if entry.isdigit() and wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                result.append(int(entry))
    return result


def _read(pid: int) -> HostProcess:
    try:
        return read_process(Path(f"/proc/{pid}"), {os.getuid(): getpass.getuser()})
    except (OSError, KeyError, ValueError, IndexError):
        return HostProcess(pid=pid, ppid=0, user=getpass.getuser(), args=[], state="X", outer_pid=pid)


def _processes_from_ps(marker: str) -> list[HostProcess]:
    """Where there is no /proc; ps shows environments of the user's own processes."""
    listing = subprocess.run(
        ["ps", "-A", "-E", "-ww", "-o", "pid=,ppid=,stat=,command="],
        capture_output=True,
        text=True,
        check=True,
    )
    result = []
    for line in listing.stdout.splitlines():
        if f"{VARIABLE}={marker}" in line:
            pid, ppid, state, command = line.split(None, 3)
            args = command.split(f" {VARIABLE}=")[0].split()
            result.append(HostProcess(int(pid), int(ppid), getpass.getuser(), args, state[0], int(pid)))
    return result
