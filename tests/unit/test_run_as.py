"""Whom kernels are run as: what settles it, what keeps it, and what is told where it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed_provisioner.adoption import Adoption, configured_places, with_password
from distributed_provisioner.authorization import for_user, requested_pin, user_of
from distributed_provisioner.errors import ConfigurationError, HostUnreachableError, ProtocolError, RunAsError
from distributed_provisioner.finding import Found, Place
from distributed_provisioner.hosts import HostPool
from distributed_provisioner.kernel_log import Log
from distributed_provisioner.models import (
    HostAddress,
    HostCondition,
    LaunchRequest,
    Login,
    RemoteProcess,
    is_account_name,
)
from distributed_provisioner.persistence import login_from_json, login_to_json
from distributed_provisioner.server_hosts import HostHints
from distributed_provisioner.settings import ServerSettings, Settings, resolve
from distributed_provisioner.ssh import Connections
from distributed_provisioner.ssh.bootstrap import MarkerSearch
from distributed_provisioner.ssh.forward import Attachment, Forward
from distributed_provisioner.ssh.line import Line
from distributed_provisioner.ssh.run_as import RunAs, refused, rule

MARKER = "0123456789abcdef" * 2
SUDO_SAYS = b"sudo: a password is required\n"


def settings(**options: object) -> Settings:
    return resolve({}, options, {})


def addresses(*texts: str) -> tuple[HostAddress, ...]:
    return tuple(map(HostAddress.parse, texts))


@pytest.mark.parametrize("name", ["alice", "a", "_x", "a.b-c_d", "ALICE", "3com", "a" * 255])
def test_names_that_accounts_have(name: str) -> None:
    """People with such a name could not have kernels of their own."""
    assert is_account_name(name)


@pytest.mark.parametrize(
    "name", ["", "-", "-u", "root -", "a b", "a;b", "$(x)", "`x`", "#0", "0", "17", ".", "..", ".a", "a\n", "a/b", "a@b", "ä", "a" * 256]
)  # fmt: skip
def test_names_that_none_has(name: str) -> None:
    """One of these would be an option, a uid, two words or a command to a shell or to sudo."""
    assert not is_account_name(name)


def test_impersonation_is_of_the_log_in() -> None:
    """Two users would share a connection, and with it a listener."""
    own = settings(impersonation_enabled=True, remote_hosts="host1,{username}@host2", remote_user="service")
    alice = for_user(own, {"KERNEL_USERNAME": "alice"})
    assert alice.login == replace(own.login, run_as="alice")
    assert alice.login.user == "service"
    assert alice.remote_hosts == addresses("host1", "alice@host2")
    assert for_user(settings(), {}) == settings()
    assert for_user(settings(), {"KERNEL_USERNAME": "-u root"}) == settings(), "nothing is made of the name"


def test_a_pin_may_leave_the_user_open() -> None:
    """What is written in remote_hosts could not be pinned to."""
    open_to_all = settings(remote_hosts="{username}@host1,{username}@host2")
    env = {"KERNEL_USERNAME": "alice", "KERNEL_REMOTE_HOST": "{username}@host2"}
    assert requested_pin(env, for_user(open_to_all, env)) == HostAddress("host2", "alice")
    with pytest.raises(ConfigurationError, match="not among the configured hosts"):
        requested_pin({**env, "KERNEL_REMOTE_HOST": "bob@host2"}, for_user(open_to_all, env))


def test_users_take_turns_in_one_rotation() -> None:
    """Every user's first kernel would go to the first host."""
    pool = HostPool()
    configured = addresses("{username}@host1", "{username}@host2", "{username}@host3")
    hosts = []
    for user in ("alice", "bob", "carol", "alice"):
        own = tuple(host.for_user(user) for host in configured)
        reservation = pool.reserve(LaunchRequest("k", own, ("x",), "key", rotation=configured))
        assert reservation is not None
        hosts.append(str(reservation.address))
    assert hosts == ["alice@host1", "bob@host2", "carol@host3", "alice@host1"]
    assert pool.load(HostAddress("host1", "bob")) == 2, (
        "kernels count for the machine, whose they are does not matter"
    )


