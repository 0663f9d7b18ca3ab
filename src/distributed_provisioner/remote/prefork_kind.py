"""Which kernels a fork may stand in for, and what two of them must have in common to come from one template (see prefork.py)."""

from __future__ import annotations

import os
import re
import sys

from server_listener import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping, Tuple

    Key = Tuple[Any, ...]

LAUNCHER = "launch_ipykernel.py"
CAN_BE_FORKED = "\ndef import_early("
"""In the text of a launcher that a template can load."""
FIXED = re.compile(
    r"(PYTHON|LD_|OMP_|GOMP_|KMP_|MKL_|OPENBLAS_|GOTO_|BLIS_|VECLIB_|NUMEXPR_|RAYON_|TBB_|CUDA_|NVIDIA_|HIP_|HSA_|ROCR_|XLA_|TF_|TORCH_"
    r"|PYTORCH_|NCCL_|DNNL_|ONEDNN_|ARROW_|POLARS_|HDF5_|GDAL_|PROJ_|OPENSSL_|SSL_|MALLOC_|TCMALLOC_|MIMALLOC_|GLIBC_|[A-Z]+SAN_OPTIONS"
    r"|LC_|LANG|CONDA_).*|LOCPATH|GCONV_PATH|TZ|TZDIR|HOME|VIRTUAL_ENV"
)
"""Variables that interpreters and C libraries read by themselves, when nobody sees it."""
OF_A_LAUNCH = re.compile(r"(KERNEL|JPY)_.*")
"""Variables that differ from launch to launch: a template has none of them."""
LARGEST, LARGEST_ITEM = 1 << 20, 128 << 10
"""Bytes of argv and environment, and of one item, that any exec takes: a fork would take more, and the kernel could start nothing."""
SPARE_MEMORY, SPARE_PART = 256 << 20, 0.05
"""Memory that must be available: bytes, and part of all."""
LASTING = (
    "Uid",
    "Gid",
    "Groups",
    "Umask",
    "CapEff",
    "CapBnd",
    "NoNewPrivs",
    "Seccomp",
    "Cpus_allowed",
    "Mems_allowed",
)
"""Lines of /proc/PID/status that a fork cannot change, or not back."""


class Unfit(Exception):
    """This launch is a cold one; the text says why. `expected`: nobody need be told."""

    def __init__(self, why: str, expected: bool = False) -> None:
        super().__init__(why)
        self.expected = expected


class Kind:
    """What a launch needs of a template. `key` is the same for launches that one template may serve.

    Raises Unfit where no template can give what the launch asks for.
    """

    def __init__(
        self, request: dict[str, Any], argv: list[str], environment: Mapping[str, str], umask: int
    ) -> None:
        check(request, argv, environment)
        launcher = os.path.abspath(argv[1])
        text = read_text(launcher)
        if CAN_BE_FORKED not in text:
            raise Unfit(f"{launcher} is of a version, or of a kind, that cannot be forked")
        self.preload = tuple(map(str, request.get("preload") or ()))
        self.order = {
            "launcher": launcher,
            "kernel_class": option(argv, "kernel-class-name") or "ipykernel.ipkernel.IPythonKernel",
            "preload": self.preload,
        }
        self.interpreter, self.umask = argv[0], umask
        self.length = len("\0".join(argv))
        self.attempts = 0
        self.launch_environment = environment
        asked = request.get("request_env") or {}
        self.environment = {
            name: value
            for name, value in environment.items()
            if FIXED.fullmatch(name) or not (name in asked or OF_A_LAUNCH.fullmatch(name))
        }
        """Of the template: nothing that one launch alone has brought, which the next kernel's `ps` would show."""
        fixed = tuple(sorted(item for item in environment.items() if FIXED.fullmatch(item[0])))
        beside = os.path.join(os.path.dirname(launcher), "server_listener.py")
        self.key: Key = (argv[0], text, read_text(beside), *self.order.values(), fixed)

    def differs(self, read: set[str], environment: Mapping[str, str]) -> str:
        """The first variable that a template has read, in its `environment`, as this launch would not have it; or ""."""
        for name in sorted(read):
            if self.launch_environment.get(name) != environment.get(name):
                return name
        return ""


