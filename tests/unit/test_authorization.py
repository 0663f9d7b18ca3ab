"""Who may start a kernel, and which host a request may pin it to."""

from __future__ import annotations

import os
import pwd
import socket

import pytest

from distributed_provisioner.authorization import authorize, requested_pin, requesting_user, resolve_pin
from distributed_provisioner.errors import ConfigurationError, NotAuthorizedError
from distributed_provisioner.models import HostAddress
from distributed_provisioner.settings import Settings, resolve


def settings(**options: object) -> Settings:
    return resolve({}, options, {})


def pinned(text: str, *entries: str, **options: object) -> str:
    return str(resolve_pin(text, settings(remote_hosts=list(entries), **options)))


def test_the_user_is_the_requests_else_the_servers() -> None:
    """A gateway's users would all be taken for the server's own."""
    own = pwd.getpwuid(os.getuid()).pw_name
    assert requesting_user({"KERNEL_USERNAME": "ann", "USER": "bob"}) == "ann"
    assert requesting_user({"KERNEL_USERNAME": ""}) == requesting_user({"USER": "mallory"}) == own


def test_everybody_but_root_by_default() -> None:
    """Kernels of root would be started where nobody asked for it."""
    authorize("ann", settings())
    with pytest.raises(NotAuthorizedError) as caught:
        authorize("root", settings())
    assert str(caught.value) == (
        "User 'root' is not authorized to start this kernel, because unauthorized_users has that name. Set KERNEL_USERNAME to the"
        " user that the kernel is for, or take the name out of unauthorized_users."
    )


def test_authorized_users_are_the_only_ones() -> None:
    """A kernel that is kept for some would be open to all; or a name in another case would do."""
    some = settings(authorized_users=["ann"])
    authorize("ann", some)
    for user in ("bob", "Ann", "ANN", ""):
        with pytest.raises(NotAuthorizedError) as caught:
            authorize(user, some)
        assert str(caught.value) == (
            f"User '{user}' is not authorized to start this kernel, because authorized_users does not have that name. Set"
            " KERNEL_USERNAME to the user that the kernel is for, or add the name to authorized_users."
        )


def test_unauthorized_wins() -> None:
    """A name on both lists would be let in."""
    with pytest.raises(NotAuthorizedError, match="unauthorized_users has"):
        authorize("ann", settings(authorized_users="ann", unauthorized_users="ann"))


def test_set_but_empty_refuses_nobody() -> None:
    """A site that runs everything as root could start no kernel."""
    authorize("root", settings(unauthorized_users=""))


@pytest.mark.parametrize(
    ("text", "entries", "expected"),
    [
        ("host1", ["host0", "host1"], "host1"),
        ("HOST1.Acme.COM", ["host1.acme.com"], "host1.acme.com"),
        ("host1.acme.com.", ["host1.acme.com"], "host1.acme.com"),
        ("ann@host1:2222", ["host1", "ann@host1:2222"], "ann@host1:2222"),
        ("host1", ["ann@host1:2222"], "ann@host1:2222"),
        ("host1", ["ann@host1:2222", "host1"], "host1"),
        ("host1:2222", ["host1:2222"], "host1:2222"),
        ("ann@host1", ["ann@host1:2222"], "ann@host1:2222"),
        ("host1", ["host0.acme.com", "host1.acme.com"], "host1.acme.com"),
        ("host1", ["host1.acme.com", "host1"], "host1"),
        ("[::1]", ["[0:0::1]:22"], "[0:0::1]:22"),
        ("2001:db8::1", ["[2001:DB8:0::1]"], "[2001:DB8:0::1]"),
        ("127.0.0.1", ["localhost"], "localhost"),
        (socket.gethostname(), ["host1", "localhost"], "localhost"),
        ("localhost", [socket.gethostname()], socket.gethostname()),
        ("localhost", ["ann@localhost"], "ann@localhost"),
    ],
)
def test_spellings_of_a_pin(text: str, entries: list[str], expected: str) -> None:
    """A host that is configured would be refused because it was written in another way."""
    assert pinned(text, *entries).lower() == str(HostAddress.parse(expected)).lower()


def test_the_remote_user_may_be_spelt_out() -> None:
    """ann@host1 is what host1 means where remote_user is ann."""
    assert pinned("ann@host1", "host1", remote_user="ann") == "host1"


@pytest.mark.parametrize(
    ("text", "entries", "what"),
    [
        (
            "host9",
            ["host1", "ann@host2:22"],
            "is not among the configured hosts. Use one of: host1, ann@host2:22.",
        ),
        ("root@host1", ["host1"], "is not among the configured hosts. Use one of: host1."),
        ("host1:2222", ["host1"], "is not among the configured hosts. Use one of: host1."),
        (
            "host1",
            ["host1.a.com", "host1.b.com"],
            "could be host1.a.com or host1.b.com. Use one of: host1.a.com, host1.b.com.",
        ),
        ("10", ["10.0.0.1"], "is not among the configured hosts. Use one of: 10.0.0.1."),
        ("host1.acme.com", ["host1"], "is not among the configured hosts. Use one of: host1."),
        ("127.0.0.1", ["ann@localhost"], "is not among the configured hosts. Use one of: ann@localhost."),
        ("$(id)", ["host1"], "is not a host. Use one of: host1."),
    ],
)
def test_pins_that_are_refused(text: str, entries: list[str], what: str) -> None:
    """Anybody who may start a kernel could make the server log in to any machine, as any user."""
    with pytest.raises(ConfigurationError) as caught:
        pinned(text, *entries)
    assert str(caught.value) == f"KERNEL_REMOTE_HOST is '{text}', which {what}"


def test_any_host_where_the_site_allows_it() -> None:
    """allow_any_pinned_host would allow nothing; or a configured entry would lose its user and port."""
    assert pinned("bob@host9:99", "host1", allow_any_pinned_host=True) == "bob@host9:99"
    assert pinned("host1", "ann@host1:2222", allow_any_pinned_host=True) == "ann@host1:2222"
    assert pinned("host1", "host1.a", "host1.b", allow_any_pinned_host=True) == "host1"


def test_no_pin() -> None:
    """A variable that is empty would pin every kernel to a host without a name."""
    assert requested_pin({}, settings()) is None
    assert requested_pin({"KERNEL_REMOTE_HOST": " "}, settings()) is None
    assert requested_pin({"KERNEL_REMOTE_HOST": "LOCALHOST"}, settings()) == HostAddress("localhost")


def test_no_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow or broken DNS server would stop every start request."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("DNS")

    for name in ("getaddrinfo", "gethostbyname", "getfqdn", "gethostbyname_ex", "gethostbyaddr"):
        monkeypatch.setattr(socket, name, forbidden)
    assert pinned("host1", "host1.acme.com", "localhost") == "host1.acme.com"
    with pytest.raises(ConfigurationError):
        pinned("host9", "host1.acme.com", "localhost")
