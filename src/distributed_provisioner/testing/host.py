"""One host of a cluster: what a test may look at there, and what it may do to it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distributed_provisioner.testing.errors import ClusterError, Unsupported
from distributed_provisioner.testing.keys import new_key
from distributed_provisioner.testing.plan import HOST_KEY, SSHD_CONFIG, SSHD_LOG, HostPlan, User
from distributed_provisioner.testing.processes import HostProcess, namespace_processes
from distributed_provisioner.testing.sshd import sshd_config

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_LISTENS_ON_22 = {"tcp": f":0016 {'0' * 8}:0000 0A", "tcp6": f":0016 {'0' * 32}:0000 0A"}


class Host:
    """A host: `address` and `address6`, `port` of sshd, `host_key` in OpenSSH's public format."""

    port = 22

    def __init__(self, cluster: Cluster, plan: HostPlan, users: list[User], sshd: str, host_key: str) -> None:
        self.name, self.address, self.address6 = plan.name, plan.address, plan.address6
        self.host_key = host_key
        self._cluster, self._sshd = cluster, sshd
        self._users = {user.name: user for user in users}
        self._options: dict[str, str] = {}
        self._pid: int | None = None

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.address} {f'pid={self._pid}' if self._pid else 'off'}>"

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The pid of the host's first process, as this machine counts; ClusterError when it is off."""
        if self._pid is None:
            raise ClusterError(f"{self.name} is off")
        return self._pid

    @property
    def is_on(self) -> bool:
        """Whether the host has power."""
        return self._pid is not None

    def path(self, path: str) -> Path:
        """Where a file of the host can be opened from here (links to absolute paths are not followed right)."""
        return Path(f"/proc/{self.pid}/root", path.lstrip("/"))

    def run(
        self,
        *argv: str,
        user: str | None = None,
        input: bytes | None = None,
        check: bool = True,
        timeout: float = 30,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host, not over ssh: in the home of `user`, who is the cluster's user if not given.

        `env` is added to a login's bare environment. The command and its children are ended after `timeout` seconds.
        """
        account = self._account(user)
        environment = {
            "PATH": _PATH, "HOME": account.home, "USER": account.name, "LOGNAME": account.name,
            "SHELL": "/bin/sh", "LANG": "C.UTF-8", **(env or {}),
        }  # fmt: skip
        command = [*self._enter(account), "env", "-C", account.home, *argv]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
        ) as process:
            try:
                out, err = process.communicate(input or b"", timeout)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        done = subprocess.CompletedProcess(list(argv), process.returncode, *map(_decode, (out, err)))
        if check and done.returncode:
            raise ClusterError(
                f"{self.name}: {argv} ended with {done.returncode}: {done.stderr or done.stdout}"
            )
        return done

    def processes(self, user: str | None = None) -> list[HostProcess]:
        """The host's processes (of `user`), without its first process and sshd."""
        return [
            process
            for process in self._all_processes()
            if process.pid != 1 and not process.is_sshd and user in (None, process.user)
        ]

    def files(self, *directories: str) -> set[str]:
        """Everything but directories below `directories`: /tmp, /run, /dev/shm, /var/tmp and homes if none is given."""
        homes = [user.home for user in self._users.values() if user.uid or self._cluster.rootless]
        found: set[str] = set()
        for directory in directories or ("/tmp", "/run", "/dev/shm", "/var/tmp", *homes):
            root = str(self.path("/"))
            for base, folders, names in os.walk(self.path(directory)):
                links = [name for name in folders if os.path.islink(os.path.join(base, name))]
                found.update(os.path.join(base, name)[len(root) :] for name in [*names, *links])
        return {path if path.startswith("/") else f"/{path}" for path in found}

    def sshd_log(self) -> str:
        """What sshd wrote, at LogLevel VERBOSE, since the host was made."""
        return self.path(SSHD_LOG).read_text()

    # -- faults of the network -------------------------------------------------------------------------------

    def cut(self) -> None:
        """Pull the cable out: no carrier, no frames."""
        self._cluster.request("cut", self.name)

    def blackhole(self) -> None:
        """Lose every frame and keep the carrier; nobody is told that the host cannot be reached."""
        self._cluster.request("blackhole", self.name)

    def heal(self) -> None:
        """End `cut` and `blackhole`."""
        self._cluster.request("heal", self.name)

    def delay(self, milliseconds: float) -> None:
        """Add to every round trip; 0 ends it. Connections live on."""
        self._cluster.request("delay", self.name, milliseconds=milliseconds)

    # -- faults of the machine -------------------------------------------------------------------------------

    def power_off(self) -> None:
        """No more power: silence on the network, then every process is gone at once."""
        self._cluster.request("power_off", self.name)
        self._pid = None

    def boot(self) -> None:
        """Power again: the same disk, a new first process, an empty /tmp and /run."""
        if self._pid is not None:
            raise ClusterError(f"{self.name} is on")
        self.booted(self._cluster.request("boot", self.name)["pids"][self.name])

    def fill_disk(self, path: str = "/tmp") -> None:
        """Leave no free space where `path` lies: /tmp, /run, /dev/shm, or the disk that holds all other files."""
        self._resize(path, True)

    def free_disk(self, path: str = "/tmp") -> None:
        """End `fill_disk`."""
        self._resize(path, False)

    def _resize(self, path: str, full: bool) -> None:
        mounts = [top for top in ("/tmp", "/run", "/dev/shm") if path == top or path.startswith(f"{top}/")]
        self._cluster.request("resize", self.name, mount=mounts[0] if mounts else "", full=full)

    # -- faults of sshd ---------------------------------------------------------------------------------------

    def kill_sshd(self, *, sessions: bool = True) -> None:
        """SIGKILL to sshd, and to the sshd of each connection unless `sessions` is false; returns when nothing listens any more."""
        self._signal_sshd(signal.SIGKILL, sessions)
        self._wait_for_silence()

    def pause_sshd(self, *, sessions: bool = True) -> None:
        """SIGSTOP: connections are accepted by the kernel, and nobody answers."""
        self._signal_sshd(signal.SIGSTOP, sessions)

    def resume_sshd(self) -> None:
        """SIGCONT."""
        self._signal_sshd(signal.SIGCONT, True)

    def start_sshd(self) -> None:
        """Start sshd, unless it runs; returns when it listens."""
        if self._listens():
            return
        self.run(self._sshd, "-f", SSHD_CONFIG, "-E", SSHD_LOG, user=self._administrator)
        self._wait(self._listens, "sshd does not listen; see sshd_log()")

    def configure_sshd(self, **options: str | None) -> None:
        """Set options of sshd_config(5), None for sshd's own default again; restarts the sshd that listens.

        Connections that exist stay as they are.
        """
        for name, value in options.items():
            self._options.pop(name, None)
            if value is not None:
                self._options[name] = value
        self.path(SSHD_CONFIG).write_text(sshd_config(self._options))
        self._restart_sshd()

    def new_host_key(self) -> str:
        """Change the host's key, and not the client's known_hosts; returns the new public key."""
        private, self.host_key = new_key()
        self.path(HOST_KEY).write_text(private)
        self._restart_sshd()
        return self.host_key

    def set_password(self, user: str, password: str) -> None:
        """Give `user` a password; sshd asks for it after `configure_sshd(PasswordAuthentication="yes")`."""
        name = self._account(user).name
        shadow = self.path("/etc/shadow")
        lines = [line for line in shadow.read_text().splitlines() if not line.startswith(f"{name}:")]
        shadow.write_text("\n".join([*lines, f"{name}:{_crypt(password)}:19000:0:99999:7:::"]) + "\n")

    # -- below --------------------------------------------------------------------------------------------------

    def booted(self, pid: int) -> None:
        """The cluster says: this host is up."""
        self._pid = pid

    def stopped(self) -> None:
        """The cluster says: this host is gone."""
        self._pid = None

    @property
    def _administrator(self) -> str:
        return self._cluster.user if self._cluster.rootless else "root"

    def _account(self, user: str | None) -> User:
        name = user or self._cluster.user
        if name not in self._users:
            raise Unsupported(f"{self.name} has no user {name}: it has {', '.join(self._users)}")
        return self._users[name]

    def _enter(self, account: User) -> list[str]:
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]
        who = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all"]
        if account.uid and not self._cluster.rootless:
            who += [f"--reuid={account.uid}", f"--regid={account.gid}", "--init-groups"]
        return ["nsenter", f"--target={self.pid}", *namespaces, "--", *who, "--"]

    def _all_processes(self) -> list[HostProcess]:
        return list(namespace_processes(self.pid, {user.uid: user.name for user in self._users.values()}))

    def _signal_sshd(self, number: signal.Signals, sessions: bool) -> None:
        for process in self._all_processes():
            if process.is_sshd_listener or (sessions and process.is_sshd):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.outer_pid, number)

    def _restart_sshd(self) -> None:
        if self._listens():
            self._signal_sshd(signal.SIGTERM, False)
            self._wait_for_silence()
            self.start_sshd()

    def _wait_for_silence(self) -> None:
        # Both families: an sshd that is started while one of the sockets is still there does without it.
        self._wait(lambda: not any(map(self._listens, _LISTENS_ON_22)), "sshd does not end")

    def _listens(self, family: str = "tcp") -> bool:
        try:
            return _LISTENS_ON_22[family] in Path(f"/proc/{self.pid}/net/{family}").read_text()
        except FileNotFoundError:  # a machine without IPv6
            return False

    def _wait(self, condition: Callable[[], bool], otherwise: str, seconds: float = 10) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise ClusterError(f"{self.name}: {otherwise}")
            time.sleep(0.005)


def _decode(text: bytes) -> str:
    return text.decode(errors="surrogateescape")


def _crypt(password: str) -> str:
    """The password as /etc/shadow has it; from the library that sshd itself uses."""
    for name in ("libcrypt.so.1", "libcrypt.so.2"):
        with contextlib.suppress(OSError):
            crypt = ctypes.CDLL(name).crypt
            crypt.restype = ctypes.c_char_p
            hashed: bytes = crypt(password.encode(), b"$6$distributed$")
            return hashed.decode()
    raise Unsupported("libcrypt is not installed")
