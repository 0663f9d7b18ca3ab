"""What a cluster is to look like: decided by its owner, told to the keeper as one JSON text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

SSHD_CONFIG = "/etc/ssh/sshd_config.host"
SSHD_LOG = "/var/log/sshd.log"
HOST_KEY = "/etc/ssh/ssh_host_key"


@dataclass(frozen=True)
class User:
    """An account on every host."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class HostPlan:
    """One host: its place in the network, and its host key as the text of the private key file."""

    name: str
    address: str
    address6: str
    mac: str
    private_key: str


@dataclass(frozen=True)
class Plan:
    """A whole cluster, as its keeper builds it."""

    owner: int
    rootless: bool
    sshd: str
    directory: str
    uplink: str
    primary: str
    primary6: str
    authorized_key: str
    users: list[User]
    hosts: list[HostPlan]
    sshd_config: str
    needed: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    def dump(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def load(text: str) -> Plan:
        """The plan that `dump` wrote."""
        values = json.loads(text)
        values["users"] = [User(**user) for user in values["users"]]
        values["hosts"] = [HostPlan(**host) for host in values["hosts"]]
        return Plan(**values)
