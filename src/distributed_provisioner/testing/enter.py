"""A place of its own for a test run: a user namespace (without root), a network and a mount namespace.

Inside, a process has the powers that `namespaces.Cluster` needs, over its own network and mounts alone. Its network
is empty but for `lo`: no test can reach the machine's network or the internet, and no two test runs see each
other. As root there is no user namespace: the user stays root, with all users.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from distributed_provisioner.testing import syscalls as sys_
from distributed_provisioner.testing.errors import Unsupported

_SWITCHES = {
    "/proc/sys/user/max_user_namespaces": ("0", "user.max_user_namespaces is 0"),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "kernel.unprivileged_userns_clone is 0"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "kernel.apparmor_restrict_unprivileged_userns is 1",
    ),
}


def enter() -> None:
    """Move this process, which must have one thread, into the namespaces; raises Unsupported with the reason."""
    flags = sys_.CLONE_NEWNET | sys_.CLONE_NEWNS
    uid, gid = os.geteuid(), os.getegid()
    try:
        sys_.unshare(flags if uid == 0 else flags | sys_.CLONE_NEWUSER)
        if uid != 0:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
            sys_.keep_capabilities()
        sys_.mount("none", "/", flags=sys_.MS_REC | sys_.MS_PRIVATE)
        sys_.loopback_up()
    except OSError as error:
        kind = "namespaces" if uid == 0 else "user namespaces"
        raise Unsupported(
            f"{kind} are not allowed here: {'; '.join([str(error), *_reasons(uid)])}"
        ) from error


def run(command: Sequence[str]) -> NoReturn:
    """Enter, and become `command`."""
    enter()
    os.execvp(command[0], list(command))


def _reasons(uid: int) -> list[str]:
    found = []
    for path, (bad, text) in _SWITCHES.items() if uid else ():
        with contextlib.suppress(OSError):
            if Path(path).read_text().strip() == bad:
                found.append(text)
    return found
