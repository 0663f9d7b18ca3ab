"""The process that keeps a cluster: `python -m distributed_provisioner.testing.keeper FD OWNER DIRECTORY`.

It holds the switch, the disks and the first process of each host, does what its owner asks for, and ends when the
owner does, however that ends; everything else ends with it. Nothing of the cluster has a name on the machine
but the owner's network interface, which vanishes with its other end.

Requests and answers are lines of JSON on the socket FD: the plan first, then `{"do": verb, "host": name, ...}`;
each is answered by `{"pid": …}` or `{"error": text}`. OWNER is a pidfd, DIRECTORY what is removed in the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from distributed_provisioner.testing import syscalls as sys_
from distributed_provisioner.testing.disk import Disk, mount_points, resize_tmpfs
from distributed_provisioner.testing.network import Switch, ip
from distributed_provisioner.testing.plan import SSHD_CONFIG, SSHD_LOG, HostPlan, Plan


class Keeper:
    """All hosts of one cluster."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.hosts = {host.name: host for host in plan.hosts}
        self.pids: dict[str, tuple[int, int]] = {}
        self._mount_points = mount_points()
        sys_.unshare(sys_.CLONE_NEWNS | sys_.CLONE_NEWNET)
        sys_.mount("none", "/", flags=sys_.MS_REC | sys_.MS_PRIVATE)
        self.switch = Switch(plan)
        disks = Path(plan.directory, "disks")
        disks.mkdir(mode=0o755)
        sys_.mount("tmpfs", disks, "tmpfs", data="mode=755")
        self.disks = {host.name: Disk(plan, host, disks / host.name) for host in plan.hosts}

    def boot(self, *names: str) -> dict[str, int]:
        """Start hosts, all at once; their first processes' pids, once sshd listens on each."""
        started = [_Booting(self, self.hosts[name]) for name in names]
        for booting in started:
            booting.wait_for("namespaces")
            self.switch.plug_in(booting.host, booting.pid)
            booting.tell("cable")
        for booting in started:
            booting.wait_for("sshd")
            self.pids[booting.host.name] = booting.pid, booting.parent
        return {booting.host.name: booting.pid for booting in started}

    def power_off(self, name: str) -> None:
        """End everything at once, as without power: the link falls silent first, so nobody is told."""
        self.switch.cut(self.hosts[name])
        _kill(*self.pids.pop(name))
        self.switch.unplug(self.hosts[name])

    def resize(self, name: str, mount: str, full: bool) -> None:
        """Fill or free a tmpfs that is mounted in a host, or without `mount` its disk."""
        if mount:
            _inside(self.pids[name][0], lambda: resize_tmpfs(Path(mount), full))
        else:
            resize_tmpfs(self.disks[name].directory, full)

    def do(self, verb: str, host: str = "", **arguments: Any) -> dict[str, Any]:
        """One request of the owner."""
        if verb == "boot":
            return {"pids": self.boot(*(arguments.get("names") or [host]))}
        if verb == "power_off":
            self.power_off(host)
        elif verb in ("cut", "heal", "blackhole", "delay"):
            getattr(self.switch, verb)(self.hosts[host], **arguments)
        elif verb == "resize":
            self.resize(host, **arguments)
        else:
            raise ValueError(verb)
        return {}

    def fork_host(self, disk: Disk, report: int, orders: int) -> tuple[int, int]:
        """Fork the first process of a host, the init of a new pid namespace: its pid, and that of its parent."""
        reader, writer = os.pipe()
        parent = os.fork()
        if parent == 0:
            _host_parent(self.plan, disk, self._mount_points, report, orders, writer)
        os.close(writer)
        with os.fdopen(reader) as told:
            pid = told.read()
        if not pid:
            os.waitpid(parent, 0)
            raise RuntimeError("no new pid namespace: see the lines above")
        return int(pid), parent

    def close(self) -> None:
        """End all hosts, and wait until they have ended."""
        for name in list(self.pids):
            _kill(*self.pids.pop(name))
        self.switch.close()
        sys_.detach(Path(self.plan.directory, "disks"))


class _Booting:
    """A host on its way up, told from its init."""

    def __init__(self, keeper: Keeper, host: HostPlan) -> None:
        self.host = host
        self._report, report = os.pipe()
        orders, self._orders = os.pipe()
        self.pid, self.parent = keeper.fork_host(keeper.disks[host.name], report, orders)
        os.close(report)
        os.close(orders)

    def wait_for(self, step: str, seconds: float = 20) -> None:
        ready, _, _ = select.select([self._report], [], [], seconds)
        said = os.read(self._report, 65536).decode() if ready else "nothing"
        if said != f"{step}\n":
            _kill(self.pid, self.parent)
            raise RuntimeError(f"{self.host.name} did not boot; instead of {step!r} it said: {said.strip()}")
        if step == "sshd":
            os.close(self._report)
            os.close(self._orders)

    def tell(self, step: str) -> None:
        os.write(self._orders, step.encode())


