"""Values that travel between the layers. All are frozen; nobody below writes into anybody above."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache
from typing import Any, Literal

from .errors import ConfigurationError

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
"""The kernel's sockets, in the order in which jupyter_client numbers them."""

Policy = Literal["round-robin", "least-connection"]
KernelTransport = Literal["ipc", "tcp", "direct"]
"""How a kernel's sockets lie on its host: Unix sockets, loopback TCP, or the host's own address (`transport = "direct"`)."""
USER_PLACE = "{username}"
"""In place of the user in an entry of `remote_hosts` or in `remote_user`: whom the kernel is for."""


@dataclass(frozen=True, order=True)
class HostAddress:
    """One entry of `remote_hosts`: `[user@]host[:port]`; the host may be an alias of the user's ssh config, or `[IPv6]`."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    @lru_cache(maxsize=4096)  # each launch reads its options anew: so all kernels share one object for a host
    def parse(cls, text: str) -> HostAddress:
        """Read an entry.

        Raises:
            ConfigurationError: the entry is empty, has an empty user or host, or a port outside 1..65535.
        """
        match = _HOST_ENTRY.fullmatch(text.strip())
        port = int(match["port"]) if match and match["port"] else None
        if match is None or (port is not None and not 1 <= port <= 65535):
            raise ConfigurationError(
                f"'{text}' in remote_hosts is not a host. Write host, user@host, host:port, user@host:port, or [IPv6]:port."
            )
        return cls(match["literal"] or match["bare6"] or match["host"], match["user"], port)

    def for_user(self, name: str) -> HostAddress:
        """The entry as it is for a kernel of that user."""
        return replace(self, user=name) if self.user == USER_PLACE else self

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"


_HOST_ENTRY = re.compile(
    r"(?:(?P<user>[^@\s/:,'\"`;$&|<>()\\-][^@\s/:,'\"`;$&|<>()\\]*)@)?"
    r"(?:\[(?P<literal>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[\w][\w.-]*)|(?P<bare6>[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f.]*))"
    r"(?<!:)(?::(?P<port>\d{1,5}))?"
)


_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


def is_account_name(text: str) -> bool:
    """Whether it can be the name of an account, by POSIX's rule (portable characters, no leading dash), and is no number: that could be
    taken for a uid. Such a name is one word, and no option, in every shell."""
    return _ACCOUNT.fullmatch(text) is not None and not text.isdigit() and text.strip(".") != ""


@dataclass(frozen=True)
class PortRange:
    """Ports `low..high`, both included; size 0 (low == high) means: no range is enforced."""

    low: int = 0
    high: int = 0

    def __bool__(self) -> bool:
        return self.high > self.low

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


@dataclass(frozen=True)
class Login:
    """How to log in to hosts; an entry's own user and port, then the user's ssh config, come first (see reference.md, section 2)."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    gss: bool = False
    port: int = 22
    connect_timeout: float = 10.0
    keepalive_interval: float = 4.0
    """Seconds of silence after which a host is asked for a sign of life; after three of these it counts as lost."""
    run_as: str | None = None
    """Whose kernels they are, if not those of the user who logs in: reached by sudo once the host is."""

    def for_user(self, name: str) -> Login:
        """The log-in as it is for a kernel of that user."""
        return replace(self, user=name) if self.user == USER_PLACE else self


def needs_user(address: HostAddress, login: Login) -> bool:
    """Whether a place is none before it is known whom a kernel is for."""
    return USER_PLACE in (address.user, login.user if address.user is None else None)


