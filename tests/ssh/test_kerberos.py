"""Log-in with a Kerberos ticket (GP_REMOTE_GSS_SSH): a real realm, and a host that takes tickets alone."""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import AsyncKernelManager

from distributed_provisioner.errors import AuthenticationError, HostError, HostUnreachableError
from distributed_provisioner.hosts import HostPool
from distributed_provisioner.models import KernelState
from tests.cluster.real_kernels import host_of, kernels_on, until, write_spec
from tests.faults.work import at_work, do, left_on, pid_of, steady, until_state

from .conftest import Get, Run
from .kerberos import REALM, Realm, missing

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster, Host

pytestmark = pytest.mark.cluster

SSHD = {"GSSAPIAuthentication": "yes", "GSSAPIStrictAcceptorCheck": "no", "PubkeyAuthentication": "no"}
"""The principal is the host's address, as the hosts have no names that can be looked up: so the check against the host's name is off."""


@pytest.fixture(scope="module")
def whole_realm(cluster: Cluster, session_directory: Path) -> Iterator[Realm]:
    """A realm with two users and a host that is in it."""
    if importlib.util.find_spec("gssapi") is None:
        pytest.skip(
            "the Python package gssapi is not installed: ./run test installs it where it finds a compiler"
        )
    if programs := missing():
        pytest.skip(f"not installed: {', '.join(programs)}")
    realm = Realm(Path(tempfile.mkdtemp(prefix="krb5-", dir=session_directory)))
    try:
        realm.start()
        for user in (cluster.user, "mallory"):
            realm.add_user(user)
        realm.admit(cluster["host2"])
        yield realm
    finally:
        realm.stop_center()


@pytest.fixture
def realm(whole_realm: Realm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Realm]:
    """The realm, with this process in it, and nobody's ticket."""
    for name, value in whole_realm.environment.items():
        monkeypatch.setenv(name, value)
    whole_realm.kdestroy()
    yield whole_realm
    whole_realm.silence_center(False)


