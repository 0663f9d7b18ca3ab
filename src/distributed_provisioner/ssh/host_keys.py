"""Host keys: which ones are trusted, and what to say about one that is not. Verification is never switched off.

Unlike asyncssh by itself, a key that is known for an address is not taken for a name that resolves to it (`CheckHostIP no`, the
default of OpenSSH), and lines of a known_hosts file that make no sense are skipped instead of refused.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import asyncssh

from ..errors import HostKeyError

DEFAULT_USER_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
DEFAULT_GLOBAL_FILES = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


class KnownHosts:
    """The known hosts of some files. Files that are missing count as empty."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = tuple(files)
        self._parsed = [_parse(path, *_version(path)) for path in map(Path, files) if path.is_file()]

    def __call__(self, host: str, addr: str, port: int | None) -> tuple[list[Any], ...]:
        """For asyncssh: trusted keys, trusted CA keys, revoked keys, and four lists for X.509, which is not supported here."""
        keys: tuple[list[Any], ...] = ([], [], [])
        host = short_form(host)
        for parsed in self._parsed:
            for collected, found in zip(keys, parsed.match(host, "", port)[:3], strict=False):
                collected.extend(found)
        return (*keys, [], [], [], [])

    def algorithms(self, host: str, port: int) -> list[str]:
        """The signature algorithms of the keys that are known for the host, so that these keys are asked for first."""
        known: list[str] = []
        trusted, authorities, _, *_ = self(host, "", None if port == 22 else port)
        if authorities:
            known += [name.decode("ascii") for name in asyncssh.public_key.get_default_certificate_algs()]
        for key in trusted:
            known += [name.decode("ascii") for name in key.sig_algorithms]
        return list(dict.fromkeys(known))


def short_form(host: str) -> str:
    """An IPv6 address as ssh writes it into known_hosts, and looks for it there; anything else unchanged."""
    address, percent, scope = host.partition("%")
    try:
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, address)) + percent + scope
    except (OSError, ValueError):
        return host


def ordered_algorithms(known: Sequence[str]) -> list[str]:
    """asyncssh's default host key algorithms, the known ones first: a host that has changed its kind of key is then told as changed,
    not as one that shares no algorithm with us. Certificates are asked for only where an authority is known: else the host's
    plain key is what the user can compare."""
    return list(dict.fromkeys([*known, *_plain_algorithms()]))


@dataclass(frozen=True)
class Identity:
    """Under which name a host's key is looked up, and how to say so."""

    host: str
    """HostName of the ssh config, or the entry's own."""
    port: int
    alias: str | None
    """HostKeyAlias."""
    label: str
    """What the user wrote; for messages."""
    direct: bool
    """Whether ssh-keyscan could reach it: neither ProxyJump nor ProxyCommand."""
    file: str
    """The file to which a key would be added."""

    @property
    def name(self) -> str:
        """The name in known_hosts, with the port if it is not 22."""
        name = self.alias or self.host
        return name if self.port == 22 else f"[{name}]:{self.port}"


def host_key_error(
    identity: Identity, key: asyncssh.SSHKey | None, known: KnownHosts, reason: str
) -> HostKeyError:
    """The error for a key that was refused: unknown, changed or revoked, with the command that would accept it."""
    fingerprint = key.get_fingerprint() if key is not None else None
    shown = f"{fingerprint} ({key.get_algorithm()})" if key is not None else "none that could be read"
    trusted, authorities, revoked, *_ = known(
        identity.alias or identity.host, "", None if identity.port == 22 else identity.port
    )
    if "revoked" in reason or (key is not None and key in revoked):
        text = (
            f"The host key of {identity.label} is marked as revoked in known_hosts: it showed {shown}. "
            f"Do not connect; ask the administrator of {identity.host} for its new key."
        )
    elif trusted or authorities:
        text = (
            f"The host key of {identity.label} has changed: it showed {shown}, which is not the key known for "
            f"{identity.name}. Someone may be listening in; if the host was set up anew and the fingerprint is right, run: "
            f"{_removal(identity, known)} and then {_addition(identity)}"
        )
    else:
        text = (
            f"The host key of {identity.label} is unknown: it showed {shown}, and {identity.name} is in no known_hosts file. "
            f"Compare the fingerprint with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_…_key.pub), then run: "
            f"{_addition(identity)}"
        )
    return HostKeyError(text, fingerprint=fingerprint, host=identity.label)


def _addition(identity: Identity) -> str:
    if not identity.direct or identity.alias:
        return f"ssh {shlex.quote(identity.label)} true   (and answer yes)"
    port = "" if identity.port == 22 else f" -p {identity.port}"
    return f"ssh-keyscan{port} {shlex.quote(identity.host)} >> {_file(identity.file)}"


def _removal(identity: Identity, known: KnownHosts) -> str:
    name = identity.alias or identity.host
    port = None if identity.port == 22 else identity.port
    for path in known.files:
        if any(KnownHosts([path])(name, "", port)[:2]):
            return f"ssh-keygen -R {shlex.quote(identity.name)} -f {_file(path)}"
    return f"ssh-keygen -R {shlex.quote(identity.name)}"


def _file(path: str) -> str:
    home = str(Path.home())
    return "~" + shlex.quote(path[len(home) :]) if path.startswith(home + "/") else shlex.quote(path)


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=16)
def _parse(path: Path, modified: int, size: int) -> asyncssh.SSHKnownHosts:
    known = asyncssh.SSHKnownHosts()
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return known
    for line in text.splitlines():
        with suppress(ValueError, IndexError):  # OpenSSH skips such lines, too
            known.load(line)
    return known


@lru_cache(maxsize=1)
def _plain_algorithms() -> tuple[str, ...]:
    return tuple(name.decode("ascii") for name in asyncssh.public_key.get_default_public_key_algs())
