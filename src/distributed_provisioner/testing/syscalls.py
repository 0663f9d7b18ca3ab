"""The few Linux system calls that Python 3.10 has no function for: unshare, setns, mount, capabilities."""

from __future__ import annotations

import ctypes
import ctypes.util
import fcntl
import os
import socket
import struct
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 1, 32, 4096, 8192, 16384, 1 << 18
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8

_PR_SET_PDEATHSIG, _PR_CAP_AMBIENT = 1, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move this process into new namespaces; for CLONE_NEWPID, its next children."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    """Join the namespace that `fd` is open on."""
    _check(_libc.setns(fd, kind), f"setns({kind:#x})")


def mount(
    source: str | Path, target: str | Path, kind: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """mount(2); an error names source, target and options."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        os.fsencode(data) if data else None,
    )
    _check(result, f"mount {kind or hex(flags)} {source} on {target} ({data or ''})")


def detach(target: str | Path) -> None:
    """Unmount, at once for all who look, later for those who still use it."""
    mnt_detach = 2
    _check(_libc.umount2(os.fsencode(target), mnt_detach), f"umount {target}")


def die_with_parent(signal: int = 9) -> None:
    """Have the kernel send `signal` to this process when the thread that forked it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def effective_capabilities() -> int:
    """The bit mask of the capabilities that this process has, in its user namespace."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def keep_capabilities() -> None:
    """Hand all capabilities on to whatever this process, not root, executes."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capget")
    words = list(struct.unpack("=6I", data.raw))  # effective, permitted, inheritable; low, then high
    words[2], words[5] = words[1], words[4]
    _check(_libc.capset(header, struct.pack("=6I", *words)), "capset")
    permitted = words[1] | words[4] << 32
    for capability in range(permitted.bit_length()):
        if permitted >> capability & 1:
            _check(_libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, capability, 0, 0), "prctl(PR_CAP_AMBIENT)")


def drop_ambient_capabilities() -> None:
    """Let what a process that is not root executes have no capabilities again."""
    _check(_libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl(PR_CAP_AMBIENT)")


def loopback_up() -> None:
    """Switch `lo` of this network namespace on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up_and_running = struct.pack("16sH14x", b"lo", 0x1 | 0x40)
        fcntl.ioctl(control, 0x8914, up_and_running)  # SIOCSIFFLAGS
