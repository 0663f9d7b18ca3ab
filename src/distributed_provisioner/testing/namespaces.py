"""A cluster of real hosts on one Linux machine: OpenSSH, own network, files, processes and host name each.

    with Cluster(3) as cluster:
        subprocess.run([*cluster.ssh("host1"), "hostname"])
        cluster["host2"].cut()

Every host is a set of namespaces. All of them hang on one keeper process, which ends when the process that made the
cluster ends, even by SIGKILL; nothing is left then. The machine's own files, users, addresses and processes
are never changed. One thing of a cluster is seen outside: a network interface `dp77-N` in the network namespace
of the process that made it, with the address 10.77.N.1.

Root needs nothing else. Without root, run the whole test run inside a user namespace, where such things are
allowed: `python -m distributed_provisioner.testing enter -- pytest`. Hosts then have one user only, and no root.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import distributed_provisioner
from distributed_provisioner.testing import syscalls as sys_
from distributed_provisioner.testing.errors import ClusterError, Unsupported
from distributed_provisioner.testing.host import Host
from distributed_provisioner.testing.keys import client_home, make_keys, public_key, write_known_hosts
from distributed_provisioner.testing.needs import hidden_paths, needed_paths
from distributed_provisioner.testing.plan import HostPlan, Plan, User
from distributed_provisioner.testing.processes import HostProcess
from distributed_provisioner.testing.sshd import sshd_config

__all__ = ["Cluster", "Host", "HostProcess"]

_TOOLS = ("ip", "nsenter", "setpriv", "ssh", "ssh-keygen", "env")


class Cluster:
    """N hosts named host1 … hostN, reachable by ssh with the files in `home`.

    `user` is who logs in by default, `mallory` a second ordinary user where there is root. `directory` is where
    `home` is made (a new temporary directory unless given). Raises Unsupported with the exact reason where the
    machine does not allow it, ClusterError where a host does not boot.
    """

    hosts: list[Host]
    home: Path
    user: str = "jovyan"
    rootless: bool
    primary_address: str

    def __init__(self, hosts: int = 3, *, directory: Path | None = None) -> None:
        if not 1 <= hosts <= 200:
            raise ValueError(f"{hosts} hosts; a cluster has 1 to 200")
        self._count = hosts
        self._given_directory = directory
        self.hosts = []
        self.rootless = os.geteuid() != 0
        self._keeper: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def __repr__(self) -> str:
        state = "up" if self._keeper else "down"
        return f"<Cluster {state} hosts={len(self.hosts)}{' rootless' if self.rootless else ''}>"

    def start(self) -> Cluster:
        """Boot all hosts; returns when sshd listens on each."""
        sshd = _check_machine(self.rootless)
        self._directory = Path(tempfile.mkdtemp(prefix="dp-cluster-", dir=self._given_directory))
        try:
            self._start(sshd)
        except ClusterError as error:
            self.stop()
            raise _unsupported(error) or error from error
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self, sshd: str) -> None:
        subnet, lock = _reserve_subnet()
        try:
            self._start_keeper(lock)
            plan = self._plan(sshd, subnet)
            self.primary_address = plan.primary
            self.hosts = [
                Host(self, host, plan.users, sshd, public_key(self._directory, host.name))
                for host in plan.hosts
            ]
            self.home = client_home(self._directory, plan)
            self.trust_hosts()
            self._say(plan.dump())
            pids = self.request("boot", names=[host.name for host in self.hosts])["pids"]
        finally:
            lock.close()  # the keeper holds it now
        for host in self.hosts:
            host.booted(pids[host.name])

    def _plan(self, sshd: str, subnet: int) -> Plan:
        has_ipv6 = Path("/proc/self/net/if_inet6").exists()
        names = [f"host{number}" for number in range(1, self._count + 1)]
        public, privates = make_keys(self._directory, names)
        hosts = [
            HostPlan(
                name=name,
                address=f"10.77.{subnet}.{10 + number}",
                address6=f"fd77:0:0:{subnet}::{10 + number}" if has_ipv6 else "",
                mac=f"02:77:00:00:{subnet:02x}:{10 + number:02x}",
                private_key=privates[name],
            )
            for number, name in enumerate(names, 1)
        ]
        return Plan(
            owner=os.getpid(),
            rootless=self.rootless,
            sshd=sshd,
            directory=str(self._directory),
            uplink=f"dp77-{subnet}",
            primary=f"10.77.{subnet}.1",
            primary6=f"fd77:0:0:{subnet}::1" if has_ipv6 else "",
            authorized_key=public,
            users=_users(self.user, self.rootless),
            hosts=hosts,
            sshd_config=sshd_config({}),
            needed=needed_paths(self._directory),
            hidden=hidden_paths(self._directory),
        )

    def _start_keeper(self, lock: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        owner = os.pidfd_open(os.getpid())
        package = Path(distributed_provisioner.__file__).parents[1]
        try:
            self._keeper = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "distributed_provisioner.testing.keeper",
                    str(theirs.fileno()),
                    str(owner),
                    str(self._directory),
                ],
                pass_fds=(theirs.fileno(), owner, lock.fileno()),
                env={**os.environ, "PYTHONPATH": str(package)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(owner)
            theirs.close()
        self._connection = ours
        self._answers = ours.makefile("r")

    def request(self, verb: str, host: str = "", **arguments: Any) -> dict[str, Any]:
        """Have the keeper do something; for `Host`."""
        return self._say(json.dumps({"do": verb, "host": host, **arguments}))

    def _say(self, line: str) -> dict[str, Any]:
        with self._lock:
            if self._keeper is None:
                raise ClusterError("the cluster is not up")
            answer = ""
            with contextlib.suppress(ConnectionError):
                self._connection.sendall(line.encode() + b"\n")
                answer = self._answers.readline()
        if not answer:
            raise ClusterError("the cluster's keeper has ended; its last words are on standard error")
        result: dict[str, Any] = json.loads(answer)
        if "error" in result:
            raise ClusterError(result["error"])
        return result

    def stop(self) -> None:
        """Switch all hosts off and remove everything; does nothing the second time."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            self._answers.close()
            self._connection.close()
            try:
                keeper.wait(10)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()
        for host in self.hosts:
            host.stopped()
        shutil.rmtree(self._directory, ignore_errors=True)

    def trust_hosts(self) -> None:
        """Write the client's known_hosts anew, with the host keys of now."""
        keys: dict[tuple[str, ...], str] = {
            (host.name, host.address, host.address6): host.host_key for host in self.hosts
        }
        write_known_hosts(self.home, keys)

    @property
    def keeper_pid(self) -> int:
        """The process that everything hangs on."""
        if self._keeper is None:
            raise ClusterError("the cluster is not up")
        return self._keeper.pid

    def ssh(self, host: str, *options: str) -> list[str]:
        """The start of a command line of OpenSSH's client to `host` ("host1", "root@host1")."""
        return ["ssh", "-F", str(self.home / ".ssh/config"), *options, host]


