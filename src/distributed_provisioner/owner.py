"""Who this server is over its restarts, and which process of it this is: the names under which hosts keep its kernels.

An owner is a user, a machine and, for an application that has them, its root and configuration directories: two servers of one user
have kernels of their own. A client is one process of an owner. Whoever comes after it can tell on the same machine whether it lives.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import subprocess
import time
from contextlib import suppress
from typing import Literal

from .own_user import own_name

Presence = Literal["alive", "connected", "gone"]
"""What is known of a client: its process is there; hosts have a connection of it, and nobody here can tell more; neither."""

_application: list[str] = []


def name_application(root_dir: str, config_dir: str) -> None:
    """Say where the application of this process works and is configured. The first one names the process; scripts have no such name."""
    if not _application:
        _application.extend((os.path.realpath(root_dir), os.path.realpath(config_dir)))


def owner() -> str:
    """`user@machine:digest`; the digest is empty for a process whose application has no name, and such kernels are nobody's to adopt."""
    digest = _digest("\0".join(_application))[:16] if _application else ""
    return f"{own_name()}@{_machine()}:{digest}"


def new_client() -> str:
    """`hex:pid:start` of this process. The hex names the boot, the pid namespace and, by chance, the process itself."""
    pid = os.getpid()
    return f"{_boot()}{_namespace()}{secrets.token_hex(8)}:{pid}:{_start_time(pid) or 0}"


def presence(client: str, connected: bool) -> Presence:
    """Whether the process of a client is there.

    A client of another container or another boot cannot be looked up; one that its host has no connection of is gone.

    Args:
        connected: whether the host has a connection of it.
    """
    name, _, rest = client.partition(":")
    pid, _, start = rest.partition(":")
    if name[:16] == f"{_boot()}{_namespace()}" and pid.isdigit() and start.isdigit():
        return "alive" if str(_start_time(int(pid)) or 0) == start != "0" else "gone"
    return "connected" if connected else "gone"


def _machine() -> str:
    """The machine's name, and a digest of its id, which is not to be told (machine-id(5))."""
    machine_id = _read("/etc/machine-id") or _read("/var/lib/dbus/machine-id")
    return f"{socket.gethostname()}.{_digest(machine_id)[:8]}"


def _boot() -> str:
    return _digest(_read("/proc/sys/kernel/random/boot_id"))[:8]


def _namespace() -> str:
    try:
        return _digest(os.readlink("/proc/self/ns/pid"))[:8]
    except OSError:
        return _digest("")[:8]


def _start_time(pid: int) -> int | None:
    """When a process began, in whatever unit the system has; None where there is none, or only a zombie."""
    if os.path.isdir("/proc/self"):
        fields = _read(f"/proc/{pid}/stat").rpartition(") ")[2].split()
        return int(fields[19]) if fields and fields[0] not in "ZX" else None
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    with suppress(OSError, ValueError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False, env={"LC_ALL": "C"}
        )
        state, _, begun = done.stdout.strip().partition(" ")
        if state and not state.startswith("Z"):
            return int(time.mktime(time.strptime(begun.strip(), "%a %b %d %H:%M:%S %Y")))
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _digest(text: str) -> str:
    return hashlib.sha256(f"distributed-provisioner\0{text}".encode()).hexdigest()
