"""What reaches a host just now."""

from __future__ import annotations

from dataclasses import dataclass

import asyncssh

from .control import Control


@dataclass(frozen=True)
class Line:
    """The ways to a host that stand now."""

    connection: asyncssh.SSHClientConnection | None
    """None: it is this machine."""
    control: Control
    forwards_paths: bool
    """Whether sshd forwards to Unix sockets."""
