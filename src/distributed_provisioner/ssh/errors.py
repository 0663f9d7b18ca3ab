"""Foreign errors become ours here: one table. What is not in it is a bug of ours and stays as it is.

Refused, no route, unknown name and time-outs come as plain OSError and TimeoutError, with no text; the rest shares `asyncssh.Error`.
Every message is one sentence that says what happened, with the host's own words, and one that says what to do.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass, field
from typing import Literal

import asyncssh

from ..errors import (
    AuthenticationError,
    ConnectionLostError,
    HostError,
    HostSetupError,
    HostUnreachableError,
    ProvisionerError,
)
from .bootstrap import words
from .tickets import CENTER_ADVICE, Ticket

FORWARDING_OPTIONS = (
    "AllowTcpForwarding (for Unix sockets, too), AllowStreamLocalForwarding, DisableForwarding and PermitOpen"
)


@dataclass
class Progress:
    """How far a connection has come, and what was said on the way; kept up to date by whoever connects."""

    host: str
    """For messages: the entry."""
    at: str
    """`address:port` or the proxy command: what was being talked to."""
    user: str = ""
    via: str = ""
    """` through the jump host …`, or nothing."""
    stage: Literal["configuration", "ticket", "name", "connection"] = "connection"
    """What is under way until `connected`."""
    connected: bool = False
    banner: str = ""
    """The host's SSH version, once it has sent it."""
    authenticating: bool = False
    allowed: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    needs_ticket: bool = False
    """Whether an option asks for a Kerberos ticket."""
    ticket: Ticket | None = None
    """What was found when one was looked for."""
    ticket_shown: bool = False
    """Whether the host asked for it."""
    proxy: bool = False
    proxy_words: bytes = b""


class Dropped(HostUnreachableError):
    """The host ended the connection before its first word: too many log-ins at once (MaxStartups). Worth another try."""


def translate(error: BaseException, progress: Progress) -> BaseException:
    """Our error for a foreign one, or the same error if it is ours or nobody knows it."""
    if isinstance(error, (ProvisionerError, asyncio.CancelledError)):
        return error
    for kinds, make in _TABLE:
        if isinstance(error, kinds):
            ours = make(error, progress)
            if ours is not None:
                return ours
    return error


def lost(host: str, error: BaseException | None) -> ConnectionLostError:
    """A connection that worked has ended."""
    reason = str(error) if error is not None and str(error) else "it was closed"
    if "keepalive" in reason:
        reason = "the host has fallen silent"
    return ConnectionLostError(
        f"The connection to {host} was lost: {reason}. Kernels go on there; it is made again by itself.",
        host=host,
    )


def timed_out(progress: Progress, timeout: float) -> HostUnreachableError:
    """Which of the things that can take too long took too long."""
    p = progress
    if p.proxy and not p.banner:
        return _unreachable(
            p,
            f"the proxy command has not brought an SSH banner within {timeout:g} s{_proxy_words(p)}",
            f"Try the command by hand: {p.at}",
        )
    if p.stage != "connection":
        return _too_slow_before(p, timeout)
    if not p.connected:
        return _unreachable(
            p,
            f"{p.at} did not answer at all within {timeout:g} s",
            "Check that the host is up, that its address is right, and that no firewall drops port 22's traffic, or raise connect_timeout.",
        )
    if not p.banner:
        return _unreachable(
            p,
            f"{p.at} accepted the connection but sent no SSH banner within {timeout:g} s",
            "Its sshd hangs or is stopped, or something else listens there.",
        )
    return _unreachable(
        p,
        f"the log-in did not end within {timeout:g} s",
        "The host is overloaded, or its way of checking users (PAM, LDAP, DNS) hangs; raise connect_timeout if that is normal.",
    )


