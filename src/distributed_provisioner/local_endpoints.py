"""Where the near ends of kernels' sockets lie: a private directory of this process, with a short path."""

from __future__ import annotations

import atexit
import errno
import itertools
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

LONGEST_SOCKET_PATH = 103
"""Bytes in the path of a Unix socket that both Linux and macOS take."""

_PREFIX = "dp-near-"
"""Each such directory is locked as long as its process lives."""

_directories: dict[int, Path] = {}
_numbers = itertools.count(1)


def new_prefix() -> str:
    """A prefix of socket paths (`{prefix}-1` … `{prefix}-5`) for one kernel; it stays the kernel's over restarts."""
    return str(private_directory() / f"k{next(_numbers)}")


def private_directory() -> Path:
    """The directory of this process, mode 0700, made at first use, removed at exit. A forked child makes its own."""
    pid = os.getpid()
    if pid not in _directories or not _directories[pid].is_dir():
        _directories[pid] = _make()
        atexit.register(_remove, pid)
    return _directories[pid]


def keep_directory(prefix: str) -> None:
    """Make the directory of a kernel's near ends again, should somebody have cleared it away. Blocks a little.

    Raises:
        OSError: it cannot be made, or somebody else has that name now.
    """
    directory = Path(prefix).parent
    with suppress(FileExistsError):
        directory.mkdir(0o700)
        _lock(directory)
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
    if directory.lstat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "another user has made our sockets' directory", str(directory))


def _make() -> Path:
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 mkdtemp makes a private one in it
        _remove_abandoned(parent)
        while True:
            directory = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            with suppress(
                OSError
            ):  # another process takes it for an abandoned one in the moment before it is locked
                handle = _lock(directory)
                os.stat(directory)
                break
        if len(os.fsencode(directory)) + len("/k999999-5") <= LONGEST_SOCKET_PATH or parent == "/tmp":  # noqa: S108
            return Path(directory)  # the handle, and with it the lock, is the process's until it ends
        os.rmdir(directory)
        os.close(handle)
    raise AssertionError("not reached")


def _lock(directory: str | Path) -> int:
    """Say that its process lives. Raises OSError when another one takes it for abandoned at this moment."""
    import fcntl  # not on Windows, where the provisioner says itself that it does not run

    handle = os.open(directory, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _remove_abandoned(parent: str) -> None:
    """Directories whose process was killed and could not remove them."""
    import fcntl

    for directory in Path(parent).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or its process lives
            handle = os.open(directory, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.getuid():
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(handle)


def _remove(pid: int) -> None:
    # atexit is inherited by a fork, the sockets in the directory are the parent's.
    if pid == os.getpid() and pid in _directories:
        shutil.rmtree(_directories.pop(pid), ignore_errors=True)
