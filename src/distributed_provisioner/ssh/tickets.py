"""The Kerberos ticket for a host, had before the log-in begins.

asyncssh goes on without a word when it has none, and its look into a keytab (KRB5_CLIENT_KTNAME) would ask the key distribution center in
the loop. What is fetched here lies in the credentials cache when asyncssh looks.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import asyncssh

from .beside import Lookups

TICKET_TIMEOUT = 5.0
"""Seconds in which the key distribution center has to answer. After that keys and the password have their turn."""
NAMES_OF_NO_HOST, SILENT_CENTER, UNKNOWN_CENTER = 2529638919, 2529639068, 2529639066
"""Codes of MIT Kerberos (and Heimdal): KRB5KDC_ERR_S_PRINCIPAL_UNKNOWN, KRB5_KDC_UNREACH, KRB5_REALM_UNKNOWN; as unsigned numbers."""
CENTER_ADVICE = (
    "Check that this machine reaches the key distribution center that /etc/krb5.conf names for the realm."
)
_INSTALL = "Install it for the Python of the server: pip install 'distributed-provisioner[gssapi]'"
_KINIT = (
    "Get one with `kinit` as the user who runs the server (where its KRB5CCNAME says); the next try finds it."
)


@dataclass(frozen=True)
class Ticket:
    """What a log-in with Kerberos at one host has to go on."""

    owner: str = ""
    """The principal; empty where there is no ticket."""
    problem: str = ""
    """Why there is no ticket, in the words of Kerberos."""
    advice: str = ""
    """A sentence that says what to do about the problem."""


async def fetch_ticket(host: str, lookups: Lookups, has_gssapi: bool) -> Ticket:
    """Find a ticket beside the loop: Kerberos' library waits for a center that hangs, and for name servers."""
    if not has_gssapi:
        return Ticket(problem="the Python package gssapi is not installed here", advice=_INSTALL)
    finding = lookups.get(("ticket", host), lambda: find_ticket(host))
    try:
        return await asyncio.wait_for(finding, TICKET_TIMEOUT)
    except asyncio.TimeoutError:
        problem = f"no key distribution center answered within {TICKET_TIMEOUT:g} s"
        return Ticket(problem=problem, advice=CENTER_ADVICE)


def find_ticket(host: str) -> Ticket:
    """Have a ticket for a host in the credentials cache, from the key distribution center if need be. For a worker thread.

    The environment counts as it is now: KRB5CCNAME, KRB5_CONFIG, KRB5_CLIENT_KTNAME.
    """
    try:
        import gssapi
        from gssapi.exceptions import GSSError
    except ImportError as error:
        return Ticket(problem=f"the Python package gssapi cannot be loaded ({error})", advice=_INSTALL)
    try:
        credentials = gssapi.Credentials(usage="initiate")
        owner = str(credentials.name)
        name = gssapi.Name(f"host@{host}", gssapi.NameType.hostbased_service)
        gssapi.SecurityContext(name=name, creds=credentials, usage="initiate").step()
    except GSSError as error:
        return _failed(host, error)
    return Ticket(owner=owner)


def was_shown(connection: asyncssh.SSHClientConnection) -> bool:
    """Whether the host has asked for the ticket that the connection had."""
    try:
        return bool(connection.get_gss_context().user)
    except (AssertionError, AttributeError):
        return False  # asyncssh begins a context when it is asked; before that there is nothing in it
    except Exception:
        return True  # begun, and not finished: the error is of gssapi, which need not be there


def _failed(host: str, error: Any) -> Ticket:
    from gssapi.exceptions import ExpiredCredentialsError, MissingCredentialsError

    said = "; ".join(error.get_all_statuses(error.min_code, False))
    if isinstance(error, ExpiredCredentialsError):
        return Ticket(problem="it has expired", advice=_KINIT)
    if isinstance(error, MissingCredentialsError):
        return Ticket(problem=said, advice=_KINIT)
    code = error.min_code & 0xFFFFFFFF
    if code == NAMES_OF_NO_HOST:
        advice = f"The realm needs a principal for the host ({_service(host)}), and the host its key in /etc/krb5.keytab."
        return Ticket(problem=said, advice=advice)
    if code in (SILENT_CENTER, UNKNOWN_CENTER):
        return Ticket(problem=said, advice=CENTER_ADVICE)
    words = said or "; ".join(error.get_all_statuses(error.maj_code, True))
    return Ticket(problem=words, advice=f"`kvno {_service(host)}` on this machine says more.")


def _service(host: str) -> str:
    return f"host/{host}"
