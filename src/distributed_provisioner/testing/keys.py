"""Keys, and the client's home directory with everything that ssh needs to reach the hosts."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from distributed_provisioner.testing.plan import Plan


def make_keys(directory: Path, hosts: list[str]) -> tuple[str, dict[str, str]]:
    """A key pair for the client and for each host: the client's public key, the hosts' private keys."""
    keys = directory / "keys"
    keys.mkdir(mode=0o700)
    commands = [
        subprocess.Popen(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", keys / name],
            stdin=subprocess.DEVNULL,
        )
        for name in ["id_ed25519", *hosts]
    ]
    if any([command.wait() for command in commands]):  # noqa: C419 - all of them have ended before anything is removed
        raise OSError("ssh-keygen failed; it says why above")
    return (keys / "id_ed25519.pub").read_text(), {name: (keys / name).read_text() for name in hosts}


def public_key(directory: Path, host: str) -> str:
    """A host's public key, without the comment."""
    return " ".join((directory / "keys" / f"{host}.pub").read_text().split()[:2])


def client_home(directory: Path, plan: Plan) -> Path:
    """Write a home directory whose .ssh reaches every host by its name and by its addresses."""
    home = directory / "home"
    ssh = home / ".ssh"
    home.mkdir(mode=0o700)
    ssh.mkdir(mode=0o700)
    for name in ("id_ed25519", "id_ed25519.pub"):
        (directory / "keys" / name).replace(ssh / name)
    lines = []
    for host in plan.hosts:
        lines += [f"Host {host.name}", f"  HostName {host.address}"]
    names = [name for host in plan.hosts for name in (host.name, host.address, host.address6) if name]
    lines += [
        f"Host {' '.join(names)}",
        f"  User {next(user.name for user in plan.users if user.uid or plan.rootless)}",
        f"  IdentityFile {ssh / 'id_ed25519'}",
        "  IdentitiesOnly yes",
        f"  UserKnownHostsFile {ssh / 'known_hosts'}",
        "  StrictHostKeyChecking yes",
        "  BatchMode yes",
    ]
    (ssh / "config").write_text("\n".join(lines) + "\n")
    return home


def write_known_hosts(home: Path, keys: Mapping[tuple[str, ...], str]) -> None:
    """Have the client trust public keys, each under the names it is given for."""
    lines = [f"{','.join(filter(None, names))} {key}\n" for names, key in keys.items()]
    (home / ".ssh/known_hosts").write_text("".join(lines))


def new_key() -> tuple[str, str]:
    """A fresh key pair: the private key file's text, and the public key without a comment."""
    with tempfile.TemporaryDirectory() as directory:
        _, privates = make_keys(Path(directory), ["host"])
        return privates["host"], public_key(Path(directory), "host")