def _too_slow_before(p: Progress, timeout: float) -> HostUnreachableError:
    """The limit was reached before there was a connection to wait for."""
    if p.stage == "configuration":
        return _unreachable(
            p,
            f"ssh's configuration was not read within {timeout:g} s",
            "Look for a Match exec in ~/.ssh/config whose command hangs, or a file on a file system that does.",
        )
    if p.stage == "ticket":
        return _unreachable(
            p,
            f"no key distribution center answered within {timeout:g} s when a Kerberos ticket for {_name(p)} was asked for",
            CENTER_ADVICE,
        )
    name = _name(p)
    return _unreachable(
        p,
        f"its name {name} was not resolved within {timeout:g} s",
        f"Check the name server (`getent hosts {name}` should answer at once), or raise connect_timeout.",
    )


# --- the table ------------------------------------------------------------------------------------------------------------------------


def _unreachable(
    p: Progress, what: str, advice: str, kind: type[HostError] = HostUnreachableError
) -> HostUnreachableError:
    error = kind(f"{p.host} cannot be reached{p.via}: {what}. {advice}", host=p.host)
    assert isinstance(error, HostUnreachableError)
    return error


def _refused(error: BaseException, p: Progress) -> HostError:
    return _unreachable(
        p,
        f"{p.at} refused the connection",
        "Check that sshd runs there and that the port is right (ssh_port, or user@host:port).",
    )


def _reset(error: BaseException, p: Progress) -> HostError:
    if p.proxy and not p.banner:
        return _proxy_failed(error, p)
    if p.banner:
        return _unreachable(
            p,
            f"{p.at} ended the connection during the log-in ({error or 'without a word'})",
            "Its sshd's log says why.",
        )
    return _unreachable(
        p,
        f"{p.at} ended the connection before its SSH banner",
        "If many log in at once, raise MaxStartups in its sshd_config; else its sshd's log says why.",
        Dropped,
    )


def _proxy_failed(error: BaseException, p: Progress) -> HostError:
    return _unreachable(
        p,
        f"the proxy command ended before the SSH banner came{_proxy_words(p)}",
        f"Try it by hand: {p.at}",
    )


def _proxy_words(p: Progress) -> str:
    said = words(p.proxy_words)
    return f" and said: {said}" if said else ""


def _unknown_name(error: BaseException, p: Progress) -> HostError:
    return _unreachable(
        p,
        f"its name {_name(p)} is unknown ({_strerror(error)})",
        "Correct the name in remote_hosts, or give it a HostName in ~/.ssh/config.",
    )


def _name(p: Progress) -> str:
    return p.at.rpartition(":")[0] or p.at


def _no_route(error: BaseException, p: Progress) -> HostError:
    return _unreachable(
        p,
        f"there is no route to {p.at} ({_strerror(error)})",
        "Check the network between here and there, and that the host is up.",
    )


def _os_error(error: BaseException, p: Progress) -> HostError | None:
    assert isinstance(error, OSError)
    if error.errno in (
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
    ):
        return _no_route(error, p)
    if isinstance(error, TimeoutError):
        return _unreachable(
            p, f"{p.at} did not answer at all", "Check that the host is up and that its address is right."
        )
    if error.errno == errno.ECONNREFUSED:
        return _refused(error, p)
    return _unreachable(
        p,
        f"the connection to {p.at} failed ({_strerror(error)})",
        "Try `ssh` to the same host by hand: it will say more.",
    )


def _denied(error: BaseException, p: Progress) -> HostError:
    allowed = ", ".join(p.allowed) or "neither keys nor passwords"
    shown = [f"the Kerberos ticket of {p.ticket.owner}"] if p.ticket and p.ticket_shown else []
    tried = ", ".join([*shown, *p.tried]) or "no key, no password"
    missing = (
        [f"no Kerberos ticket: {p.ticket.problem}"]
        if p.ticket and p.ticket.problem and _is_about_tickets(p)
        else []
    )
    unusable = [*missing, *p.skipped]
    skipped = f"; not usable: {'; '.join(unusable)}" if unusable else ""
    return AuthenticationError(
        f"{p.host}{p.via} refused user {p.user} (it allows: {allowed}; tried: {tried}{skipped}). {_denied_advice(p)}",
        host=p.host,
    )


