"""The bridge: between an SSH session and the user's listener, which it finds or starts. It lives as long as the SSH connection; the
listener does not care.

It is executed from memory, when nothing of the listener need be on the host yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from places import Places, SetupError, check_private
from server_listener import load_json, read_text, start_time, write_private


def bridge(sources: list[tuple[str, str]]) -> int:
    """Copy bytes between fds 0 and 1 and the listener, which is started if it is not there. `sources`: (name, text) of each file."""
    try:
        places = Places()
        connection = find_or_start(places, sources)
    except (SetupError, OSError) as error:
        message = {"error": {"type": "setup", "message": str(error)}}
        os.write(1, json.dumps(message).encode() + b"\n")
        return 1
    copy_both_ways(connection)
    return 0


def find_or_start(places: Places, sources: list[tuple[str, str]]) -> socket.socket:
    digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()
    directory = os.path.join(places.cache, f"listener-{digest[:16]}")
    with open(os.open(places.lock, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as lock:
        with contextlib.suppress(
            OSError
        ):  # no locks on this file system: two listeners may be started, and both work
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Looked at first: a listener that is asked to retire removes its record, too.
        cleared = not os.path.exists(places.record)
        connection = connect_to_listener(places, digest) or wake_listener(places, digest, cleared)
        if connection is not None:
            return connection
        os.makedirs(directory, mode=0o700, exist_ok=True)
        check_private(directory)
        for name, text in sources:
            if read_text(os.path.join(directory, name)) != text:
                write_private(os.path.join(directory, name), text.encode())
        os.utime(directory)
        start_listener(places, os.path.join(directory, sources[0][0]), digest)
        connection = connect_to_listener(places, digest)
        if connection is None:
            words = read_text(places.log).strip().splitlines() or ["it said nothing"]
            raise SetupError(f"the listener did not start: {words[-1][:500]}")
        return connection


def connect_to_listener(places: Places, digest: str) -> socket.socket | None:
    """A socket to the running listener, or None. An older one that has nothing to do is asked to leave."""
    record = load_json(places.record)
    if not record:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(record["socket"])
        if record["version"] == digest:
            return connection
        connection.settimeout(10)
        connection.sendall(b'{"id": 0, "op": "retire"}\n')
        answer = connection.makefile("rb").readline(65536)
        if not json.loads(answer or b"{}").get("result", {}).get("retired"):
            connection.settimeout(None)
            return connection
    except (OSError, ValueError, KeyError):
        pass
    connection.close()
    return None


def wake_listener(places: Places, digest: str, cleared: bool) -> socket.socket | None:
    """A socket to a listener that lives though its socket or its record was cleared away: asked by SIGHUP, it makes them again. A second
    listener would know nothing of the first one's kernels."""
    record = load_json(places.record)
    pid = lost_listener(places) if cleared else record.get("pid")
    if not pid:
        return None
    if record and (os.path.exists(record.get("socket", "/")) or start_time(pid) != record.get("start")):
        return None
    os.kill(pid, signal.SIGHUP)
    for _ in range(100):
        time.sleep(0.02)
        if os.path.exists(load_json(places.record).get("socket", "")):
            return connect_to_listener(places, digest)
    return None


def lost_listener(places: Places) -> int | None:
    """The pid of a listener that lives though its record was cleared away. None where there is none, or no /proc to look for it in."""
    here = os.path.join(places.cache, "listener-")
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc/self") else ()):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
            argv = read_text(f"/proc/{name}/cmdline").split("\0")
            if (
                argv[4:5] == ["serve"]
                and argv[3].startswith(here)
                and read_text(f"/proc/{name}/comm").strip() != "dp-relay"  # a fork of it
                and os.readlink(f"/proc/{name}/ns/pid") == os.readlink("/proc/self/ns/pid")
            ):
                return int(name)
    return None


def start_listener(places: Places, path: str, digest: str) -> None:
    """Start `serve`, detached, and wait until it accepts connections (or ends)."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    log = os.open(places.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
    try:
        subprocess.Popen(
            [sys.executable, "-I", "-S", path, "serve", digest, str(writer)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writer,), start_new_session=True, cwd="/",
        ).returncode = 0  # fmt: skip # it outlives us; nobody waits for it
    finally:
        os.close(writer)
        os.close(log)
    os.read(reader, 1)  # a byte when it is ready, the end of the file when it has ended
    os.close(reader)


def copy_both_ways(connection: socket.socket) -> None:
    """Return when either side has ended. A side that is not read holds up its own direction only."""
    ended = threading.Event()
    other = connection.fileno()
    for source, target in ((0, other), (other, 1)):
        threading.Thread(target=copy, args=(source, target, ended), daemon=True).start()
    ended.wait()


def copy(source: int, target: int, ended: threading.Event) -> None:
    with contextlib.suppress(OSError):  # one of the two is gone, so is the bridge
        while True:
            data = memoryview(os.read(source, 1 << 18))
            if not data:
                break
            while data:
                data = data[os.write(target, data) :]
    ended.set()
