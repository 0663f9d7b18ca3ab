"""More accounts on the hosts, and rules that let the cluster's user run programs as them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from distributed_provisioner.testing.host import Host
from distributed_provisioner.testing.namespaces import Cluster
from distributed_provisioner.testing.plan import User
from distributed_provisioner.testing.processes import HostProcess

PEOPLE = (
    User("alice", 7811, 7811, "/home/dp-alice"),
    User("bob.b-1", 7812, 7812, "/home/dp-bob"),
)
ALICE, BOB = (person.name for person in PEOPLE)
SUDOERS = "/etc/sudoers.d/distributed-provisioner"
BRIDGE = "import json,os,sys,zlib"
"""What begins the command of every bridge."""


@contextmanager
def people(cluster: Cluster) -> Iterator[None]:
    """Alice and Bob on every host; nothing of them is there afterwards."""
    if cluster.rootless:
        pytest.skip("sudo and more accounts need root on the hosts")
    if shutil.which("sudo") is None:
        pytest.skip("sudo is not installed")
    before = {host.name: [host.path(file).read_text() for file in _FILES] for host in cluster.hosts}
    for host in cluster.hosts:
        for person in PEOPLE:
            _add(host, person)
    try:
        yield
    finally:
        for host in cluster.hosts:
            _remove(host, before[host.name])


_FILES = ("/etc/passwd", "/etc/group", "/etc/shadow")


def _add(host: Host, person: User) -> None:
    lines = (
        f"{person.name}:x:{person.uid}:{person.gid}::{person.home}:/bin/bash\n",
        f"{person.name}:x:{person.gid}:\n",
        f"{person.name}:*:19000:0:99999:7:::\n",
    )
    for file, line in zip(_FILES, lines, strict=True):
        path = host.path(file)
        path.write_text(path.read_text() + line)
    host._users[person.name] = person
    script = f"mkdir -m 700 {person.home} && chown {person.uid}:{person.gid} {person.home}"
    host.run("sh", "-c", script, user="root")


def _remove(host: Host, files: Sequence[str]) -> None:
    for person in PEOPLE:
        for _ in range(50):
            if not (left := host.processes(user=person.name)):
                break
            for process in left:
                with contextlib.suppress(OSError):
                    os.kill(process.outer_pid, signal.SIGKILL)
            time.sleep(0.05)
        host.run(
            "sh",
            "-c",
            f"rm -rf {person.home}; find /tmp /var/tmp /dev/shm -user {person.uid} -delete",
            user="root",
        )
        del host._users[person.name]
    for file, text in zip(_FILES, files, strict=True):
        host.path(file).write_text(text)
    write_rule(host, "")


def write_rule(host: Host, text: str) -> None:
    """What sudo is told on a host, beside what its own files say."""
    path = host.path(SUDOERS)
    if not text:
        path.unlink(missing_ok=True)
        return
    path.write_text(text + "\n")
    path.chmod(0o440)
    host.run("visudo", "-c", "-q", "-f", SUDOERS, user="root")


def allow(cluster: Cluster, *names: str) -> None:
    """The documented rule, on every host."""
    for host in cluster.hosts:
        write_rule(host, f"{cluster.user} ALL=({','.join(names)}) NOPASSWD: /usr/bin/python3")


def kernels_of(host: Host, user: str) -> list[HostProcess]:
    """Processes of a user on a host that belong to a kernel: no listener, nothing that it forks kernels from, and no bridge to it."""
    others = (" serve ", "prefork_template.py", BRIDGE)
    return [
        process
        for process in host.processes(user=user)
        if not any(text in process.command for text in others)
    ]


def listeners_of(host: Host, user: str) -> list[HostProcess]:
    # A kernel's relay is a fork of its listener and has its argv.
    listening = [process for process in host.processes(user=user) if " serve " in process.command]
    pids = {process.pid for process in listening}
    return [process for process in listening if process.ppid not in pids]
