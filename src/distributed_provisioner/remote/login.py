"""The environment that a login of this user has, as its shell's startup files make it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import pwd
import re
import signal
import subprocess
import sys

from places import user_name
from processes import kill_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Mapping


# --- the environment of a login ---------------------------------------------------------------------------------------------------------

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server_listener.py")
TIMEOUT = 10.0
"""Seconds that a user's startup files may take."""
DUMP = 'exec "$DP_PYTHON" -I -S "$DP_LISTENER" dump-env "$DP_MARK"'
STARTUP_FILES = (
    "/etc/profile", "/etc/environment", "/etc/bash.bashrc", "/etc/zsh/zshenv", "/etc/csh.login",
    ".profile", ".bash_profile", ".bash_login", ".bashrc", ".zshenv", ".zprofile", ".zshrc", ".zlogin", ".login",
    ".cshrc", ".tcshrc", ".config/fish/config.fish",
)  # fmt: skip
EXPANSION = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def dump_environment(mark: str) -> None:
    values = [b"%03o" % current_umask()]
    values += [name + b"=" + value for name, value in os.environb.items() if not name.startswith(b"DP_")]
    data = mark.encode() + b"\0".join(values) + b"\0" + mark.encode()
    while data:
        data = data[os.write(1, data) :]


def current_umask() -> int:
    value = os.umask(0o077)
    os.umask(value)
    return value


def base_environment() -> dict[str, str]:
    """What a login shell starts from: what sshd gave us, or, below another program, only what a login would give."""
    if "SSH_CONNECTION" in os.environ and "SUDO_UID" not in os.environ:
        base = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
    else:
        base = {
            name: value
            for name, value in os.environ.items()
            if name in ("LANG", "TZ") or name.startswith("LC_")
        }
        base["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    try:
        entry = pwd.getpwuid(os.getuid())
        home, shell = entry.pw_dir, entry.pw_shell
    except KeyError:  # a uid without an account, as containers have it
        home, shell = "/", os.environ.get("SHELL", "")
    base.setdefault("PATH", os.defpath)
    base["HOME"] = os.environ.get("HOME") or home
    base["USER"] = base["LOGNAME"] = user_name()
    base["SHELL"] = shell or "/bin/sh"
    for name in ("PWD", "OLDPWD", "SHLVL", "_", "JPY_PARENT_PID"):
        base.pop(name, None)
    return base


def expand(value: str, variables: Mapping[str, str]) -> str:
    """`${NAME}` and `${NAME:-default}`, and nothing else."""
    return EXPANSION.sub(lambda match: variables.get(match.group(1)) or match.group(2) or "", value)


class LoginEnvironment:
    """The environment (and umask) of the user's login shell, read when the listener starts and again when a startup file has changed."""

    def __init__(self, home: str) -> None:
        self.home = home
        self.values = base_environment()
        self.umask: int | None = None
        self.note = ""
        self.signature: list[tuple[str, int, int]] = []
        self.reading: asyncio.Future[None] | None = None

    def current_signature(self) -> list[tuple[str, int, int]]:
        found = []
        for name in STARTUP_FILES:
            with contextlib.suppress(OSError):
                status = os.stat(os.path.join(self.home, name))
                found.append((name, status.st_mtime_ns, status.st_size))
        return found

    async def get(self) -> tuple[dict[str, str], int | None, str]:
        """-> (environment, umask or None, note or ""). Never fails: without a usable shell it is what sshd gave us."""
        if self.reading is None or (self.reading.done() and self.signature != self.current_signature()):
            self.signature = self.current_signature()
            self.reading = asyncio.ensure_future(self._read())
        await asyncio.shield(self.reading)
        return dict(self.values), self.umask, self.note

    async def _read(self) -> None:
        base = base_environment()
        mark = base64.b16encode(os.urandom(16)).decode()
        shell = base["SHELL"]
        variables = dict(base, DP_PYTHON=sys.executable, DP_LISTENER=HERE, DP_MARK=mark)
        self.values, self.umask, self.note = base, None, ""
        reader, writer = os.pipe()
        try:
            # argv[0] with a dash is what login(1) does, and the one way that sh, bash, zsh, fish and csh all know.
            process = subprocess.Popen(
                ["-" + os.path.basename(shell), "-c", DUMP], executable=shell, env=variables, cwd=self.home, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            process.returncode = 0  # the listener's `reap` waits for it
        except OSError as error:
            os.close(reader)
            self.note = f"the login shell {shell} cannot be started ({error.strerror}): the kernel gets a plain environment"
            return
        finally:
            os.close(writer)
        stream = asyncio.StreamReader()
        pipe, _ = await asyncio.get_event_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reader, "rb", 0)
        )
        try:
            output = await asyncio.wait_for(self._between(stream, mark.encode()), TIMEOUT)
        except (asyncio.TimeoutError, EOFError, ValueError) as error:
            why = (
                f"took over {TIMEOUT:g} s"
                if isinstance(error, asyncio.TimeoutError)
                else "printed no environment"
            )
            self.note = f"the login shell {shell} {why}: the kernel gets a plain environment"
            return
        finally:
            kill_group(process.pid, signal.SIGKILL)
            pipe.close()
        umask, *items = output.split(b"\0")
        self.umask = int(umask, 8)
        pairs = (os.fsdecode(item).partition("=") for item in items if b"=" in item)
        self.values = {
            name: value for name, _, value in pairs if not name.startswith("SSH_") and name != "SHLVL"
        }
        for name in ("PWD", "OLDPWD", "_", "JPY_PARENT_PID"):
            self.values.pop(name, None)

    @staticmethod
    async def _between(stream: asyncio.StreamReader, mark: bytes) -> bytes:
        """What stands between two marks, whatever the startup files print before and after."""
        data = bytearray()
        while data.count(mark) < 2:
            piece = await stream.read(65536)
            if not piece or len(data) > 8 << 20:
                raise EOFError
            data += piece
        return bytes(data).split(mark)[1].rstrip(b"\0")