def test_whom_kernels_run_as_is_written_down(tmp_path: Path) -> None:
    """The next start of the server would ask the service account's listener for them."""
    login = Login("service", "secret", run_as="alice")
    kept = login_to_json(login)
    assert login_from_json(kept, "secret") == login
    assert login_from_json({**kept, "run_as": None}, None).run_as is None
    assert login_from_json({name: kept[name] for name in kept if name != "run_as"}, None).run_as is None, (
        "older"
    )
    for name in ("-u root", "a;b", 5):
        with pytest.raises(ConfigurationError, match="no user's name"):
            login_from_json({**kept, "run_as": name}, None)
    hints = HostHints(tmp_path / "hosts.json")
    places = [Place(HostAddress("host1"), login), Place(HostAddress("host1"), replace(login, run_as="bob"))]
    hints.add(places)
    hints._file.flush(5)
    assert HostHints(tmp_path / "hosts.json").read("secret") == places


def test_a_servers_start_asks_no_place_that_is_none(isolated: Path, log: Log) -> None:
    """It would log in as a user called {username}, again and again."""
    config: dict[str, Any] = {"remote_hosts": ["{username}@host1", "host2"], "remote_pwd": "secret"}
    server = ServerSettings(**{})
    for name, value in config.items():
        setattr(server, name, value)
    server.settings = resolve({}, config)
    places = configured_places(server, {}, log)
    assert [str(place.address) for place in places] == ["host2"]
    hers = Place(HostAddress("host2"), Login(run_as="alice"))
    assert with_password(hers, places).login == Login(password="secret", run_as="alice")


def test_a_restart_after_adoption_is_for_the_same_user() -> None:
    """A user, who has what is kept with a kernel in hand, could write another's name there and be that one after a restart."""
    host = HostAddress("host1")
    assert user_of(settings(impersonation_enabled=True), host, Login(run_as="alice")) == "alice"
    assert user_of(settings(remote_user="{username}"), host, Login("alice")) == "alice"
    assert (
        user_of(settings(remote_hosts="{username}@host1"), HostAddress("host1", "alice"), Login()) == "alice"
    )
    assert user_of(settings(), host, Login("service")) == "", "all kernels are one user's, whatever is said"


def kernel_of(place: Place, generation: int) -> Found:
    ports = dict.fromkeys(("shell", "iopub", "stdin", "control", "hb"), 1)
    process = RemoteProcess(place.address, 1, 1, 1, generation, "ipc", "/tmp/x", ports, "")
    return Found("k", "python", process, place.login, "key", "hmac-sha256", None, {}, "idle")


def test_a_listener_cannot_claim_another_users_kernel(caplog: pytest.LogCaptureFixture, log: Log) -> None:
    """Alice sees the id of Bob's kernel by `ps`; when the server starts again his notebook would talk to a program of hers."""
    adoption = Adoption.__new__(Adoption)
    adoption._log, adoption._kernels = log, {}
    host = HostAddress("host1")
    for hers, his in (
        (Place(host, Login(run_as="alice")), Place(host, Login(run_as="bob"))),
        (Place(HostAddress("host2", "alice"), Login()), Place(HostAddress("host1", "bob"), Login())),
        (Place(host, Login("alice")), Place(host, Login("bob"))),
    ):
        adoption._earlier = {"k": kernel_of(his, 1)}
        assert adoption._is_its_users(kernel_of(his, 2))
        assert not adoption._is_its_users(kernel_of(hers, 2))
        assert "it is another user's" in caplog.text
        caplog.clear()
        adoption._earlier = {}
        assert adoption._is_its_users(kernel_of(hers, 1)), "nobody knows better"


def test_a_listener_cannot_send_the_server_to_sockets_of_its_own(tmp_path: Path) -> None:
    """Alice's listener could name a socket of the service account's: the server would open it for her."""
    opened: list[str] = []

    class Recorded(Forward):
        def resume(self, connection: Any) -> None:
            opened.append(str(self._far))

    forwards: list[Forward] = [Recorded("/x", "/tmp/service/1-1", "h"), Recorded("/y", ("127.0.0.1", 1), "h")]
    attachment = Attachment("ipc", "/x", {}, forwards)
    line: Any = Line(asyncio_task(), asyncio_task(), False)
    attachment.resume(line)
    assert opened == ["('127.0.0.1', 1)"]
    attachment.resume(replace(line, forwards_paths=True))
    assert opened[1:] == ["('127.0.0.1', 1)", "/tmp/service/1-1"]


