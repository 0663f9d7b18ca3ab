"""A kernelspec's directory on its way to a host: named by its digest, sent in pieces, moved in place there in one step.

The digest must be that of `remote/files.py`, which checks it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HostUnreachableError, KernelSpecError
from .beside import beside
from .control import Control
from .tasks import Tasks

PIECE = 192 << 10
"""Bytes of files in one request: small enough that an interrupt never waits long behind it."""

_log = logging.getLogger(__name__)


class Shipping:
    """What one host has, and what is on its way there.

    Args:
        connected: the control channel to it, or a HostUnreachableError raised.
        not_connected: that error.
    """

    def __init__(
        self,
        host: str,
        connected: Callable[[], Control],
        not_connected: Callable[[], HostUnreachableError],
        tasks: Tasks,
    ) -> None:
        self.there: set[str] = set()
        """Digests of what the host has."""
        self._host = host
        self._connected = connected
        self._not_connected = not_connected
        self._tasks = tasks
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def ship(self, directory: str) -> str | None:
        """As `HostConnection.ship`; a directory that several ask for is sent once."""
        bundle = await beside(lambda: read_bundle(directory))
        if bundle is None:
            return None
        if bundle.digest not in self.there:
            task = self._under_way.get(bundle.digest)
            if task is None:
                task = self._under_way[bundle.digest] = self._tasks.start(self._ship(bundle))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise self._not_connected() from None
                raise
        return bundle.digest

    async def _ship(self, bundle: Bundle) -> None:
        try:
            control = self._connected()
            left = pieces(bundle)
            while (piece := await beside(lambda: next(left, None))) is not None:
                await control.request("ship", piece, timeout=60.0)
            self.there.add(bundle.digest)
            _log.debug("[host=%s] shipped %d files of %s", self._host, len(bundle.files), bundle.directory)
        finally:
            self._under_way.pop(bundle.digest, None)


@dataclass(frozen=True)
class Bundle:
    """What a directory holds."""

    directory: str
    digest: str
    files: tuple[str, ...]
    """Names below the directory, with `/`, sorted."""


def read_bundle(directory: str) -> Bundle | None:
    """List and digest a directory; None when there is none. Blocks: for a worker thread.

    Raises:
        KernelSpecError: a file in it cannot be read.
    """
    if not os.path.isdir(directory):
        return None
    try:
        files = tuple(sorted(_names(directory)))
        total = hashlib.sha256()
        for name in files:
            path = os.path.join(directory, *name.split("/"))
            status = os.stat(path)
            executable = "x" if status.st_mode & stat.S_IXUSR else "-"
            content = _file_digest(path, status)
            total.update(f"{name}\0{executable}\0{content}\n".encode())
    except (OSError, UnicodeEncodeError) as error:
        raise KernelSpecError(
            f"The kernel specification in {directory} cannot be sent to hosts: {error}. Mend or remove that file."
        ) from error
    return Bundle(directory, total.hexdigest(), files)


def pieces(bundle: Bundle) -> Iterator[dict[str, Any]]:
    """The parameters of the `ship` requests; the last one has `commit`. Blocks: for a worker thread."""
    batch: list[dict[str, Any]] = []
    size = 0
    for name in bundle.files:
        path = Path(bundle.directory, *name.split("/"))
        mode = stat.S_IMODE(path.stat().st_mode)
        with path.open("rb") as file:
            while True:
                data = file.read(PIECE)
                more = len(data) == PIECE
                batch.append(
                    {"name": name, "mode": mode, "data": base64.b64encode(data).decode(), "more": more}
                )
                size += len(data) + len(name) + 100  # very many empty files are large, too
                if size >= PIECE:
                    yield {"bundle": bundle.digest, "files": batch}
                    batch, size = [], 0
                if not more:
                    break
    yield {"bundle": bundle.digest, "files": batch, "commit": True}


def _names(directory: str) -> Iterator[str]:
    for place, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name != "__pycache__"]
        for name in names:
            path = os.path.join(place, name)
            relative = os.path.relpath(path, directory).replace(os.sep, "/")
            if relative == "kernel.json" or relative.startswith("logo") or name.endswith(".pyc"):
                continue
            if stat.S_ISREG(os.stat(path).st_mode):
                yield relative


_digests: dict[str, tuple[tuple[int, int, int], str]] = {}


def _file_digest(path: str, status: os.stat_result) -> str:
    version = (status.st_mtime_ns, status.st_size, status.st_ino)
    known = _digests.get(path)
    if known is None or known[0] != version:
        total = hashlib.sha256()
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                total.update(piece)
        known = _digests[path] = (version, total.hexdigest())
    return known[1]
