"""What kernels and their host use of memory and processors, where /proc tells."""

from __future__ import annotations

import asyncio
import os
import re

from processes import members, read_table
from server_listener import read_text, stat_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Sequence

    from kernels import Kernel

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


async def kernels_usage(kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """For each kernel what its whole process tree uses; None where nobody can tell. Others get their turn between."""
    table = read_table() if kernels else {}
    found: list[dict[str, Any]] = []
    for kernel in kernels:
        await asyncio.sleep(0)
        if not table:
            found.append({"memory_bytes": None, "cpu_seconds": None, "processes": None})
            continue
        pids = members(kernel.pid, kernel.start, kernel.pgid, (), table) if kernel.pid else {}
        memory, seconds = 0, 0.0
        for pid in pids:
            fields = stat_fields(pid)
            if fields is not None:  # else it has ended meanwhile
                # Its own time, and that of the children that it has waited for.
                seconds += sum(int(field) for field in fields[11:15]) / TICKS
                memory += memory_of(pid, int(fields[21]) * PAGE)
                await asyncio.sleep(0)  # the kernel walks a large process's pages for this
        found.append({"memory_bytes": memory, "cpu_seconds": round(seconds, 2), "processes": len(pids)})
    return found


def memory_of(pid: int, resident: int) -> int:
    """Bytes: the process's share of what it has in memory (PSS) where that is readable, else all of it (RSS)."""
    share = re.search(r"^Pss:\s+(\d+) kB", read_text(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
    return int(share.group(1)) << 10 if share else resident


def host_usage() -> dict[str, Any]:
    """Load, cores and memory (bytes) of the host."""
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB", read_text("/proc/meminfo"), re.MULTILINE))
    total, available = (
        int(values[name]) << 10 if name in values else None for name in ("MemTotal", "MemAvailable")
    )
    try:
        load = [round(value, 2) for value in os.getloadavg()]
    except OSError:
        load = []
    return {"load": load, "cores": cores(), "memory_total": total, "memory_available": available}


def cores() -> int:
    """Processors that this user's processes may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
