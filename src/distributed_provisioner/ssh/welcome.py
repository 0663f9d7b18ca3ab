"""The first words with a listener: who is there, and which kernels can be reached through this connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, fields
from typing import Any

import asyncssh

from ..errors import HostSetupError
from ..models import KernelTransport
from .control import Control


@dataclass(frozen=True)
class Welcome:
    """What the listener said of itself and its host when it was greeted."""

    protocol: int
    version: str
    pid: int
    start: int | None
    hostname: str
    user: str
    uid: int
    home: str
    platform: str
    python: str
    identity: str
    """Changes when the host is restarted."""
    boot_id: str
    directory: str
    socket: str
    bundles: tuple[str, ...] = ()
    kernels: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    detached: bool = True
    drained: bool = False
    drain_reason: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def from_reply(cls, reply: dict[str, Any]) -> Welcome:
        """Read a reply; what this version does not know is left out. Raises KeyError or TypeError for one that lacks something."""
        known = {item.name: reply[item.name] for item in fields(cls) if item.name in reply}
        for name in ("bundles", "kernels", "notes"):
            known[name] = tuple(known.get(name) or ())
        return cls(**known)


async def greet(
    control: Control, connection: asyncssh.SSHClientConnection | None, owner: str, client: str
) -> tuple[Welcome, frozenset[KernelTransport]]:
    """Say hello, and learn what sshd lets us forward; `connection` is None for this machine.

    Raises:
        HostSetupError: the host cannot be used; sshd's option is named where it is one.
        ConnectionLostError: the line broke.
    """
    if connection is None:
        ways: set[KernelTransport] = {"ipc", "tcp", "direct"} if control.run_as is None else {"tcp", "direct"}
        return _read(await control.hello(owner, client), control.host), frozenset(ways)
    by_tcp = asyncio.ensure_future(_forwards_tcp(connection))  # on its way while Python starts there
    try:
        welcome = _read(await control.hello(owner, client), control.host)
        supported: set[KernelTransport] = set()
        # Another user's directory cannot be entered by sshd, which forwards as the user who has logged in.
        if control.run_as is None and await _forwards_paths(connection, welcome.socket):
            supported.add("ipc")
        if await by_tcp:
            supported.add("tcp")
    finally:
        by_tcp.add_done_callback(_look_at)  # never cancelled: a channel that opens after all must be closed
    return welcome, frozenset({*supported, "direct"})


def _read(reply: dict[str, Any], host: str) -> Welcome:
    try:
        return Welcome.from_reply(reply)
    except (KeyError, TypeError) as error:
        raise HostSetupError(
            f"{host} cannot be used: its listener's welcome makes no sense ({error}). "
            "End the process server_listener.py serve there and try again; kernels go on.",
            host=host,
        ) from error


def _look_at(task: asyncio.Task[bool]) -> None:
    if not task.cancelled():
        task.exception()


async def _forwards_paths(connection: asyncssh.SSHClientConnection, path: str) -> bool:
    """Whether sshd forwards to the listener's own socket, which is known to be there. The reason of a refusal says nothing:
    OpenSSH gives the same for "forbidden" and "not there"."""
    try:
        channel, _ = await connection.create_unix_connection(_PathProbe, path)
    except asyncssh.ChannelOpenError:
        return False
    channel.close()
    return True


async def _forwards_tcp(connection: asyncssh.SSHClientConnection) -> bool:
    """Whether sshd forwards to ports of 127.0.0.1: port 1, where nobody listens, is "connect failed" or "prohibited"."""
    try:
        channel, _ = await connection.create_connection(_PortProbe, "127.0.0.1", 1)
    except asyncssh.ChannelOpenError as error:
        return error.code != asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
    channel.close()
    return True


class _PathProbe(asyncssh.SSHUNIXSession[bytes]):
    """A channel that nothing is sent through."""


class _PortProbe(asyncssh.SSHTCPSession[bytes]):
    """The same to a port."""