def _denied_advice(p: Progress) -> str:
    ticket = p.ticket
    if ticket is not None and _is_about_tickets(p):
        if ticket.problem:
            return ticket.advice
        if p.ticket_shown:
            return (
                f"Check that {ticket.owner} may log in as {p.user} there (~/.k5login), "
                "and that /etc/krb5.keytab there holds the host's key of now."
            )
        return "Its sshd needs GSSAPIAuthentication yes and the host's key in /etc/krb5.keytab."
    return (
        "Check the user name, and that one of these keys is in ~/.ssh/authorized_keys there; "
        "a key with a passphrase must be in the agent (ssh-add)."
    )


def _is_about_tickets(p: Progress) -> bool:
    """Debian's ssh_config asks for tickets everywhere: who has none, and a host that takes keys, has another fault to look for."""
    return p.needs_ticket or p.ticket_shown or not p.allowed


def _disconnected(error: BaseException, p: Progress) -> HostError:
    reason = str(error)
    if "uthentication" in reason:
        return AuthenticationError(
            f"{p.host}{p.via} refused user {p.user}: {reason} (tried: {', '.join(p.tried) or 'nothing'}). "
            "Name the right key with IdentityFile and IdentitiesOnly yes in ~/.ssh/config.",
            host=p.host,
        )
    if isinstance(error, asyncssh.ConnectionLost):
        return _reset(error, p)
    return _unreachable(p, f"the host says: {reason}", "Its sshd's log says more.")


def _no_agreement(error: BaseException, p: Progress) -> HostError:
    return _unreachable(
        p,
        f"no agreement on how to encrypt or sign ({error})",
        "Allow one of the host's algorithms with Ciphers, KexAlgorithms or HostKeyAlgorithms in ~/.ssh/config, or upgrade its sshd.",
    )


def _no_ssh(error: BaseException, p: Progress) -> HostError:
    if "uthentication" in str(error):
        return _disconnected(error, p)
    return _unreachable(
        p, f"what answers at {p.at} does not speak SSH 2 properly ({error})", "Check the port."
    )


def _channel_refused(error: BaseException, p: Progress) -> HostError:
    assert isinstance(error, asyncssh.ChannelOpenError)
    if p.via and not p.connected:
        if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
            return HostSetupError(
                f"{p.host} cannot be reached{p.via}: the jump host forbids forwarding ({error}). "
                "Its sshd needs AllowTcpForwarding yes (and a PermitOpen that names the host).",
                host=p.host,
            )
        return _unreachable(
            p,
            f"the jump host could not connect to {p.at} ({error})",
            "Check the name and the port as the jump host sees them.",
        )
    return HostSetupError(
        f"{p.host} lets {p.user} log in but opens no session ({error}). "
        "Its sshd's MaxSessions must be at least 1, and no forced command or subsystem may replace the shell.",
        host=p.host,
    )


def _strerror(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


_TABLE = (
    (socket.gaierror, _unknown_name),
    (ConnectionRefusedError, _refused),
    ((ConnectionResetError, BrokenPipeError, ConnectionAbortedError), _reset),
    ((UnicodeError,), _unknown_name),
    (OSError, _os_error),
    (asyncssh.PermissionDenied, _denied),
    ((asyncssh.KeyExchangeFailed,), _no_agreement),
    (
        (asyncssh.ProtocolError, asyncssh.ProtocolNotSupported, asyncssh.MACError, asyncssh.CompressionError),
        _no_ssh,
    ),
    (asyncssh.ChannelOpenError, _channel_refused),
    (asyncssh.DisconnectError, _disconnected),
    (asyncssh.Error, _no_ssh),
)
