"""What is run by a tool's own interpreter: `_rival_worker.py NAME OUT ROUNDS QUESTIONS BURSTS COUNT`.

It makes hosts on which this interpreter's environment is there too, sets the tool up as its documentation asks, and measures.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / place) for place in ("", "src")]

from benchmarks._kernels import (
    Subject,
    burst,
    faultless_burst,
    launch,
    launch_in_turn,
    warm_templates,
    warm_up,
)
from benchmarks._world import HOSTS, USER, Processes, World, world

PAUSE = 0.1
"""Seconds; jupyter_client's own pause while it waits for a kernel's end."""


@dataclass
class Setting:
    """A tool, set up: how it is started, and what had to be configured for it."""

    subject: Subject
    notes: list[str] = field(default_factory=list)
    forks: bool = False
    """Whether it has something on the hosts that is to be warm."""


def ours(place: World) -> Setting:
    return Setting(
        Subject("ours", [place.remote(hosts=HOSTS, prefork=True)]),
        [
            "its default: kernels are forked from a process on each host that is there before anything is measured."
        ],
        forks=True,
    )


def gateway_provisioners(place: World) -> Setting:
    """Its kernelspec by its own command, replicated by hand to all hosts; a response address that the hosts reach."""
    addresses = [host.address for host in place.cluster.hosts]
    prefix = place.directory / "gateway"
    command = [str(Path(sys.executable).with_name("jupyter-ssh-spec")), "install", "--prefix", str(prefix)]
    command += ["--kernel-name", "gateway"]
    command += [item for address in addresses for item in ("--remote-hosts", address)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (made,) = prefix.glob("share/jupyter/kernels/*")
    file = made / "kernel.json"
    spec: dict[str, Any] = json.loads(file.read_text())
    # `python` would be the first one on a host's PATH: it is to be this environment's, as for everybody else here.
    spec["argv"] = [sys.executable if item == "python" else item for item in spec["argv"]]
    file.write_text(json.dumps(spec))
    directory = place.spec_directory(made.name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.symlink_to(made)
    for host in place.cluster.hosts:
        files = subprocess.run(
            ["tar", "-c", "-C", "/", str(made).lstrip("/")], stdout=subprocess.PIPE, check=True
        ).stdout
        host.run("tar", "-x", "-C", "/", input=files, user=USER)
    # Read when its modules are imported, which happens at the first launch.
    os.environ.update(
        GP_RESPONSE_IP=place.cluster.primary_address, GP_REMOTE_USER=USER, GP_REMOTE_HOSTS=",".join(addresses)
    )
    return Setting(
        Subject("gateway-provisioners", [made.name]),
        [
            "kernelspec by `jupyter-ssh-spec install`, copied to every host; argv's `python` set to the environment's; "
            "GP_RESPONSE_IP and GP_REMOTE_USER set; hosts by address, as it does not read ssh's configuration; "
            "kernels are reached directly, in plain text (its default)."
        ],
    )


def sshpyk(place: World) -> Setting:
    """One kernelspec a host, by its own command, over ssh aliases of their own that keep a control socket."""
    sockets = place.directory / "control"
    sockets.mkdir()
    ssh = place.cluster.home / ".ssh"
    lines = []
    for host in place.cluster.hosts:
        lines += [
            f"Host sshpyk_{host.name}", f"  HostName {host.address}", f"  User {USER}", f"  IdentityFile {ssh / 'id_ed25519'}",
            "  IdentitiesOnly yes", f"  UserKnownHostsFile {ssh / 'known_hosts'}", "  StrictHostKeyChecking yes", "  BatchMode yes",
            "  ControlMaster auto", f"  ControlPath {sockets}/%r@%h_%p", "  ControlPersist 10m", "  ServerAliveInterval 5",
            "  ServerAliveCountMax 120000", "  TCPKeepAlive yes", "  ConnectionAttempts 1", "  ConnectTimeout 5",
        ]  # fmt: skip
    config = place.directory / "sshpyk_config"
    config.write_text("\n".join(lines) + "\n")
    names = []
    for host in place.cluster.hosts:
        stanza = {
            "ssh_host_alias": f"sshpyk_{host.name}", "ssh_config": str(config), "remote_python": sys.executable,
            "remote_kernel_name": "python3", "launch_timeout": 120, "ssh": None, "shutdown_time": 15,
        }  # fmt: skip
        metadata = {"kernel_provisioner": {"provisioner_name": "sshpyk-provisioner", "config": stanza}}
        names.append(place.spec(f"sshpyk_{host.name}", [], metadata=metadata, interrupt_mode="message"))
    return Setting(
        Subject("sshpyk", names),
        [
            "one kernelspec a host, taken in turn, with the stanza that `sshpyk add` writes; ssh's configuration as its README "
            "recommends (ControlMaster, ControlPersist 10m); launch_timeout 120; its kernels listen on TCP."
        ],
    )


SETTINGS: Mapping[str, Callable[[World], Setting]] = {
    "distributed-provisioner": ours,
    "gateway-provisioners": gateway_provisioners,
    "sshpyk": sshpyk,
}


async def measure(
    place: World, name: str, rounds: int, asked: int, bursts: int, count: int, found: dict[str, Any]
) -> None:
    setting = SETTINGS[name](place)
    found["notes"] = setting.notes
    subject, local = setting.subject, Subject("local", [place.local()])
    await warm_up([local, *([subject] * (len(HOSTS) if len(subject.specs) == 1 else 1))])
    if setting.forks:
        await warm_templates(subject, len(HOSTS))
    times = await launch_in_turn([local, subject], rounds)
    found["launch"], found["local"] = times[subject.name], times["local"]
    found["poll"] = await questions(subject, asked)
    before = Processes.now(place)
    pairs: list[dict[str, Any]] = []
    found["bursts"] = pairs
    for turn in range(bursts):
        pair = {}
        for each in (local, subject) if turn % 2 == 0 else (subject, local):
            measured = faultless_burst if each is local else burst
            pair["local" if each is local else "tool"] = asdict(await measured(each, count))
        pairs.append(pair)
    found["left"] = before.more()


async def questions(subject: Subject, count: int) -> dict[str, Any]:
    """Whether a kernel that lives is said to live, and how long each question takes: with pauses, and one right after the other."""
    running = await launch(subject)
    provisioner = running.manager.provisioner
    assert provisioner is not None
    found: dict[str, Any] = {}
    try:
        for way, pause in {"0.1 s apart": PAUSE, "back to back": 0.0}.items():
            seconds, dead = [], 0
            for _ in range(count):
                began = time.perf_counter()
                answer = await provisioner.poll()
                seconds.append(time.perf_counter() - began)
                dead += answer is not None
                await asyncio.sleep(pause)
            found[way] = {"seconds": seconds, "dead": dead}
    finally:
        await running.end()
    return found


def main() -> int:
    name, out = sys.argv[1], Path(sys.argv[2])
    rounds, asked, bursts, count = map(int, sys.argv[3:])
    found: dict[str, Any] = {}
    try:
        with world() as place:
            asyncio.run(measure(place, name, rounds, asked, bursts, count, found))
    except Exception as error:
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    finally:
        out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