def _kill(init: int, parent: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(init, signal.SIGKILL)
    os.waitpid(parent, 0)  # it waits for init, which waits for all processes of its pid namespace


def _inside(init: int, action: Callable[[], None]) -> None:
    """Do something with the powers of the keeper and the files of a host."""
    pid = os.fork()
    if pid == 0:
        try:
            root = os.open(f"/proc/{init}/root", os.O_RDONLY)
            sys_.setns(os.open(f"/proc/{init}/ns/mnt", os.O_RDONLY), sys_.CLONE_NEWNS)
            os.fchdir(root)
            os.chroot(".")
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise OSError("failed inside the host; it says why above")


# -- inside a host ---------------------------------------------------------------------------------------------


def _host_parent(
    plan: Plan, disk: Disk, points: list[Path], report: int, orders: int, writer: int
) -> NoReturn:
    """Stands between keeper and init: a process without root cannot come back from a pid namespace."""
    try:
        sys_.die_with_parent()
        sys_.unshare(sys_.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            _host_init(plan, disk, points, report, orders)
        os.write(writer, str(pid).encode())
        _close_all_but(2)
        os.waitpid(pid, 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _host_init(plan: Plan, disk: Disk, points: list[Path], report: int, orders: int) -> NoReturn:
    """The first process of a host: builds it, starts sshd, and reaps orphans ever after."""
    try:
        sys_.die_with_parent()
        _close_all_but(report, orders, 1, 2)
        sys_.unshare(sys_.CLONE_NEWNS | sys_.CLONE_NEWNET | sys_.CLONE_NEWUTS | sys_.CLONE_NEWIPC)
        os.write(report, b"namespaces\n")
        socket.sethostname(disk.host.name)
        disk.mount(points)
        os.setsid()
        if os.read(orders, 64) != b"cable":
            os._exit(1)
        _set_up_network(disk.host, plan.rootless)
        _start_sshd(plan)
        os.write(report, b"sshd\n")
        os.close(report)
        os.close(orders)
        _become_quiet()
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(report, traceback.format_exc().encode())
    finally:
        os._exit(1)


def _close_all_but(*kept: int) -> None:
    low = 0
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 65536)
    os.open("/dev/null", os.O_RDWR)


def _set_up_network(host: HostPlan, rootless: bool) -> None:
    ip(
        "link set lo up",
        f"addr add {host.address}/24 dev eth0",
        *([f"addr add {host.address6}/64 dev eth0 nodad"] if host.address6 else []),
        "link set eth0 up",
    )
    if rootless:  # port 22 without any capability
        Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
        sys_.drop_ambient_capabilities()


def _start_sshd(plan: Plan) -> None:
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run([plan.sshd, "-f", SSHD_CONFIG, "-E", SSHD_LOG], env=environment, check=True)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 22)) == 0:
                return
        time.sleep(0.005)
    raise RuntimeError(f"sshd does not listen: {Path(SSHD_LOG).read_text()[-2000:]}")


def _become_quiet() -> NoReturn:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            signal.sigtimedwait({signal.SIGCHLD}, 60)


# -- the keeper's own life ---------------------------------------------------------------------------------------


def main() -> None:
    """Serve the owner until it closes the socket or ends."""
    os.umask(0o022)
    connection = socket.socket(fileno=int(sys.argv[1]))
    owner = int(sys.argv[2])
    keeper: Keeper | None = None
    lines = connection.makefile("r")
    poll = select.poll()
    poll.register(owner, select.POLLIN)
    poll.register(connection, select.POLLIN)
    try:
        while owner not in dict(poll.poll()):
            line = lines.readline()
            if not line:
                break
            try:
                if keeper is None:
                    keeper, answer = Keeper(Plan.load(line)), {}
                else:
                    request = json.loads(line)
                    answer = keeper.do(request.pop("do"), **request)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            connection.sendall(json.dumps(answer).encode() + b"\n")
    finally:
        with contextlib.ExitStack() as ending:
            # An owner that was killed cannot remove its files.
            ending.callback(shutil.rmtree, sys.argv[3], ignore_errors=True)
            if keeper is not None:
                keeper.close()


if __name__ == "__main__":
    main()
