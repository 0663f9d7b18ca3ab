"""Where the benchmarks run: three real sshd hosts in namespaces, kernelspecs, and a home of their own, all gone afterwards.

sshd keeps its default limits. Nothing here imports the package but its `testing`, so that the environments of other tools can use it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distributed_provisioner.testing.namespaces import Cluster

HOSTS = ("host1", "host2", "host3")
USER = "jovyan"
RELAY, TEMPLATE, SPARE = "dp-relay", "dp-prefork", "dp-spare"
"""What a kernel's relay, a template, and the fork that waits for the next launch call themselves."""
QUIET = "--log-level=ERROR"
"""Local kernels write to our terminal, for example that they listen on TCP."""
REMOTE = Path(__file__).resolve().parents[1] / "src" / "distributed_provisioner" / "remote"
OURS = ("GP_", "KERNEL_", "JUPYTER_", "SSH_", "IPYTHON", "PYTHONPATH")

STUB = """\
import json, signal, socket, sys
with open(sys.argv[1]) as file:
    info = json.load(file)
held = []
for name in ("shell", "iopub", "stdin", "control", "hb"):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].bind("%s-%d" % (info["ip"], info[name + "_port"]))
    held[-1].listen()
signal.signal(signal.SIGINT, lambda *_: None)
ready = b"\\5READY\\13Socket-Type\\0\\0\\0\\4XPUB\\10Identity\\0\\0\\0\\0"
while True:
    held.append(held[1].accept()[0])
    try:
        held[-1].sendall(b"\\xff\\0\\0\\0\\0\\0\\0\\0\\0\\x7f\\3\\0NULL".ljust(64, b"\\0") + bytes((4, len(ready))) + ready)
    except OSError:
        pass
"""
"""A kernel that costs nearly no CPU: it binds its sockets, greets who connects to iopub (ZMTP 3.0), and sleeps. Nobody can talk to it."""


MUTE = """\
import json, signal, sys, zmq
with open(sys.argv[1]) as file:
    info = json.load(file)
context = zmq.Context()
held = []
for name in ("shell", "iopub", "stdin", "control", "hb"):
    held.append(context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER))
    held[-1].bind("ipc://%s-%d" % (info["ip"], info[name + "_port"]))
signal.signal(signal.SIGINT, lambda *_: None)
while True:
    signal.pause()
"""
"""A kernel that speaks ZMQ, so that connections to it last (ZMQ gives up what says nothing for 30 s), and says nothing else."""


class World:
    """The cluster and the kernelspecs. `local` is a plain ipykernel of this environment, `remote` ours over all hosts."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory

    @property
    def ssh_config(self) -> Path:
        return self.cluster.home / ".ssh" / "config"

    def spec(self, name: str, argv: Sequence[str], **fields: Any) -> str:
        """Install a kernelspec; `{directory}` in argv is its directory."""
        directory = self.spec_directory(name)
        directory.mkdir(parents=True, exist_ok=True)
        filled = [item.replace("{directory}", str(directory)) for item in argv]
        spec = {
            "argv": filled,
            "display_name": name,
            "language": "python",
            "interrupt_mode": "signal",
            **fields,
        }
        (directory / "kernel.json").write_text(json.dumps(spec))
        return name

    def spec_directory(self, name: str) -> Path:
        return Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)

    def local(self) -> str:
        """What everything is compared with."""
        return self.spec(
            "local_python", [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", QUIET]
        )

    def remote(self, name: str = "remote_python", hosts: Sequence[str] = HOSTS, *, prefork: bool) -> str:
        """The kernelspec of `jupyter ssh-spec install`: our launcher, here on the hosts' copy of this environment.

        Without `prefork` each start is cold, and no process is made on the host that others could be forked from.
        """
        scripts = self.spec_directory(name) / "scripts"
        scripts.mkdir(parents=True, exist_ok=True)
        for file in ("launch_ipykernel.py", "server_listener.py"):
            shutil.copy(REMOTE / file, scripts / file)
        argv = ["python", "{directory}/scripts/launch_ipykernel.py", "--kernel-id", "{kernel_id}"]
        argv += ["--port-range", "{port_range}", "--response-address", "{response_address}"]
        argv += ["--public-key", "{public_key}", "--kernel-class-name", "ipykernel.ipkernel.IPythonKernel"]
        return self.spec(name, argv, metadata=stanza(hosts, prefork=prefork))

    def stub(self, name: str, hosts: Sequence[str] = (), program: str = STUB) -> str:
        """A kernel without CPU, on hosts through our provisioner or, without hosts, by Jupyter's own."""
        directory = self.spec_directory(name)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "stub.py").write_text(program)
        metadata = stanza(hosts, kernel_transport="ipc", prefork=False) if hosts else {}
        bare = ["-I", "-S"] if program is STUB else []
        argv = ["python", *bare, "{directory}/stub.py", "{connection_file}"]
        return self.spec(name, argv, metadata=metadata)


