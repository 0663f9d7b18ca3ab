"""Which pages of its template's memory a kernel soon makes its own: a spare does that while it waits, and no launch has to.

A page that a fork writes to for the first time is copied; for some 3,000 pages this is a third of a forked kernel's start. Which ones they
are is seen in a kernel that has started. Nothing in them is changed.
"""

from __future__ import annotations

import contextlib
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Tuple

    Ranges = List[Tuple[int, int]]
    """First address, and the one after the last."""

SIZE = os.sysconf("SC_PAGE_SIZE")
PRESENT, EXCLUSIVE = 1 << 63, 1 << 56
"""Bits of an entry of /proc/PID/pagemap: the page is in memory; no other process has it. From the kernel's pagemap documentation."""
POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, Linux 5.14. An older one refuses it, and nothing is gained."""
MOST = 24 << 20
"""Bytes: what is more than that is not what every kernel needs."""
LARGEST_AREA = 1 << 30
"""Bytes: a larger area of addresses is reserved for something, and takes long to look through."""


def own_pages(pid: int) -> Ranges:
    """What of this process's memory a fork of it has copies of. Empty where nobody can tell, or where it is more than `MOST`."""
    found: Ranges = []
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            areas = [line.split()[0] for line in file if " rw-p " in line and "[stack" not in line]
        with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            for area in areas:
                first, last = (int(text, 16) for text in area.split("-"))
                if last - first > LARGEST_AREA:
                    continue
                pagemap.seek(first // SIZE * 8)
                entries = pagemap.read((last - first) // SIZE * 8)
                for number, (entry,) in enumerate(struct.iter_unpack("=Q", entries)):
                    if entry & PRESENT and entry & EXCLUSIVE:
                        page = first + number * SIZE
                        if found and found[-1][1] == page:
                            found[-1] = found[-1][0], page + SIZE
                        else:
                            found.append((page, page + SIZE))
    except (OSError, ValueError, struct.error):
        return []
    return found if sum(last - first for first, last in found) <= MOST else []


def make_own(ranges: Ranges) -> None:
    """Have copies of these pages in this process now, as far as they are there and can be written to."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for first, last in ranges:
            madvise(first, last - first, POPULATE_WRITE)