async def test_nor_here_without_ssh(tmp_path: Path) -> None:
    """On localhost the server would connect to its own kernels' sockets for another user."""
    connections = Connections()
    process = kernel_of(Place(HostAddress("localhost"), Login()), 1).process
    with pytest.raises(ProtocolError, match="The listener of alice on localhost named sockets"):
        await connections.get(process.host, Login(run_as="alice")).attach(process, str(tmp_path / "k"))
    own = await connections.get(process.host, Login()).attach(process, str(tmp_path / "k"))
    assert own.ip == "/tmp/x"


@pytest.fixture
def log() -> Log:
    import logging

    return logging.getLogger("test")


async def test_a_host_that_is_away_is_so_for_all_its_users() -> None:
    """Each user's first launch would wait for a host of which it is known that it does not answer."""
    connections = Connections()
    host, login = HostAddress("host1"), Login(run_as="alice")
    hers = connections.get(host, login)
    assert connections.get(host, Login(run_as="bob")) is not hers
    assert connections.get(host, Login(run_as="alice")) is hers
    hers.unreachable_since, hers._returning = 1.0, asyncio_task()
    hers.error = HostUnreachableError("away")
    assert connections.condition(host, Login(run_as="bob")) == HostCondition(unreachable=True)
    assert connections.condition(host, Login(user="other", run_as="bob")) == HostCondition()
    hers.error = RunAsError("no rule")
    assert connections.condition(host, Login(run_as="bob")) == HostCondition()
    assert connections.condition(host, login) == HostCondition(unreachable=True)
    hers._returning = None


def asyncio_task() -> Any:
    """In place of an attempt to come back."""
    return object()


def search(*lines: str) -> MarkerSearch:
    found = MarkerSearch(MARKER)
    found.feed(b"Welcome!\n" + "".join(f"\n{MARKER}-{line}\n" for line in lines).encode())
    return found


def test_the_rule_names_the_user_and_the_program() -> None:
    """An administrator would have to find out by trial."""
    run_as = RunAs("alice", "jupyter")
    error = refused("host1", run_as, search("sudo /usr/bin/python3.12"), SUDO_SAYS)
    assert str(error) == (
        "host1 runs no kernels as alice: sudo does not let jupyter start /usr/bin/python3.12 as alice"
        " (sudo: a password is required). Add this line to /etc/sudoers.d/distributed-provisioner there"
        " (visudo -f /etc/sudoers.d/distributed-provisioner): jupyter ALL=(alice) NOPASSWD: /usr/bin/python3.12"
    )
    assert (error.user, error.host) == ("alice", "host1")
    assert "it has no such user" in str(refused("host1", run_as, search("no-user"), b""))
    assert "it has no sudo for jupyter" in str(refused("host1", run_as, search("no-sudo"), b""))
    assert str(refused("host1", run_as, search("other-name carol"), b"")) == (
        "host1 runs no kernels as alice: the account is called carol there. Set KERNEL_USERNAME to that."
    )
    tty = refused("host1", run_as, search("sudo /x"), b"sudo: sorry, you must have a tty to run sudo\n")
    assert str(tty).endswith("): Defaults:jupyter !requiretty")


def test_a_rule_is_what_sudoers_takes() -> None:
    """A path or a name with a sign that means something there would break the file, and sudo with it."""
    assert (
        rule(RunAs("ADMIN", "svc"), "/opt/a b,c/python3")
        == r'svc ALL=("ADMIN") NOPASSWD: /opt/a\ b\,c/python3'
    )
    assert (
        rule(RunAs("a.b-c", "me@corp"), "/usr/bin/python3")
        == '"me@corp" ALL=(a.b-c) NOPASSWD: /usr/bin/python3'
    )
    with pytest.raises(ValueError, match="not the name"):
        RunAs("-u root", "svc")
