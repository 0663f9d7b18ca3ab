"""Which entries need no sshd: this machine's names and addresses, and nothing else."""

from __future__ import annotations

import socket
import time

import pytest

from distributed_provisioner.models import HostAddress
from distributed_provisioner.ssh import local
from distributed_provisioner.ssh.local import is_local


def own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


@pytest.mark.parametrize("entry", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "localhost."])
def test_loopback_is_this_machine(entry: str) -> None:
    """The default, in all its spellings."""
    assert is_local(HostAddress.parse(entry))


def test_its_own_names_and_addresses_are_this_machine() -> None:
    """People put all machines of a cluster into remote_hosts, the server's too."""
    assert is_local(HostAddress(socket.gethostname()))
    assert is_local(HostAddress(own_address()))


@pytest.mark.parametrize("entry", ["me@localhost", "localhost:22", "me@127.0.0.1", "[::1]:2222"])
def test_with_a_user_or_a_port_it_is_ssh(entry: str) -> None:
    """reference.md, section 4: how to be another user on this machine."""
    assert not is_local(HostAddress.parse(entry))


@pytest.mark.parametrize(
    "entry",
    ["192.0.2.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "host1", "localhost.example", "2001:db8::1"],
)
def test_other_machines_are_not_this_one(entry: str) -> None:
    """Kernels must not run here by mistake."""
    assert not is_local(HostAddress(entry))


def test_a_name_server_that_hangs_does_not_stop_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The I/O loop carries all kernels' messages."""
    monkeypatch.setattr(local, "_full_name", local._FullName())
    monkeypatch.setattr(socket, "getfqdn", lambda: time.sleep(3) or "x")  # type: ignore[func-returns-value]
    start = time.monotonic()
    assert not is_local(HostAddress(socket.gethostname().partition(".")[0] + ".of.another.domain"))
    assert not is_local(HostAddress("somebody.else"))
    assert time.monotonic() - start < 1


def test_its_full_name_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hostname -f` is what people copy."""
    name = socket.gethostname().partition(".")[0] + ".cluster.example"
    monkeypatch.setattr(local, "_full_name", local._FullName())
    monkeypatch.setattr(socket, "getfqdn", lambda: name)
    assert is_local(HostAddress(name))
