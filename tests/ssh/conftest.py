"""For tests of the way to a host: work runs on the I/O loop, and every connection is closed afterwards."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh import Connections, HostConnection

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster, Host

T = TypeVar("T")


class Run(Protocol):
    """Runs a coroutine on the I/O loop and waits for it."""

    def __call__(self, coro: Coroutine[Any, Any, T], timeout: float = 60) -> T: ...


@pytest.fixture
def run(isolated: Path) -> Iterator[Run]:
    def on_io_loop(coro: Coroutine[Any, Any, T], timeout: float = 60) -> T:
        return IOThread.current().submit(coro).result(timeout)

    yield on_io_loop
    on_io_loop(Connections.current().close())


class Get(Protocol):
    """The connection to an entry of remote_hosts, and Login's fields."""

    def __call__(self, entry: str, **login: Any) -> HostConnection: ...


@pytest.fixture
def get(run: Run) -> Get:
    def connection(entry: str, **login: Any) -> HostConnection:
        async def found() -> HostConnection:
            return Connections.current().get(HostAddress.parse(entry), Login(**login))

        return run(found())

    return connection


@pytest.fixture
def host(cluster: Cluster) -> Iterator[Host]:
    """A real host that a test may ill-treat: it is mended afterwards."""
    found = cluster["host3"]
    yield found
    found.heal()
    found.delay(0)
    if not found.is_on:
        found.boot()
    found.resume_sshd()
    found.configure_sshd(
        **dict.fromkeys(
            (
                "AllowTcpForwarding", "AllowStreamLocalForwarding", "DisableForwarding", "PermitOpen", "ForceCommand",
                "MaxSessions", "MaxStartups", "PasswordAuthentication", "PubkeyAuthentication", "MaxAuthTries", "Ciphers",
            )
        )
    )  # fmt: skip
    found.start_sshd()
    cluster.trust_hosts()


@pytest.fixture
def ssh_config(cluster: Cluster) -> Iterator[Path]:
    """The user's ~/.ssh/config, to be written over."""
    file = cluster.home / ".ssh" / "config"
    before = file.read_bytes()
    yield file
    file.write_bytes(before)
    cluster.trust_hosts()
