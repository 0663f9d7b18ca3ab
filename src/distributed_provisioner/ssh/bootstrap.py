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

SOURCES = (
    "server_listener.py",
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
    "PATH=$PATH:/usr/bin:/usr/local/bin:/opt/homebrew/bin; "
    "for p in {pythons}; do "
    'e=$("$p" -I -S -c "import sys;print(sys.executable if sys.version_info>=(3,8) else 1)" </dev/null 2>/dev/null) '
    '&& [ -x "$e" ] && exec "$e" -I -S -u -c "{stub}" bridge {marker}; '
    "done; echo; echo {marker}-no-python; exit 127"
)


def new_marker() -> str:
    """32 random hex digits: nothing that a host prints by itself contains them."""
    return secrets.token_hex(16)


def remote_command(marker: str) -> str:
    """The command for the SSH session. Only the marker varies; no name of a host, user or kernel is ever part of it."""
    if not re.fullmatch(r"[0-9a-f]{32}", marker):
        raise ValueError("the marker is not 32 hex digits")
    script = _FIND.format(pythons=" ".join(PYTHONS), stub=STUB, marker=marker)
    return f"exec /bin/sh -c '{script}'"


def local_command(marker: str) -> list[str]:
    """The same for this machine, as an argv."""
    return [sys.executable or "python3", "-I", "-S", "-u", "-c", STUB, "bridge", marker]


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
        self._no_python = b"\n" + marker.encode() + b"-no-python\n"
        self.noise = b""
        self.done = False
        self.no_python = False

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
        self.no_python = self._no_python in self.noise
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
