"""Processes of this user: who belongs to a kernel, signals."""

from __future__ import annotations

import contextlib
import gc
import os
import re

from server_listener import read_text, stat_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, Tuple

    Table = Dict[int, Tuple[int, int, int, int]]
    """pid -> (parent, group, session, start time)"""


def read_table() -> Table:
    """All living processes of the host, as far as they can be seen; empty where there is no /proc."""
    table = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        fields = stat_fields(name) if name.isdigit() else None
        if fields and fields[0] not in "ZX":
            table[int(name)] = (int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
    return table


def members(
    pid: int, start: int | None, pgid: int, known: Iterable[tuple[int, int]] = (), table: Table | None = None
) -> dict[int, int]:
    """{pid: start time} of the living processes of a kernel: its group, its session, its descent, and those of `known` that still live."""
    table = read_table() if table is None else table
    found = {p for p, started in known if p in table and table[p][3] == started}
    if pid not in table or table[pid][3] == start:  # else the number is somebody else's by now
        found |= {p for p, (_, group, session, _) in table.items() if pgid in (group, session) or p == pid}
    while True:
        more = {p for p, (parent, _, _, _) in table.items() if parent in found} - found
        if not more:
            return {p: table[p][3] for p in found}
        found |= more


def in_group(pid: int, pgid: int) -> bool:
    try:
        return os.getpgid(pid) == pgid
    except OSError:
        return False


def kill_all(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def kill_group(pgid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a group of zombies
        os.killpg(pgid, number)


def become_subreaper() -> None:
    """Have processes that lose their parent come to us, so that a kernel's exit is seen however it was started (Linux)."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def release_memory() -> None:
    """Give freed memory back to the system, where the C library has a call for it (glibc)."""
    gc.collect()
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


def ended_at_logout() -> bool:
    """Whether this host's login manager ends a user's processes with the last login (logind's KillUserProcesses)."""
    if "/session-" not in read_text("/proc/self/cgroup"):
        return False
    texts = [read_text("/etc/systemd/logind.conf")]
    drop_ins = "/etc/systemd/logind.conf.d"
    if os.path.isdir(drop_ins):
        texts += [read_text(os.path.join(drop_ins, name)) for name in sorted(os.listdir(drop_ins))]
    found = re.findall(r"^\s*KillUserProcesses\s*=\s*(\S+)", "\n".join(texts), re.MULTILINE)
    return bool(found) and found[-1].lower() in ("yes", "true", "1", "on")
