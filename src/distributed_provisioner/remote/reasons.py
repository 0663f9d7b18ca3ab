"""Why a kernel ended: its status in words, and whether it was killed for want of memory."""

from __future__ import annotations

import os
import re
import signal
import time

from server_listener import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

    from kernels import Kernel

KILLED = (None, -signal.SIGKILL, 128 + signal.SIGKILL)
"""Codes of who may have been killed for memory; 137 is how shells and other launchers pass it on."""
RECENT = 10.0
"""Seconds that may lie between a counter's growth and the exit that it explains: a large process takes a while to go."""
INITIAL_NAMESPACE = "pid:[4026531836]"
"""The kernel log names processes by the numbers that they have there."""
MAX_KERNEL_LOG = 20_000
"""Lines of the kernel log that are looked at."""


class Reasons:
    """Knows the out-of-memory counters of the kernels' cgroups, so that a growth can be told from an old one."""

    def __init__(self, cgroups: str, kernel_log: str) -> None:
        self.cgroups, self.kernel_log = cgroups, kernel_log
        self.counts: dict[str, int] = {}
        self.grown: dict[str, float] = {}

    def counters(self, pid: int) -> dict[str, int]:
        """{file: kills so far} of a process's memory cgroup and those above it; of the whole host where it is in none."""
        found = {}
        for path in memory_files(pid, self.cgroups):
            count = oom_kills(path)
            if count is not None:
                found[path] = count
        if not found:
            count = oom_kills("/proc/vmstat")
            found = {} if count is None else {"/proc/vmstat": count}
        for path, count in found.items():
            self.counts.setdefault(path, count)
        return found

    def observe(self) -> None:
        """Notice which counters have grown; called now and then, so that a kill of long ago explains no later exit."""
        for path, before in self.counts.items():
            count = oom_kills(path)
            if count is not None and count > before:
                self.counts[path], self.grown[path] = count, time.monotonic()

    def explain(self, kernel: Kernel, code: int | None) -> tuple[str, str]:
        """(reason, words that follow "the kernel was") for the end of a kernel. A memory kill needs a word of the system's for it."""
        self.observe()
        reason, words = describe_exit(code)
        if code in KILLED and not kernel.asked and not kernel.reason:
            why = self.in_kernel_log(kernel) or self.in_cgroup(kernel) or in_own_log(kernel)
            if why:
                return "oom", f"killed for want of memory: {why}"
        return reason, words

    def in_cgroup(self, kernel: Kernel) -> str:
        for path, before in kernel.oom_kills.items():
            grown = self.grown.get(path)
            if path not in self.counts:  # this listener was not there at the launch
                count = oom_kills(path)
                if count is not None and count > before:
                    return where(path)
            elif grown is not None and time.monotonic() - grown < RECENT:
                return where(path)
        return ""

    def in_kernel_log(self, kernel: Kernel) -> str:
        """The kernel log's line for one of the kernel's processes, if this user may read it."""
        if read_link("/proc/self/ns/pid") != INITIAL_NAMESPACE:
            return ""
        pids = {kernel.pid, kernel.kernel_pid}
        begun = (kernel.start or 0) / os.sysconf("SC_CLK_TCK") - 1
        for seconds, line in self.lines():
            found = re.search(r"out of memory: killed process (\d+)(.*)", line, re.IGNORECASE)
            if found and int(found.group(1)) in pids and seconds >= begun:
                resident = re.search(r"anon-rss:(\d+)kB", found.group(2))
                size = f" of {int(resident.group(1)) >> 10} MB" if resident else ""
                whole = "the host's" if line.startswith("Out") else "the cgroup's"
                return f"{whole} memory was used up, and the system chose process {found.group(1)}{size}"
        return ""

    def lines(self) -> Iterator[tuple[float, str]]:
        """(seconds since boot, text) of the kernel log."""
        try:
            handle = os.open(self.kernel_log, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return
        try:
            for _ in range(MAX_KERNEL_LOG):
                try:
                    record = os.read(handle, 8192).decode("utf-8", "replace")  # one record a call
                except BrokenPipeError:
                    continue  # it was overwritten while we read
                except OSError:
                    return  # that was all
                if not record:
                    return
                head, _, text = record.partition(";")
                fields = head.split(",")
                if len(fields) > 2 and fields[2].isdigit():
                    yield int(fields[2]) / 1e6, text.partition("\n")[0]
        finally:
            os.close(handle)


def describe_exit(code: int | None) -> tuple[str, str]:
    """(reason, words) for a return code as subprocess has it."""
    if code is None:
        return "unknown", "ended, and nobody saw how"
    if code >= 0:
        return "exited", f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return "signal", f"killed by {name}"


def memory_files(pid: int, root: str) -> Iterator[str]:
    """Files with out-of-memory counters, from a process's cgroup upwards; those of version 2 first."""
    for line in sorted(read_text(f"/proc/{pid}/cgroup").splitlines()):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            bases, name = [root, os.path.join(root, "unified")], "memory.events"
        elif "memory" in controllers.split(","):
            bases, name = [os.path.join(root, "memory")], "memory.oom_control"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for base in bases:
            for depth in range(len(parts), -1, -1):
                yield os.path.join(base, *parts[:depth], name)


def oom_kills(path: str) -> int | None:
    """The counter in such a file; None where there is none."""
    found = re.search(r"^oom_kill (\d+)$", read_text(path), re.MULTILINE)
    return int(found.group(1)) if found else None


def where(path: str) -> str:
    """Words for the limit that was hit."""
    directory = os.path.dirname(path)
    if directory == "/proc":
        return "the host counted such a kill at that time"
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = read_text(os.path.join(directory, name)).strip()
        if text.isdigit() and int(text) < 1 << 60:
            return f"the limit of its cgroup is {int(text) >> 20} MB"
    return "its cgroup ran out of it"


def in_own_log(kernel: Kernel) -> str:
    """What batch systems and other launchers say themselves at the end of the kernel's log."""
    for line in kernel.log_tail().splitlines()[-5:]:
        if re.search(r"out of memory|killed process \d|oom[-_]kill", line, re.IGNORECASE):
            return f"its log says '{line.strip()[:200]}'"
    return ""


def read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