@pytest.fixture
def member(
    cluster: Cluster, realm: Realm, run: Run, ssh_config: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    """A host that takes tickets alone. Afterwards nothing may be left on it."""
    HostPool._current = None
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")
    monkeypatch.setenv("GP_KEEPALIVE_INTERVAL", "1")
    host = cluster["host2"]
    host.configure_sshd(**SSHD)
    yield host
    host.heal()
    host.start_sshd()
    host.configure_sshd(**dict.fromkeys(SSHD))
    deadline = time.monotonic() + 15
    while (left := left_on(cluster)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def refused(run: Run, get: Get, host: Host, **login: Any) -> HostError:
    """The error that connecting with a ticket gives."""
    with pytest.raises(HostError) as caught:
        run(get(host.name, **{"gss": True, **login}).connect())
    print(caught.value)
    return caught.value


# --- with a ticket ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["environment", "kernel.json", "ssh configuration"])
async def test_a_kernel_starts_with_a_ticket_and_nothing_else(
    way: str, cluster: Cluster, realm: Realm, member: Host, ssh_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: sites with Kerberos cannot use this at all."""
    await do(realm.kinit, cluster.user)
    before = len(member.sshd_log())
    if way == "environment":
        monkeypatch.setenv("GP_REMOTE_GSS_SSH", "true")
    elif way == "ssh configuration":
        with ssh_config.open("a") as file:
            file.write("\nHost *\n  GSSAPIAuthentication yes\n")
    options: dict[str, Any] = {"remote_gss_ssh": True} if way == "kernel.json" else {}
    async with at_work(write_spec(remote_hosts=[member.name], **options)) as (manager, notebook):
        await notebook.run(5, 0).check()
        assert host_of(manager) == member.name
    log = member.sshd_log()[before:]
    assert f"Accepted gssapi-with-mic for {cluster.user}" in log
    assert f"{cluster.user}@{REALM}" in log
    assert "publickey" not in log
    assert not kernels_on(member)


async def test_a_line_that_was_cut_is_made_again_with_the_ticket(
    cluster: Cluster, realm: Realm, member: Host
) -> None:
    """If it fails: kernels on such hosts are lost with the first hiccup of the network."""
    await do(realm.kinit, cluster.user)
    spec = write_spec(remote_hosts=[member.name], remote_gss_ssh=True)
    async with at_work(spec) as (manager, notebook):
        pid, cell = pid_of(manager), notebook.run(100, 0.04)
        await cell.until_line(5)
        await do(member.cut)
        await until_state(manager, KernelState.UNREACHABLE)
        await do(member.heal)
        await cell.check()
        assert pid_of(manager) == pid


async def test_a_ticket_that_ran_out_costs_no_kernel(
    cluster: Cluster, realm: Realm, member: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """If it fails: tickets live ten hours, and what computes over night is lost or out of reach in the morning."""
    await do(realm.kinit, cluster.user)
    caplog.set_level("DEBUG", "distributed_provisioner")
    spec = write_spec(remote_hosts=[member.name], remote_gss_ssh=True)
    async with at_work(spec) as (manager, notebook):
        pid, cell = pid_of(manager), notebook.run(100, 0.04)
        await cell.until_line(5)
        realm.kdestroy()
        await do(member.kill_sshd)
        await do(member.start_sshd)
        await until(lambda: "no Kerberos ticket" in caplog.text)
        await until_state(manager, KernelState.UNREACHABLE)
        await do(realm.kinit, cluster.user)
        await cell.check()
        assert pid_of(manager) == pid


# --- without, each with its sentence ----------------------------------------------------------------------------------------------


async def test_a_launch_without_a_ticket_says_what_to_do(realm: Realm, member: Host) -> None:
    """If it fails: the user reads `permission denied`, and nobody thinks of kinit."""
    manager = AsyncKernelManager(kernel_name=write_spec(remote_hosts=[member.name], remote_gss_ssh=True))
    with pytest.raises(Exception, match="kinit") as caught:
        await manager.start_kernel()
    assert "no Kerberos ticket: No Kerberos credentials available" in str(caught.value)


def test_no_ticket_and_an_expired_one_are_told_apart(
    cluster: Cluster, realm: Realm, member: Host, run: Run, get: Get
) -> None:
    """If it fails: who has run kinit in the morning does not know what is wrong in the evening."""
    none = refused(run, get, member)
    assert isinstance(none, AuthenticationError)
    assert f"{member.name} refused user {cluster.user} (it allows: neither keys nor passwords" in str(none)
    assert "not usable: no Kerberos ticket: No Kerberos credentials available" in str(none)
    assert "). Get one with `kinit` as the user who runs the server" in str(none)
    realm.kinit(cluster.user, seconds=1)
    time.sleep(2.1)
    expired = refused(run, get, member)
    assert isinstance(expired, AuthenticationError)
    assert "no Kerberos ticket: it has expired). Get one with `kinit`" in str(expired)
    realm.kinit(cluster.user)
    assert run(get(member.name, gss=True).connect()).user == cluster.user  # with no restart of anything


def test_somebody_elses_ticket_is_told_with_both_names(
    cluster: Cluster, realm: Realm, member: Host, run: Run, get: Get
) -> None:
    """If it fails: one looks for a mistake in the ticket, where ~/.k5login or remote_user is at fault."""
    realm.kinit("mallory")
    text = str(refused(run, get, member))
    assert f"tried: the Kerberos ticket of mallory@{REALM}" in text
    assert f"Check that mallory@{REALM} may log in as {cluster.user} there (~/.k5login)" in text
    member.path(f"/home/{cluster.user}/.k5login").write_text(f"mallory@{REALM}\n")
    try:
        assert run(get(member.name, gss=True).connect()).user == cluster.user
    finally:
        member.path(f"/home/{cluster.user}/.k5login").unlink()


def test_a_host_that_is_not_of_the_realm_is_told(
    cluster: Cluster, realm: Realm, member: Host, run: Run, get: Get
) -> None:
    """If it fails: the administrator does not learn which principal is missing, or that sshd is not set up for tickets."""
    realm.kinit(cluster.user)
    stranger = cluster["host1"]
    stranger.configure_sshd(PubkeyAuthentication="no", KbdInteractiveAuthentication="no")
    try:
        text = str(refused(run, get, stranger))
        assert f"Server host/{stranger.address}@{REALM} not found in Kerberos database" in text
        assert f"The realm needs a principal for the host (host/{stranger.address})" in text
    finally:
        stranger.configure_sshd(PubkeyAuthentication=None, KbdInteractiveAuthentication=None)
    member.configure_sshd(GSSAPIAuthentication="no")
    assert "Its sshd needs GSSAPIAuthentication yes" in str(refused(run, get, member))
    member.configure_sshd(GSSAPIAuthentication="yes")
    member.path("/etc/krb5.keytab").rename(member.path("/etc/krb5.keytab.away"))
    try:
        assert "/etc/krb5.keytab" in str(refused(run, get, member))
    finally:
        member.path("/etc/krb5.keytab.away").rename(member.path("/etc/krb5.keytab"))


def test_a_missing_package_is_told_by_a_host_that_takes_tickets_alone(
    realm: Realm, member: Host, run: Run, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: the option seems to do nothing, as the package is an extra."""
    monkeypatch.setattr("distributed_provisioner.ssh.config.find_spec", lambda name: None)
    text = str(refused(run, get, member))
    assert "no Kerberos ticket: the Python package gssapi is not installed here" in text
    assert "pip install 'distributed-provisioner[gssapi]'" in text


# --- a center that is away ----------------------------------------------------------------------------------------------------------


def test_a_center_that_is_down_is_told(
    cluster: Cluster, realm: Realm, member: Host, run: Run, get: Get
) -> None:
    """If it fails: the host is blamed for what the key distribution center does not do."""
    realm.kinit(cluster.user)
    realm.stop_center()
    try:
        text = str(refused(run, get, member))
        assert f"no Kerberos ticket: Cannot contact any KDC for realm '{REALM}'" in text
        assert "Check that this machine reaches the key distribution center" in text
    finally:
        realm.start_center()
    run(get(member.name, gss=True).connect())
    realm.stop_center()  # the host's ticket is in the cache now
    try:
        run(get(member.name, gss=True).close())
        assert run(get(member.name, gss=True, connect_timeout=9).connect()).user == cluster.user
    finally:
        realm.start_center()


async def test_a_center_that_hangs_holds_up_neither_others_nor_keys(
    cluster: Cluster, realm: Realm, member: Host, get: Get
) -> None:
    """If it fails: all kernels of the server stand still while Kerberos' library waits, or a key that would do is not tried."""
    await do(realm.kinit, cluster.user)
    realm.silence_center(True)
    async with steady():
        error = await do(_error_of, get, member, connect_timeout=2)
        assert isinstance(error, HostUnreachableError)
        assert "no key distribution center answered within 2 s" in str(error)
        await do(member.configure_sshd, PubkeyAuthentication=None)
        welcome = await asyncio.wrap_future(_connecting(get, member, connect_timeout=20))
        assert welcome.user == cluster.user
    await until(lambda: "Accepted publickey" in member.sshd_log())


def _connecting(get: Get, host: Host, **login: Any) -> Any:
    from distributed_provisioner.io_thread import IOThread

    return IOThread.current().submit(get(host.name, gss=True, **login).connect())


def _error_of(get: Get, host: Host, **login: Any) -> BaseException | None:
    error: BaseException | None = _connecting(get, host, **login).exception(30)
    return error
