"""What ssh's configuration says about a host, as people have it: `~/.ssh/config`, then `/etc/ssh/ssh_config`; the first value wins.

asyncssh parses the files; what it leaves out (the system's files, known hosts with their tokens, `none`) is added here. Everything here
reads files and may run a command (`Match exec`): for a worker thread, never for the loop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import asyncssh

from ..errors import HostUnreachableError
from ..models import HostAddress, Login
from ..own_user import give_own_name_to_libraries, own_name
from .host_keys import (
    DEFAULT_GLOBAL_FILES,
    DEFAULT_USER_FILES,
    Identity,
    KnownHosts,
    ordered_algorithms,
    short_form,
)
from .keys import KeyFiles, agent_path, load_key_files

KEEPALIVE_COUNT = 2
"""How often a silent host is asked for a sign of life, once each `Login.keepalive_interval`; when that is over once more, it is lost."""
CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
"""Put first unless the user's configuration has Ciphers: the fastest ones where the processor has AES instructions."""
MAX_JUMPS = 8

_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")


@dataclass(frozen=True)
class Target:
    """All that is needed to connect to one host: the last one, or a jump host before it."""

    label: str
    entry: str
    """The host of the entry."""
    host: str
    """HostName, or the entry's own."""
    port: int
    user: str
    identity: Identity
    known_hosts: KnownHosts
    keys: KeyFiles
    agent: str | None
    only_named_keys: bool
    password: str | None
    gss: bool
    """Whether a Kerberos ticket is to be shown."""
    has_gssapi: bool
    """Whether the Python package for that is installed. Where the configuration alone asks for it, as Debian's does, nothing is said."""
    needs_ticket: bool
    """Asked for by the option: whatever is wrong with it is told."""
    family: int
    bind: tuple[str, int] | None
    proxy_command: str | None
    jumps: tuple[Target, ...]
    """To be connected to one through the other, the first one directly (or by its own ProxyCommand)."""
    options: asyncssh.SSHClientConnectionOptions
    host_key_algorithms: tuple[str, ...] | None

    def __repr__(self) -> str:
        return f"<Target {self.user}@{self.host}:{self.port}>"


def find_target(address: HostAddress, login: Login) -> Target:
    """Read ssh's configuration for a host.

    Raises:
        HostUnreachableError: the configuration cannot be read, or the name is none that a host can have.
    """
    try:
        return _find(address, login, _config_files())
    except (ValueError, OSError) as error:
        raise HostUnreachableError(
            f"ssh's configuration for {address} cannot be used: {error}. Correct it; `ssh -G {address.host}` shows what it says.",
            host=str(address),
        ) from error


def _find(
    address: HostAddress,
    login: Login,
    files: Sequence[Path],
    *,
    jumps: tuple[Target, ...] | None = None,
    behind: tuple[tuple[str, int], ...] = (),
) -> Target:
    """`jumps` None: as the configuration's ProxyJump says. `behind`: the hosts for which this one is a jump host."""
    _check_names(address.host, address.user or login.user)
    user = address.user or login.user
    options = _options(address.host, user, address.port, files)
    if address.port is None and options.config.get("Port") is None and login.port != options.port:
        # Once more, so that %p in ProxyCommand is right as well.
        options = _options(address.host, user, login.port, files)
    host, port, config = options.host, options.port, options.config
    _check_names(host, options.username)
    known = KnownHosts(_known_hosts_files(config, options, address.host))
    proxy_jump, proxy_command = config.get("ProxyJump"), config.get("ProxyCommand")
    if jumps is not None:
        proxy_command = None
    elif isinstance(proxy_jump, str) and (host, port) not in behind:
        jumps = _find_jumps(proxy_jump, files, (*behind, (host, port)))
    else:
        jumps = ()
    alias = config.get("HostKeyAlias")
    identity = Identity(
        short_form(host), port, alias if isinstance(alias, str) else None, str(address),
        direct=not jumps and not proxy_command, file=known.files[0] if known.files else _path("~/.ssh/known_hosts"),
    )  # fmt: skip
    algorithms = known.algorithms(identity.alias or host, port)
    keys = load_key_files(_strings(config.get("IdentityFile")), _strings(config.get("CertificateFile")) or [])
    has_gssapi = find_spec("gssapi") is not None
    return Target(
        label=str(address),
        entry=address.host,
        host=host,
        port=port,
        user=options.username,
        identity=identity,
        known_hosts=known,
        keys=keys,
        agent=agent_path(config.get("IdentityAgent", ())),
        only_named_keys=bool(config.get("IdentitiesOnly", False)),
        password=login.password,
        gss=login.gss or (has_gssapi and bool(config.get("GSSAPIAuthentication", False))),
        has_gssapi=has_gssapi,
        needs_ticket=login.gss,
        family=options.family,
        bind=cast("tuple[str, int] | None", options.local_addr),
        proxy_command=proxy_command if isinstance(proxy_command, str) and not jumps else None,
        jumps=jumps,
        options=options,
        host_key_algorithms=None
        if config.get("HostKeyAlgorithms")
        else tuple(ordered_algorithms(algorithms)),
    )


