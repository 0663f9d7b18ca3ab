"""Where things of this user are on this host, and whose host it is."""

from __future__ import annotations

import hashlib
import os
import pwd
import socket
import stat
import tempfile

from server_listener import NAME, PROTOCOL, read_text, start_time


class Places:
    """Directories of this user on this host; homes may be shared between hosts, so state is kept by host identity."""

    SYSTEM, CGROUPS, KERNEL_LOG = f"/etc/{NAME}", "/sys/fs/cgroup", "/dev/kmsg"
    """What root says here to all users, and what the system says of memory."""

    def __init__(self) -> None:
        home = os.environ.get("HOME") or account_home()
        self.home = home
        self.identity, self.boot_id = host_identity()
        try:
            self._make(os.path.join(home, ".cache", NAME), os.path.join(home, ".local", "state", NAME))
        except OSError as error:
            private = os.path.join("/var/tmp", f"{NAME}-{os.getuid()}")
            try:
                self._make(os.path.join(private, "cache"), os.path.join(private, "state"))
                check_private(private)
            except OSError:
                raise SetupError(f"{error.strerror}: {error.filename}") from error

    def _make(self, cache: str, state: str) -> None:
        os.makedirs(cache, mode=0o700, exist_ok=True)
        self.cache = cache
        self.bundles = os.path.join(cache, "bundles")
        digest = hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        self.states = state
        self.state = os.path.join(state, digest)
        for directory in (self.bundles, self.state):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            check_private(directory)
        self.record = os.path.join(self.state, f"listener-{PROTOCOL}.json")
        self.lock = os.path.join(self.state, "lock")
        self.log = os.path.join(self.state, "listener.log")


def host_identity() -> tuple[str, str]:
    """(identity, boot id): changes with a reboot, and differs between containers of one machine."""
    boot = read_text("/proc/sys/kernel/random/boot_id").strip()
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = socket.gethostname()
    return f"{boot}:{start_time(1)}:{namespace}", boot


class SetupError(Exception):
    """The host cannot be used as it is; the text is for people."""


def check_private(directory: str) -> None:
    """Refuse a directory that another user owns or can enter. Raises SetupError."""
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise SetupError(f"{directory} is not a directory of {user_name()}")
    if status.st_mode & 0o077:
        os.chmod(directory, 0o700)


def account_home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a uid without an account, as containers have it
        return "/"


def user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def short_directory() -> str:
    """A new private directory on a local disk with a path short enough for Unix sockets (107 bytes; 103 on macOS)."""
    for base in ("/tmp", "/var/tmp", "/dev/shm", tempfile.gettempdir()):
        try:
            return tempfile.mkdtemp(prefix="dp-", dir=base)
        except OSError as error:
            last = error
    raise SetupError(f"no temporary directory can be written: {last}")
