"""Which entries of `remote_hosts` mean this machine, so that no sshd is needed."""

from __future__ import annotations

import ipaddress
import socket
import threading

from ..models import HostAddress


def is_local(address: HostAddress) -> bool:
    """Whether the entry is this machine: `localhost`, one of its own names or addresses, without a user or a port.

    Never waits for a name server, but (at most 0.3 s) for an entry that begins with this machine's own short name.
    """
    if address.user is not None or address.port is not None:
        return False
    name = address.host.rstrip(".").lower()
    if name == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name == socket.gethostname().lower() or _is_own_full_name(name)
    return ip.is_loopback or _is_own_address(ip)


def _is_own_address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    # The kernel's choice of source address for one of its own addresses is that address. Nothing is sent.
    if ip.is_multicast or ip.is_unspecified:
        return False
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect((str(ip), 9))
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0]) == ip
    except OSError:
        return False


def _is_own_full_name(name: str) -> bool:
    short = socket.gethostname().partition(".")[0].lower()
    return name.startswith(short + ".") and _full_name.get(0.3) == name


class _FullName:
    """`socket.getfqdn()`, which asks a name server, in a thread of its own that nobody has to wait for."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._started = False
        self._name = ""

    def get(self, timeout: float) -> str:
        """The name; empty when it is not known within `timeout` seconds (it may be at the next call)."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._ask, daemon=True).start()
        self._done.wait(timeout)
        return self._name

    def _ask(self) -> None:
        self._name = socket.getfqdn().rstrip(".").lower()
        self._done.set()


_full_name = _FullName()
