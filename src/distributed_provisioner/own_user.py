"""The name of the user whose process this is."""

from __future__ import annotations

import getpass
import os


def own_name() -> str:
    """The account's name; for a uid without an account, as in some containers, what the environment says, else the uid."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # Windows; no account
        pass
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def give_own_name_to_libraries() -> None:
    """Have `getpass.getuser()`, which asyncssh asks and which fails for a uid without an account, give the same."""
    try:
        getpass.getuser()
    except (OSError, KeyError):
        os.environ["LOGNAME"] = own_name()
