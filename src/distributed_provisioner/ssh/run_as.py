"""Kernels of another user than the one who logs in: sudo runs the bridge, so that the listener and all that it starts are that user's.

The rule that lets it is for one program, the Python that runs the bridge. Who may run any program as somebody can do whatever that
somebody can: what bounds such a rule is its list of users.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import RunAsError
from ..models import is_account_name
from .bootstrap import MarkerSearch, words

SUDOERS = "/etc/sudoers.d/distributed-provisioner"


@dataclass(frozen=True)
class RunAs:
    """Whom kernels are run as, and who asks for it."""

    user: str
    own: str
    """The user who logs in to the host."""

    def __post_init__(self) -> None:
        if not is_account_name(self.user):
            raise ValueError(f"{self.user!r} is not the name of an account")


def refused(host: str, run_as: RunAs, search: MarkerSearch, stderr: bytes) -> RunAsError:
    """Why a host runs nothing as that user, with sudo's own words and what mends it."""
    said = words(stderr)
    return RunAsError(
        f"{host} runs no kernels as {run_as.user}: {_why(run_as, search, said)}", user=run_as.user, host=host
    )


def _why(run_as: RunAs, search: MarkerSearch, said: str) -> str:
    if search.trouble == "no-sudo":
        return f"it has no sudo for {run_as.own}. Install sudo there, or log in as the user with {{username}}@host in remote_hosts."
    if search.trouble == "no-user":
        return f"it has no such user. Create the account there, or set KERNEL_USERNAME to one that it has{_words(said)}."
    if search.trouble == "other-name":
        return f"the account is called {words(search.name.encode())} there. Set KERNEL_USERNAME to that."
    if "tty" in said:
        return (
            f"its sudo wants a terminal{_words(said)}. "
            f"Add this line to {SUDOERS} there (visudo -f {SUDOERS}): Defaults:{_name(run_as.own)} !requiretty"
        )
    return (
        f"sudo does not let {run_as.own} start {search.python or 'a Python'} as {run_as.user}{_words(said)}. "
        f"Add this line to {SUDOERS} there (visudo -f {SUDOERS}): {rule(run_as, search.python or '/usr/bin/python3')}"
    )


def rule(run_as: RunAs, python: str) -> str:
    """The line of sudoers(5) that suffices."""
    path = re.sub(r"([\\,:=\s*?\[\]!])", r"\\\1", python)
    return f"{_name(run_as.own)} ALL=({_name(run_as.user)}) NOPASSWD: {path}"


def _name(user: str) -> str:
    """A name as sudoers has it: in capitals alone it would be an alias."""
    quote = re.fullmatch(r"[A-Z][A-Z0-9_]*", user) or not re.fullmatch(r"[\w.-]+", user)
    return f'"{user}"' if quote else user


def _words(said: str) -> str:
    return f" ({said})" if said else ""
