"""What hosts answer, as values for people and programs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..models import HostAddress
from ..owner import owner, presence

Server = Literal["connected", "away", "orphaned"]
"""Of a kernel's server. connected: to the kernel's host; away: not so, and its process lives on this machine; orphaned: neither."""


@dataclass(frozen=True)
class FoundKernel:
    """A kernel of this user on a host, whichever server started it."""

    host: HostAddress
    kernel_id: str
    generation: int
    name: str
    pid: int
    started: float
    """Seconds since the epoch, by the host's clock."""
    state: str
    """`starting`, `busy`, `idle`, `running` (nobody can tell which), or `exited`."""
    detail: str
    """Why it exited."""
    owner: str
    """`user@machine:digest` of its server."""
    server: Server
    memory_bytes: int | None
    cpu_seconds: float | None
    processes: int | None
    keeps_output: bool
    """Whether what it publishes can be read later."""
    status: Mapping[str, Any] = field(repr=False)

    @property
    def age(self) -> float:
        """Seconds."""
        return max(0.0, time.time() - self.started)

    @property
    def is_here(self) -> bool:
        """Whether its server is one of this machine and user."""
        return self.owner.partition(":")[0] == owner().partition(":")[0]

    def to_json(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "status"}
        return {**values, "host": str(self.host), "age": self.age, "log": self.status.get("log")}


def kernel_from_status(host: HostAddress, status: Mapping[str, Any]) -> FoundKernel:
    """Read a status of the listener; one of an older listener may lack what is not needed.

    Raises KeyError, TypeError, ValueError for one that makes no sense. Looks at processes of this machine: not for the I/O loop.
    """
    state = str(status["state"])
    if state == "running":
        state = str(status.get("execution_state") or "running")
    return FoundKernel(
        host=host,
        kernel_id=str(status["kernel_id"]),
        generation=int(status["generation"]),
        name=str(status.get("kernel_name") or ""),
        pid=int(status.get("kernel_pid") or status.get("pid") or 0),
        started=float(status.get("started") or 0),
        state=state,
        detail=str(status.get("detail") or ""),
        owner=str(status.get("owner") or ""),
        server=_server(str(status.get("client") or ""), bool(status.get("server_connected"))),
        memory_bytes=status.get("memory_bytes"),
        cpu_seconds=status.get("cpu_seconds"),
        processes=status.get("processes"),
        keeps_output=bool(status.get("relay")),
        status=status,
    )


def _server(client: str, connected: bool) -> Server:
    if connected:
        return "connected"
    return "away" if presence(client, connected) == "alive" else "orphaned"


@dataclass(frozen=True)
class HostReport:
    """A host that answered."""

    host: HostAddress
    hostname: str
    drained: bool
    drain_reason: str
    load: tuple[float, ...]
    """Over 1, 5 and 15 minutes; empty where the host does not say."""
    cores: int | None
    memory_total: int | None
    """Bytes."""
    memory_available: int | None
    kernels: int
    """Of this user."""
    listener_version: str
    """A digest of the listener's source."""
    listener_pid: int
    listener_started: float | None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "host": str(self.host), "load": list(self.load)}


def host_from_reply(host: HostAddress, reply: Mapping[str, Any]) -> HostReport:
    """Read the answer to `list`. Raises KeyError, TypeError, ValueError for one that makes no sense."""
    about = reply["listener"]
    return HostReport(
        host=host,
        hostname=str(about.get("hostname") or ""),
        drained=bool(about.get("drained")),
        drain_reason=str(about.get("drain_reason") or ""),
        load=tuple(float(value) for value in about.get("load") or ()),
        cores=about.get("cores"),
        memory_total=about.get("memory_total"),
        memory_available=about.get("memory_available"),
        kernels=sum(status.get("state") != "exited" for status in reply["kernels"]),
        listener_version=str(about.get("version") or ""),
        listener_pid=int(about.get("pid") or 0),
        listener_started=about.get("started"),
    )