def _options(
    host: str, user: str | None, port: int | None, files: Sequence[Path]
) -> asyncssh.SSHClientConnectionOptions:
    give_own_name_to_libraries()
    # Keys and known hosts are handed over when connecting: what asyncssh makes of them here would fail for a file that is missing.
    return asyncssh.SSHClientConnectionOptions(
        config=[str(file) for file in files],
        host=host,
        port=() if port is None else port,
        username=() if user is None else user,
        tunnel=None,
        proxy_command=None,
        client_keys=None,
        known_hosts=b"",
        x509_trusted_certs=None,
        x509_trusted_cert_paths=[],
        agent_forwarding=False,
        x11_forwarding=False,
        command=None,
        env=None,
        send_env=None,
    )


def _find_jumps(text: str, files: Sequence[Path], behind: tuple[tuple[str, int], ...]) -> tuple[Target, ...]:
    """The hosts of a ProxyJump. The first one may itself be behind others; neither `Login` nor its password is theirs."""
    if len(behind) > MAX_JUMPS:
        raise ValueError("ProxyJump leads in a circle")
    found: list[Target] = []
    for number, item in enumerate(text.split(",")):
        try:
            address = HostAddress.parse(re.sub(r"^ssh://|/$", "", item.strip()))
        except ValueError:
            raise ValueError(f"'{item}' in ProxyJump is not a host") from None
        if number == 0:
            first = _find(address, Login(), files, behind=behind)
            if (first.host, first.port) == behind[-1]:
                return ()  # `Host *` with `ProxyJump gateway` applies to the gateway itself, too
            found += [*first.jumps, first]
        else:
            found.append(_find(address, Login(), files, jumps=tuple(found)))
    return tuple(found)


def _config_files() -> list[Path]:
    files = [Path.home() / ".ssh" / "config", _SYSTEM_CONFIG]
    return [file for file in files if os.access(file, os.R_OK)]


def _known_hosts_files(config: Any, options: asyncssh.SSHClientConnectionOptions, original: str) -> list[str]:
    """All files of known hosts. `none` and `/dev/null` name no file: they never switch verification off."""
    user = config.get("UserKnownHostsFile")
    system = config.get("GlobalKnownHostsFile")
    names = [
        *(DEFAULT_USER_FILES if user is None else user),
        *(DEFAULT_GLOBAL_FILES if system is None else system),
    ]
    tokens = {
        "%": "%", "d": str(Path.home()), "h": options.host, "n": original, "p": str(options.port),
        "r": options.username, "u": own_name(), "i": str(os.getuid()) if hasattr(os, "getuid") else "",
        "k": config.get("HostKeyAlias") or original,
    }  # fmt: skip
    expanded = (re.sub(r"%(.)", lambda found: tokens.get(found[1], found[0]), name) for name in names)
    return [
        _path(os.path.expandvars(name)) for name in expanded if name.lower() != "none" and name != os.devnull
    ]


def _check_names(host: str, user: str | None) -> None:
    """Refuse names that mean something to a shell: ProxyCommand and `Match exec` may hold them. The rule is OpenSSH's."""
    if not host or host.startswith("-") or re.search(r"[\s'\"`$\\;&<>|(){}\x00-\x1f\x7f]", host):
        raise ValueError(f"{host!r} is not the name of a host")
    if user is not None and (
        not user
        or user.startswith("-")
        or user.endswith("\\")
        or re.search(r"['\"`$;&<>|(){}\x00-\x1f\x7f]", user)
    ):
        raise ValueError(f"{user!r} is not the name of a user")


def _strings(value: object) -> list[str] | None:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else None


def _path(name: str) -> str:
    return str(Path(name).expanduser())
