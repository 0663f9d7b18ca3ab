"""How the listener's source gets to a host and is started there, over one session channel and with nothing installed before.

The remote command is constant text but for a random marker. Whatever the user's shell start-up files print before the marker is noise:
it is kept, bounded, for error messages. See the protocol at the top of `remote/server_listener.py` for what follows.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import zlib
from functools import lru_cache
from importlib import resources
from typing import Literal

from ..models import is_account_name

SOURCES = (
    "server_listener.py",
    "admission.py",
    "bridge.py",
    "listener.py",
    "operations.py",
    "connections.py",
    "channels.py",
    "children.py",
    "drain.py",
    "files.py",
    "housekeeping.py",
    "kernels.py",
    "launch.py",
    "login.py",
    "places.py",
    "prefork.py",
    "prefork_kind.py",
    "prefork_process.py",
    "prefork_template.py",
    "prefork_child.py",
    "prefork_pages.py",
    "prefork_watch.py",
    "processes.py",
    "program.py",
    "reasons.py",
    "relay.py",
    "relay_conversation.py",
    "relay_entries.py",
    "relay_io.py",
    "relay_keeper.py",
    "relay_kernel.py",
    "relay_notice.py",
    "relay_peer.py",
    "relay_reader.py",
    "relay_store.py",
    "relay_wire.py",
    "relays.py",
    "usage.py",
    "zmtp.py",
)
"""What is shipped of `remote/`; the first one is executed, with the others at hand."""
MAX_NOISE = 64 << 10
"""Bytes that may come before the marker."""
PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(14, 7, -1)))
"""Tried in this order, on PATH and then in /usr/bin, /usr/local/bin and /opt/homebrew/bin."""

# No quote, dollar, backslash, exclamation mark or newline: it stands in double quotes inside single quotes, for sh, csh and fish alike.
STUB = (
    "import json,os,sys,zlib;"
    "marker=sys.argv.pop();"
    "os.write(1,(chr(10)+marker+chr(10)).encode());"
    "take=lambda n,have=bytes():have if len(have)==n else take(n,have+(os.read(0,n-len(have)) or sys.exit(1)));"
    "shipped=take(int(take(8)));"
    "sources=json.loads(zlib.decompress(shipped));"
    "exec(sources[0][1])"
)
_FIND = (
    "for p in {pythons}; do "
    'e=$("$p" -I -S -c "import sys;print(sys.executable if sys.version_info>=(3,8) else 1)" </dev/null 2>/dev/null) '
    '&& [ -x "$e" ] && {before}exec {sudo}"$e" -I -S -u -c "{stub}" bridge {marker}; '
    "done; echo; echo {marker}-no-python; exit 127"
)
_OWN_PATH = "PATH=$PATH:/usr/bin:/usr/local/bin:/opt/homebrew/bin; "
_COMMON_PATH = (
    "PATH=/usr/bin:/usr/local/bin:/opt/homebrew/bin:$PATH; "  # a Python that all users may start
    "command -v sudo >/dev/null 2>&1 || {{ echo; echo {marker}-no-sudo; exit 127; }}; "
    'n=$(id -un "{user}" 2>/dev/null) || {{ echo; echo {marker}-no-user; exit 1; }}; '
    # Other spellings and names of an account: unauthorized_users would not know them.
    '[ "$n" = "{user}" ] || {{ echo; echo "{marker}-other-name $n"; exit 1; }}; '
)


def new_marker() -> str:
    """32 random hex digits: nothing that a host prints by itself contains them."""
    return secrets.token_hex(16)


def remote_command(marker: str, run_as: str | None = None) -> str:
    """The command for the SSH session. Only the marker varies, and whom sudo runs it as: no other name is ever part of it.

    Raises:
        ValueError: one of them is not what it has to be.
    """
    return f"exec /bin/sh -c '{_script(marker, run_as)}'"


def local_command(marker: str, run_as: str | None = None) -> list[str]:
    """The same for this machine, as an argv."""
    if run_as is not None:
        # Others may not be able to start our own Python, and the rule for sudo shall be the same everywhere.
        return ["/bin/sh", "-c", _script(marker, run_as)]
    return [sys.executable or "python3", "-I", "-S", "-u", "-c", STUB, "bridge", marker]


def _script(marker: str, run_as: str | None) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", marker):
        raise ValueError("the marker is not 32 hex digits")
    if run_as is None:
        return _OWN_PATH + _FIND.format(
            pythons=" ".join(PYTHONS), stub=STUB, marker=marker, before="", sudo=""
        )
    if not is_account_name(run_as):
        raise ValueError(f"{run_as!r} is not the name of an account")
    before = f'echo && echo "{marker}-sudo $e" && '
    sudo = f'sudo -n -H -u "{run_as}" -- '
    find = _FIND.format(pythons=" ".join(PYTHONS), stub=STUB, marker=marker, before=before, sudo=sudo)
    return _COMMON_PATH.format(user=run_as, marker=marker) + find


@lru_cache(maxsize=1)
def preface() -> bytes:
    """What is written first: the length of the compressed source as 8 decimal digits, and the compressed source."""
    remote = resources.files("distributed_provisioner") / "remote"
    sources = [(name, (remote / name).read_text("utf-8")) for name in SOURCES]
    packed = zlib.compress(json.dumps(sources).encode(), 9)
    return b"%08d" % len(packed) + packed


class MarkerSearch:
    """Separates the noise before the marker from the listener's bytes after it."""

    def __init__(self, marker: str) -> None:
        self._found = b"\n" + marker.encode() + b"\n"
        self._said = re.compile(
            rb"\n" + marker.encode() + rb"-(no-python|no-sudo|no-user|other-name (.*)|sudo (.*))\n"
        )
        self.noise = b""
        self.done = False
        self.trouble: Literal["", "no-python", "no-sudo", "no-user", "other-name", "sudo"] = ""
        """What our own command has said is missing there, or that sudo was asked."""
        self.python = ""
        """The program that sudo was asked to start."""
        self.name = ""
        """What the account is called there, where that is not what was asked for."""

    def feed(self, data: bytes) -> bytes:
        """The bytes that come after the marker (after it was found: all of them).

        Raises:
            TooMuchNoise: 64 KB came without the marker.
        """
        if self.done:
            return data
        self.noise += data
        before, found, after = self.noise.partition(self._found)
        if found:
            self.noise, self.done = before, True
            return after
        for told in self._said.finditer(self.noise):
            self.trouble = told[1].decode().split()[0]  # type: ignore[assignment] # one of those above
            self.name = (told[2] or b"").decode("utf-8", "replace")
            self.python = (told[3] or b"").decode("utf-8", "replace")
        if len(self.noise) > MAX_NOISE:
            raise TooMuchNoise
        return b""


class TooMuchNoise(Exception):
    """What answers is no shell that runs our command."""


def words(noise: bytes, lines: int = 5, limit: int = 500) -> str:
    """The first printable lines of what a host said, for an error message."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", noise.decode("utf-8", "replace"))
    printable = ("".join(c for c in line if c.isprintable()).strip() for line in text.splitlines())
    return " / ".join([line for line in printable if line][:lines])[:limit]
