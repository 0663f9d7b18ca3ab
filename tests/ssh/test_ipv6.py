"""Hosts that are named by an IPv6 address: in remote_hosts, in known_hosts, and in what is said about them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.errors import HostKeyError, HostUnreachableError
from distributed_provisioner.ssh import Attachment

from .conftest import Get, Run
from .kernels import client_of, closing, forget, launch_params, process_of, value_of

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster, Host

pytestmark = pytest.mark.cluster


@pytest.fixture
def address(host: Host) -> str:
    """The host's IPv6 address."""
    if not host.address6:
        pytest.skip("other platform: this machine has no IPv6")
    return host.address6


@pytest.fixture
def known_hosts(cluster: Cluster, ssh_config: Path) -> Path:
    """The user's ~/.ssh/known_hosts, to be written over; no address has a Host section in ~/.ssh/config."""
    ssh = cluster.home / ".ssh"
    ssh_config.write_text(f"IdentityFile {ssh}/id_ed25519\nUserKnownHostsFile {ssh}/known_hosts\n")
    return ssh / "known_hosts"


@pytest.fixture
def second_port(host: Host) -> Iterator[int]:
    """sshd listens on two ports."""
    host.configure_sshd(Port="22\nPort 2244")
    yield 2244
    host.configure_sshd(Port=None)


@pytest.mark.parametrize("entry", ["{user}@[{address}]:{port}", "{user}@[{address}]", "{user}@{address}"])
def test_a_kernel_runs_on_a_host_named_by_its_ipv6_address(
    entry: str, cluster: Cluster, host: Host, address: str, known_hosts: Path, run: Run, get: Get
) -> None:
    """If it fails: networks without IPv4 or without names cannot be used."""
    known_hosts.write_text(f"{address} {host.host_key}\n")
    connection = get(entry.format(user=cluster.user, address=address, port=22))
    params = launch_params()

    async def launch(prefix: str) -> Attachment:
        await connection.connect()
        reply = await connection.request("launch", timeout=50, **params)
        return await connection.attach(process_of(connection.address, params, reply), prefix)

    with tempfile.TemporaryDirectory(prefix="dp-") as directory:
        attachment = run(launch(f"{directory}/k"))
        try:
            with closing(client_of(attachment, params["key"])) as client:
                client.wait_for_ready(30)
                assert value_of(client, "__import__('socket').gethostname()") == repr(host.name)
        finally:
            run(forget(connection, params))
            run(attachment.close())


def test_another_port_has_its_own_line_in_known_hosts(
    cluster: Cluster, host: Host, address: str, known_hosts: Path, second_port: int, run: Run, get: Get
) -> None:
    """If it fails: what ssh and ssh-keyscan wrote is not found, or the command in the message leads nowhere."""
    known_hosts.write_text("")
    entry = f"{cluster.user}@[{address}]:{second_port}"
    with pytest.raises(HostKeyError) as caught:
        run(get(entry).connect())
    assert f"The host key of {entry} is unknown" in str(caught.value)
    assert f"[{address}]:{second_port} is in no known_hosts file" in str(caught.value)
    assert f"ssh-keyscan -p {second_port} {address} >> ~/.ssh/known_hosts" in str(caught.value)
    known_hosts.write_text(f"[{address}]:{second_port} {host.host_key}\n")
    assert run(get(entry).connect()).hostname == host.name


def test_an_address_may_be_spelled_at_length(
    cluster: Cluster, host: Host, address: str, known_hosts: Path, run: Run, get: Get
) -> None:
    """ssh looks for the short form in known_hosts however the address is written: if it fails, what works there does not here."""
    known_hosts.write_text(f"{address} {host.host_key}\n")
    left, _, last = address.rpartition("::")
    long = ":".join([*left.split(":"), "0", "0", "0", last]).upper()
    assert run(get(f"{cluster.user}@[{long}]").connect()).hostname == host.name


def test_a_jump_host_named_by_its_ipv6_address(
    cluster: Cluster, host: Host, address: str, known_hosts: Path, ssh_config: Path, run: Run, get: Get
) -> None:
    """If it fails: a gateway without a name cannot be used."""
    inner = cluster["host1"]
    known_hosts.write_text(f"{address} {host.host_key}\n{inner.address6} {inner.host_key}\n")
    user = cluster.user
    ssh_config.write_text(
        f"Host inner\n HostName {inner.address6}\n User {user}\n ProxyJump {user}@[{address}]:22\n"
        f"Host *\n{ssh_config.read_text()}"
    )
    assert run(get("inner").connect()).hostname == inner.name


def test_a_refusal_names_the_address_in_brackets(
    cluster: Cluster, host: Host, address: str, known_hosts: Path, run: Run, get: Get
) -> None:
    """If it fails: the port cannot be told from the address."""
    with pytest.raises(HostUnreachableError) as caught:
        run(get(f"[{address}]:2255").connect())
    assert f"[{address}]:2255 cannot be reached: [{address}]:2255 refused the connection" in str(caught.value)