def check(request: dict[str, Any], argv: list[str], environment: Mapping[str, str]) -> None:
    """Raises Unfit for what no fork can be."""
    if not request.get("prefork"):
        raise Unfit("it is switched off", expected=True)
    if len(argv) < 2 or os.path.basename(argv[1]) != LAUNCHER:
        raise Unfit(f"its argv is not an interpreter followed by {LAUNCHER}", expected=True)
    if not sys.platform.startswith("linux") or not hasattr(os, "memfd_create"):
        raise Unfit("forking Python kernels is for Linux", expected=True)
    if not option(argv, "response-address"):
        raise Unfit("its argv has no --response-address")
    if option(argv, "spark-context-initialization-mode") not in ("", "none"):
        raise Unfit("it makes a Spark session when it starts")
    places = environment.get("PYTHONPATH", "")
    if places and not all(map(os.path.isabs, places.split(":"))):
        raise Unfit("its PYTHONPATH has entries that are relative to its working directory")
    items = [len(os.fsencode(item)) for item in argv]
    items += [len(os.fsencode(name + value)) + 2 for name, value in environment.items()]
    if sum(items) > LARGEST or max(items) >= LARGEST_ITEM:
        raise Unfit("its environment or argv is too large to be given to programs that it starts")


def option(argv: list[str], name: str) -> str:
    """The value of an option of the launcher, in either spelling; the last one counts."""
    found = ""
    for spelling in (f"--{name}", f"--RemoteProcessProxy.{name}"):
        for place, item in enumerate(argv):
            if item == spelling and place + 1 < len(argv):
                found = argv[place + 1]
            elif item.startswith(spelling + "="):
                found = item.partition("=")[2]
    return found


def situation(pid: int | str, umask: int | None = None) -> dict[str, str]:
    """What a process hands on to its forks and they cannot change: limits, groups, cgroup, umask, …; `umask` stands in for its own."""
    lines = dict(
        line.split(":\t", 1) for line in read_text(f"/proc/{pid}/status").splitlines() if ":\t" in line
    )
    found = {name: lines.get(name, "").strip() for name in LASTING}
    if umask is not None:
        found["Umask"] = f"{umask:04o}"
    for name in ("limits", "cgroup", "oom_score_adj"):
        found[name] = read_text(f"/proc/{pid}/{name}")
    number = 0 if pid == "self" else int(pid)
    try:
        found["nice"] = str(os.getpriority(os.PRIO_PROCESS, number))
        found["scheduler"] = str(os.sched_getscheduler(number))
    except OSError:
        found["nice"] = ""
    return found


def memory_is_short() -> bool:
    """Whether the host, or the cgroup that the kernels are in, has little left; False where nobody can tell."""
    found = dict(
        re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", read_text("/proc/meminfo"), re.MULTILINE)
    )
    pairs = []
    if len(found) == 2:
        pairs.append((int(found["MemTotal"]) << 10, int(found["MemAvailable"]) << 10))
    pairs += [(limit, limit - used) for limit, used in memory_limits()]
    return any(available < max(SPARE_MEMORY, SPARE_PART * total) for total, available in pairs)


def memory_limits(cgroups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot simply be dropped) of the cgroups that this process is in, from the innermost outwards."""
    found = []
    for line in read_text(cgroups).splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            top, limit_name, usage_name, cache_name = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in names.split(","):
            top, limit_name, usage_name = f"{root}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache_name = "total_inactive_file"
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            place = os.path.join(top, *parts[:depth])
            limit, used = (read_text(f"{place}/{name}").strip() for name in (limit_name, usage_name))
            if (
                not limit.isdigit() or not used.isdigit() or int(limit) >= 1 << 60
            ):  # "max", or version 1's word for it
                continue
            dropped = re.search(rf"^{cache_name} (\d+)$", read_text(f"{place}/memory.stat"), re.MULTILINE)
            found.append((int(limit), int(used) - (int(dropped.group(1)) if dropped else 0)))
    return found
