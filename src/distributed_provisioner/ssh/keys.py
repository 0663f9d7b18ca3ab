"""The user's own keys: files and agent, in an order that a host with few tries (`MaxAuthTries 6`) likes.

First the keys of the agent that the configuration names, then key files, then what else the agent has. A key with a passphrase is
used through the agent only: nobody is there who could be asked.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

DEFAULT_FILES = ("id_rsa", "id_ecdsa", "id_ed25519", "id_dsa")
"""Security keys (`id_…_sk`) are left to the agent: someone has to touch them."""
AGENT_TIMEOUT = 3.0
"""Seconds; an agent that is asked for longer, for instance because it waits for a confirmation, is left out."""


@dataclass
class KeyFiles:
    """What the files gave."""

    pairs: list[asyncssh.SSHKeyPair] = field(default_factory=list)
    named: list[bytes] = field(default_factory=list)
    """Public keys of the files that the configuration names: the agent's keys of this list come first."""
    encrypted: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    """`file: reason`, for the message of a refused login."""


def load_key_files(files: Sequence[str] | None, certificates: Sequence[str]) -> KeyFiles:
    """Read key files; None means the default ones, of which only those that exist count. Blocks: for a worker thread.

    A file that is missing, unreadable or encrypted is noted, never raised: another key may do.
    """
    result = KeyFiles()
    certificates = [path for path in map(_expand, certificates) if _is_certificate(path, result)]
    if files is None:
        paths = [str(Path.home() / ".ssh" / name) for name in DEFAULT_FILES]
        paths = [path for path in paths if Path(path).exists()]
    else:
        paths = [_expand(path) for path in files]
    for path in paths:
        public = _public_keys(path)
        result.named += public
        if not Path(path).exists():
            if not public:
                result.unusable.append(f"{path}: no such file")
            continue
        try:
            result.pairs += asyncssh.load_keypairs(path, certlist=certificates)
        except asyncssh.KeyImportError as error:
            if str(error).startswith("Passphrase"):
                result.encrypted.append(path)
            elif not public or public != _public_in(
                path
            ):  # a public key, for IdentitiesOnly with an agent, is no fault
                result.unusable.append(f"{path}: {error}")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            result.unusable.append(f"{path}: {reason or error}")
    return result


@dataclass
class Keyring:
    """Gives asyncssh the keys to try, once, and remembers what was offered."""

    files: KeyFiles
    agent_path: str | None
    only_named: bool
    """IdentitiesOnly: of the agent's keys, only those that the configuration names."""
    tried: list[str] = field(default_factory=list)
    agent_failure: str = ""
    _agent: asyncssh.SSHAgentClient | None = None
    _given: bool = False

    async def offer(self) -> list[asyncssh.SSHKeyPair]:
        """All keys in the order in which they are to be tried; empty when asked again."""
        if self._given:
            return []
        self._given = True
        held = await self._agent_keys()
        named = [key for key in held if key.public_data in self.files.named]
        others = [] if self.only_named else [key for key in held if key not in named]
        in_agent = {key.public_data for key in named}
        files = [pair for pair in self.files.pairs if pair.public_data not in in_agent]
        self.tried += [f"{_comment(key)} from the agent" for key in named]
        self.tried += dict.fromkeys(_comment(pair) for pair in files)
        self.tried += [f"{_comment(key)} from the agent" for key in others]
        return [*named, *files, *others]

    async def _agent_keys(self) -> list[asyncssh.SSHKeyPair]:
        if not self.agent_path:
            return []
        try:
            self._agent = await asyncio.wait_for(asyncssh.connect_agent(self.agent_path), AGENT_TIMEOUT)
            return list(await asyncio.wait_for(self._agent.get_keys(), AGENT_TIMEOUT))
        except asyncio.TimeoutError:
            self.agent_failure = "the agent did not answer"
        except (OSError, ValueError, asyncssh.Error) as error:
            self.agent_failure = f"the agent could not be asked ({error})"
        return []

    def close(self) -> None:
        """Let the agent go: it is needed for signing, until the login is done."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None


def agent_path(configured: object) -> str | None:
    """The agent's socket: IdentityAgent (a path, `none`, `SSH_AUTH_SOCK` or `$NAME`), else what SSH_AUTH_SOCK says.

    `configured` is None for `none`, and () where the configuration says nothing.
    """
    if configured in ((), "SSH_AUTH_SOCK"):
        return os.environ.get("SSH_AUTH_SOCK") or None
    if not isinstance(configured, str):
        return None
    if configured.startswith("$"):
        return os.environ.get(configured[1:].strip("{}")) or None
    return _expand(configured)


def _public_keys(path: str) -> list[bytes]:
    """The public halves that lie beside a key file, or are the file itself: what the agent would call it."""
    return [data for name in (f"{path}.pub", f"{path}-cert.pub", path) for data in _public_in(name)]


def _public_in(path: str) -> list[bytes]:
    for read in (asyncssh.read_certificate, asyncssh.read_public_key):
        with suppress(OSError, ValueError):
            return [read(path).public_data]
    return []


def _is_certificate(path: str, result: KeyFiles) -> bool:
    try:
        asyncssh.read_certificate(path)
    except (OSError, ValueError) as error:
        result.unusable.append(f"{path}: {error}")
        return False
    return True


def _comment(key: asyncssh.SSHKeyPair) -> str:
    name = key.get_comment()
    return f"{name} ({key.get_algorithm()})" if name else key.get_algorithm()


def _expand(path: str) -> str:
    return str(Path(path).expanduser())