@dataclass(frozen=True)
class LaunchRequest:
    """All that is needed to launch a kernel, settled before anything is contacted."""

    kernel_id: str
    hosts: tuple[HostAddress, ...]
    argv: tuple[str, ...]
    """As in kernel.json: placeholders are substituted for the host (`{kernel_id}`, `{connection_file}`, …)."""
    key: str = field(repr=False)
    """The signing key of the kernel's messages."""
    policy: Policy = "round-robin"
    rotation: tuple[HostAddress, ...] = ()
    """The hosts as they are configured, for all users alike, whose turns are counted; empty: `hosts`."""
    pin: HostAddress | None = None
    login: Login = field(default_factory=Login)
    spec_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The stanza of kernel.json; `${NAME}` and `${NAME:-default}` are expanded on the host."""
    request_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`KERNEL_*` and what else the request brings; arrives byte for byte."""
    directories: tuple[str, ...] = ()
    """Working directories in order of preference; the first one that exists on the host is used, else the user's home."""
    resource_dir: str = ""
    public_key: str = ""
    kernel_name: str = ""
    kernel_transport: KernelTransport = "tcp"
    port_range: PortRange = PortRange()
    encryption: Mapping[str, str] | None = field(default=None, repr=False)
    """Curve keys for the kernel (`curve_publickey`, `curve_secretkey`) where it can encrypt, else None."""
    encrypt_ipc: bool = False
    """Whether the keys are used on Unix sockets, too, which no other user can reach anyway; on TCP they always are."""
    prefix: str = ""
    """What `{prefix}` in argv stands for: the server's `sys.prefix`, as jupyter_client has it."""
    launch_timeout: float = 30.0
    orphan_timeout: float = 86400.0
    interrupt_target: Literal["group", "kernel"] = "group"
    remote_python: str = "python3"
    kernel_log_dir: str = ""
    output_limit: int = 64 << 20
    """Bytes of its messages that the host keeps while no server is attached."""
    prefork: bool = False
    """Whether the host may fork the kernel from a process that has imported what it will need."""
    preload: tuple[str, ...] = ()
    """Modules that this process imports beside."""
    prefork_idle: float = 1800.0
    annotations: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the host keeps for the application (plain JSON): a later process of the same server goes on with it."""

    @property
    def uses_launcher(self) -> bool:
        """Whether argv reports to a response address (the page's contract) instead of reading a connection file."""
        return any("{response_address}" in item for item in self.argv)


@dataclass(frozen=True)
class HostCondition:
    """What a connection knows of its host just now; the default is: nothing against it."""

    drained: bool = False
    """It takes no new kernels."""
    drain_reason: str = ""
    """The words of whoever drained it."""
    unreachable: bool = False
    """It cannot be asked, and the connection to it is being made again by itself."""


class KernelState(Enum):
    """What is known of a kernel. "Could not ask" is never "dead"."""

    STARTING = "starting"
    RUNNING = "running"
    UNREACHABLE = "unreachable"
    EXITED = "exited"


@dataclass(frozen=True)
class ExitReason:
    """Why a kernel is no more. `code` is the exit status, negative for a signal; None where nobody saw it."""

    code: int | None
    reason: str
    """One of `exited`, `signal`, `oom`, `host rebooted`, `unknown`, `superseded`, `orphaned`."""
    detail: str = ""
    """For people: `exited with status 3`, `killed by SIGKILL`, …"""

    def __str__(self) -> str:
        return self.detail or self.reason

    @property
    def returncode(self) -> int:
        """What `poll()` answers: subprocess's convention, and 1 where the status is not known."""
        return 1 if self.code is None else self.code


@dataclass(frozen=True)
class RemoteProcess:
    """Where a kernel runs. Pids are the host's; `start_time` is the start of the leader in the host's own clock ticks."""

    host: HostAddress
    pid: int
    kernel_pid: int
    pgid: int
    generation: int
    kernel_transport: KernelTransport
    ip: str
    """For ipc: the common prefix of the socket paths; else the address."""
    ports: Mapping[str, int]
    """channel -> port, or the number that ends the socket's path (`{ip}-{port}`)."""
    directory: str
    """The working directory that the kernel got."""
    notes: tuple[str, ...] = ()
    """Lines for the log: a directory that is missing, an environment that could not be read, …"""
    details: Mapping[str, Any] = field(default_factory=dict)
    relay: str = ""
    """Path of its relay's socket on the host; empty where its messages go through forwards."""


@dataclass(frozen=True)
class KernelIdentity:
    """What is needed to write messages in a kernel's name, and to ask for its relay."""

    kernel_id: str = ""
    key: str = field(default="", repr=False)
    signature_scheme: str = "hmac-sha256"