@dataclass(frozen=True)
class Processes:
    """Who runs, on the hosts (but sshd) and below this process, at one moment."""

    world: World
    on_hosts: frozenset[int]
    here: frozenset[int]

    @classmethod
    def now(cls, world: World) -> Processes:
        on_hosts = {process.outer_pid for host in world.cluster.hosts for process in host.processes(USER)}
        on_hosts = {
            pid for pid in on_hosts if own_name(pid) != SPARE
        }  # there is one, but not always the same
        # The hosts themselves are below this process, too.
        keeper = world.cluster.keeper_pid
        return cls(world, frozenset(on_hosts), frozenset(descent(os.getpid()) - descent(keeper)))

    def more(self, seconds: float = 10.0) -> int:
        """How many there are that were not there then, once they had some time to go."""

        def count() -> int:
            now = Processes.now(self.world)
            return len(now.on_hosts - self.on_hosts) + len(now.here - self.here)

        wait_for(lambda: count() == 0, seconds)
        return count()


def stanza(hosts: Sequence[str], **config: Any) -> dict[str, Any]:
    config = {"remote_hosts": list(hosts), "remote_python": sys.executable, **config}
    return {"kernel_provisioner": {"provisioner_name": "distributed-provisioner", "config": config}}


@contextmanager
def world() -> Iterator[World]:
    """Build it, with a clean environment, and leave nothing.

    Raises:
        Unsupported: no hosts in namespaces on this machine; the text is the reason.
    """
    before = dict(os.environ)
    directory = Path(tempfile.mkdtemp(prefix="dpb-"))
    try:
        with Cluster(len(HOSTS)) as cluster:
            for name in list(os.environ):
                if name.startswith(OURS):
                    del os.environ[name]
            os.environ["HOME"] = str(cluster.home)
            os.environ["IPYTHONDIR"] = str(directory / "ipython")
            for name in ("CONFIG", "DATA", "RUNTIME"):
                os.environ[f"JUPYTER_{name}_DIR"] = str(directory / name.lower())
                (directory / name.lower()).mkdir(mode=0o700)
            # Who the kernel is for: root may not, unless configured, and the benchmarks may run as root.
            os.environ["KERNEL_USERNAME"] = USER
            try:
                yield World(cluster, directory)
            finally:
                # That the hosts go away under the open connections is meant.
                logging.getLogger("distributed_provisioner").setLevel(logging.ERROR)
                end_listener(cluster.home)
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(directory, ignore_errors=True)


def end_listener(home: Path) -> None:
    """The listener for `localhost` outlives its server on purpose; this one has nothing to live for."""
    for record in home.glob(".local/state/distributed-provisioner/*/listener-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads(record.read_text())
            pid = int(known["pid"])
            if "server_listener" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGTERM)
                wait_for(partial(_is_gone, pid), 5)


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}/cmdline").exists()


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask until the answer is yes, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def precise_cpu_seconds(pid: int) -> float:
    """The same in nanoseconds instead of clock ticks, for the main thread; where the system tells it."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return cpu_seconds(pid)


def own_name(pid: int) -> str:
    """What a process calls itself ("" if it is gone): a relay and a spare have the command line of what they were forked from."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def resident_megabytes(pid: int) -> float:
    for text in Path(f"/proc/{pid}/status").read_text().splitlines():
        if text.startswith("VmRSS:"):
            return int(text.split()[1]) / 1000
    return 0.0


def proportional_megabytes(pid: int) -> float:
    """A process's own memory, and its part of each page that it shares with others."""
    for text in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if text.startswith("Pss:"):
            return int(text.split()[1]) / 1000
    return 0.0


def descent(pid: int) -> set[int]:
    """The living children of a process, their children, and so on."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            if fields[0] not in "ZX":
                parents[int(entry.name)] = int(fields[1])
    found, wave = set[int](), {pid}
    while wave:
        wave = {child for child, parent in parents.items() if parent in wave} - found
        found |= wave
    return found
