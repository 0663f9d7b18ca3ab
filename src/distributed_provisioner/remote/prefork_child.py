"""A fork of a template, and what makes an ordinary kernel of it (see prefork_template.py)."""

from __future__ import annotations

import array
import contextlib
import errno
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable

ROOM = "DP_PREFORK_ROOM"
SPARE = b"dp-spare"
PATIENCE = 1.0
"""Seconds that a spare may take from its order to its gate; less than the listener waits for its template."""


def fork() -> int:
    """Fork a grandchild, whose parent is then the listener, its subreaper: it sees the exit of the kernel as that of any other.

    Returns its pid; 0 in the grandchild. Raises OSError.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        child = os.fork()
    except OSError:
        close_all((reader, writer))
        raise
    if child == 0:
        try:
            kernel = os.fork()
            if kernel == 0:
                close_all((reader, writer))
                return 0
            os.write(writer, b"%d" % kernel)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(writer)
    text = os.read(reader, 20)
    os.close(reader)
    os.waitpid(child, 0)  # from here on the kernel is the listener's child
    if not text:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return int(text)


class Spare:
    """A fork that was made before anybody needs it, and waits for its order: so no launch waits for a fork.

    It leaves with the template: the other end of its socket is nowhere else.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as undone:
            undone.callback(self.control.close)
            undone.callback(theirs.close)
            self.pid = fork()
            """0 in the fork."""
            undone.pop_all()
        if self.pid == 0:
            self.control, theirs = theirs, self.control
            rename(SPARE)
        else:
            self.start = start_time(self.pid)
        theirs.close()

    def take(self, fds: list[int]) -> bool:
        """Hand an order on. False: it has none, and never will."""
        with contextlib.ExitStack() as undone:
            undone.callback(self.control.close)
            try:
                if start_time(self.pid) != self.start:
                    return False
                if stat_fields(self.pid)[0] in "TtZX":
                    os.kill(self.pid, signal.SIGKILL)
                    return False
                numbers = array.array("i", fds)
                self.control.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
            except OSError:
                return False
            undone.pop_all()
        return True

    def arrived(self) -> bool:
        """Whether it is at its gate, as it should be at once. Else it is ended: it may have been stopped in the moment before."""
        with self.control:
            self.control.settimeout(PATIENCE)
            with contextlib.suppress(OSError):
                if self.control.recv(1):
                    return True
        if start_time(self.pid) == self.start:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
        return False


def receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """An order, and the file descriptors that came with it, its own text's first. Leaves when there is nobody to order anything."""
    numbers = array.array("i")
    try:
        data, messages, _, _ = control.recvmsg(64, socket.CMSG_SPACE(4 * numbers.itemsize))
    except OSError:
        data, messages = b"", []
    for level, kind, piece in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(piece[: len(piece) - len(piece) % numbers.itemsize])
    if not data or not numbers:
        os._exit(0)
    # Template and spare read the same open file: neither moves its position.
    order: dict[str, Any] = json.loads(os.pread(numbers[0], os.fstat(numbers[0]).st_size, 0))
    return order, list(numbers)


def become_kernel(
    launcher: types.ModuleType,
    order: dict[str, Any],
    name: bytes,
    assigned: dict[str, str],
    dropped: list[str],
) -> None:
    """Make this process what an exec of the launcher would have made it, and wait to be let go.

    `name`: what an interpreter is called. `assigned`, `dropped`: variables that the imports have set, and removed.
    """
    os.setsid()
    rename(name)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, fd in enumerate((null, order["log"], order["log"])):
        os.dup2(fd, number)
    close_all({null, order["log"]} - {0, 1, 2})
    argv = order["argv"]
    retitle(argv, order["environment"].get("KERNEL_ID", ""))
    os.environ.clear()
    os.environ.update(order["environment"])
    os.environ.update(assigned)
    for variable in dropped:
        os.environ.pop(variable, None)
    os.chdir(order["directory"])
    sys.argv[:] = argv[1:]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = argv
    sys.modules["__main__"] = launcher
    time.tzset()
    renew()
    importlib.invalidate_caches()
    if order["told"] is not None:
        # Where the template is gone the gate is closed, too.
        with order["told"] as told, contextlib.suppress(OSError):
            told.send(b"+")
    go = os.read(order["gate"], 1)
    os.close(order["gate"])
    if not go:
        os._exit(1)  # the listener has given it up


def renew() -> None:
    """What Python and libraries have made once for their process."""
    main_thread: Any = threading.main_thread()
    if hasattr(main_thread, "_set_native_id"):
        main_thread._set_native_id()  # Python before 3.13 has the parent's
    random = getattr(sys.modules.get("numpy"), "random", None)  # Python's own is seeded by its hook
    if random is not None:
        random.seed()
    tempfile._name_sequence = tempfile.tempdir = None  # type: ignore[attr-defined]
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.current_process().authkey = os.urandom(32)
    logging: Any = sys.modules.get("logging")
    if logging is not None:
        logging._startTime = time.time_ns() if isinstance(logging._startTime, int) else time.time()


def retitle(argv: list[str], kernel_id: str) -> None:
    """Have `ps` show the kernel's argv instead of the template's, and its id in the environment that it was started with."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = stat_fields("self")
        first, end, environment = (int(fields[index]) for index in (45, 46, 47))
        text = b"\0".join(map(os.fsencode, argv)) + b"\0"
        size = end - first
        with open("/proc/self/environ", "rb", buffering=0) as file:
            initial = file.read()
        place = initial.find(ROOM.encode() + b"=")
        room = initial.find(b"\0", place) - place
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(first)
            # The last byte stays 0: else the system takes it for a title that goes on in the environment.
            memory.write(text[: size - 1].ljust(size, b"\0"))
            if place >= 0:
                memory.seek(environment + place)
                memory.write(f"KERNEL_ID={kernel_id}".encode()[:room].ljust(room, b"\0"))


def end_with_parent() -> None:
    """Have the system end this process, but no fork of it, with the listener, even where it is stopped and hears nothing."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def own_name() -> bytes:
    with open("/proc/self/comm", "rb") as file:
        return file.read().strip()


def rename(name: bytes) -> None:
    with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as file:
        file.write(name)


def stat_fields(pid: object) -> list[str]:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(") ")[2].split()


def start_time(pid: int) -> int | None:
    try:
        return int(stat_fields(pid)[19])
    except OSError:
        return None


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
