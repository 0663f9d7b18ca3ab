"""Files on the host: logs that stay short, shipped directories known by their digest."""

from __future__ import annotations

import base64
import codecs
import hashlib
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_LOG = 4 << 20
"""Bytes that a kernel's log may have; past it, only the last KEEP_LOG bytes are kept."""
KEEP_LOG = 1 << 20
TAIL = 4096
"""Bytes of a log that an error message shows."""


def tail_of(path: str, offset: int = 0, limit: int = TAIL) -> str:
    """The last lines of a file, at most `limit` bytes of what was written since `offset`."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < offset:  # it was shortened meanwhile
                offset = 0
            start = max(offset, size - limit)
            file.seek(start)
            text = file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
    if start > offset and "\n" in text[:1000]:
        text = text.partition("\n")[2]
    return text.strip("\n")


def added_to(path: str, after: int, limit: int) -> tuple[str, int]:
    """What a log has got since it was `after` bytes long, at most `limit` bytes, and how far that goes; see also `shorten`."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            mark = SHORTENED.match(file.read(100))
            if after > size and mark is not None:
                after = max(after - int(mark.group(1)) + len(mark.group()), len(mark.group()))
            after = min(after, size)
            file.seek(after)
            data = file.read(limit)
    except OSError:
        return "", after
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, after + len(data) - len(decoder.getstate()[0])


def interpreter_of(path: str) -> list[str]:
    """The interpreter of a script, from its first line: a home may be mounted noexec."""
    with open(path, "rb") as file:
        line = file.readline(256)
    if line[:2] != b"#!":
        return []
    return os.fsdecode(line[2:].strip()).split(None, 1)


SHORTENED = re.compile(rb"\[the log was shortened here: (\d+) bytes are gone\]\n")


def shorten(path: str) -> None:
    """Keep the end of a log."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        size = os.fstat(handle).st_size
        kept = os.pread(handle, KEEP_LOG, max(0, size - KEEP_LOG))
        if b"\n" in kept[:1000]:
            kept = kept.partition(b"\n")[2]
        os.ftruncate(handle, 0)
        os.write(handle, b"[the log was shortened here: %d bytes are gone]\n" % (size - len(kept)) + kept)
    except OSError:
        pass
    finally:
        os.close(handle)


def bundle_digest(directory: str) -> str:
    """The digest of a kernelspec's directory: names, whether executable, contents; without kernel.json, logos and compiled files.

    Raises OSError for a file that cannot be read. What is no regular file (a FIFO would hold everything up) does not count.
    """
    total = hashlib.sha256()
    names = []
    for place, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if name != "__pycache__"]
        for name in files:
            relative = os.path.relpath(os.path.join(place, name), directory).replace(os.sep, "/")
            skipped = relative == "kernel.json" or relative.startswith("logo") or name.endswith(".pyc")
            if not skipped and os.path.isfile(os.path.join(place, name)):
                names.append(relative)
    for name in sorted(names):
        path = os.path.join(directory, *name.split("/"))
        executable = "x" if os.stat(path).st_mode & 0o100 else "-"
        total.update(f"{name}\0{executable}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


DIGESTS: dict[str, tuple[tuple[int, int, int], str]] = {}


def file_digest(path: str) -> str:
    status = os.stat(path)
    known = (status.st_mtime_ns, status.st_size, status.st_ino)
    if path not in DIGESTS or DIGESTS[path][0] != known:
        total = hashlib.sha256()
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                total.update(piece)
        DIGESTS[path] = known, total.hexdigest()
    return DIGESTS[path][1]


def write_piece(directory: str, entry: dict[str, Any]) -> None:
    """Append a piece of a shipped file. Names stay below the directory."""
    parts = entry["name"].split("/")
    if entry["name"].startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"a file cannot be named {entry['name'][:80]!r}")
    path = os.path.join(directory, *parts)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    mode = 0o700 if entry.get("mode", 0) & 0o100 else 0o600
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, mode), "ab") as file:
        file.write(base64.b64decode(entry["data"]))