def _check_machine(rootless: bool) -> str:
    """The path of sshd; raises Unsupported where no cluster can be built."""
    if sys.platform != "linux":
        raise Unsupported("network namespaces exist on Linux only")
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    missing = [tool for tool in _TOOLS if not shutil.which(tool, path=path)]
    sshd = shutil.which("sshd", path=path)
    if missing or sshd is None:
        raise Unsupported(f"not installed: {', '.join([*missing, *([] if sshd else ['sshd'])])}")
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        raise Unsupported(f"uid {os.getuid()} is not in /etc/passwd, and ssh wants it there") from None
    wanted = 1 << sys_.CAP_SYS_ADMIN | 1 << sys_.CAP_NET_ADMIN
    if sys_.effective_capabilities() & wanted != wanted:
        if rootless:
            raise Unsupported(
                "this process is not root: run it by `python -m distributed_provisioner.testing enter -- COMMAND`"
            )
        raise Unsupported(
            "root, but without CAP_SYS_ADMIN and CAP_NET_ADMIN (a container without --privileged?)"
        )
    return sshd


def _unsupported(error: ClusterError) -> Unsupported | None:
    """The error as what it is if the kernel refused something: not permitted, no such device, not supported."""
    reason = str(error).strip().splitlines()[-1]
    refusals = (errno.EPERM, errno.EACCES, errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP)
    return Unsupported(reason) if any(f"[Errno {number}]" in reason for number in refusals) else None


def _reserve_subnet() -> tuple[int, socket.socket]:
    """A number that no other cluster in this network namespace uses, and the lock on it."""
    numbers = list(range(1, 255))
    random.shuffle(numbers)
    for number in numbers:
        lock = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(
            OSError
        ):  # names of abstract sockets belong to a network namespace, as addresses do
            lock.bind(f"\0distributed-provisioner/10.77.{number}")
            return number, lock
        lock.close()
    raise Unsupported("254 clusters are up in this network namespace")


def _users(name: str, rootless: bool) -> list[User]:
    if rootless:
        return [User(name, os.geteuid(), os.getegid(), f"/home/{name}")]
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    free = iter(uid for uid in range(7701, 60000) if uid not in taken)
    ordinary = [
        User(user, uid, uid, f"/home/{user}") for user, uid in ((name, next(free)), ("mallory", next(free)))
    ]
    return [User("root", 0, 0, pwd.getpwuid(0).pw_dir), *ordinary]
