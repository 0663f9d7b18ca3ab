"""A template: a process that has imported what every Python kernel imports, and forks a kernel at each request of the listener.

It runs in the kernels' own interpreter and environment, so it imports nothing that lies beside it; `prefork.py` is its other end. Over the
socket whose number is argv[1] (packets; what is large comes as a file descriptor) it is told

    first   {launcher, kernel_class, preload}      -> {"ready": names of the environment variables that the imports have read}
                                                      or {"refused": why, "again": whether another may do}
    each    {id, argv, environment, directory}     -> {id, pid, start} once a kernel waits at its gate, or {id, "why"}: then it leaves
            with two more file descriptors: the kernel's log, and its gate: a byte lets it go on, the end of the file ends it

It leaves when the listener does. The rest of its own argv, and a variable of its environment, are room for what `ps` shows of the kernels.
"""

from __future__ import annotations

import array
import builtins
import contextlib
import gc
import importlib
import json
import os
import signal
import site
import socket
import stat
import sys
import tempfile
import threading
import time
import types
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Iterator, Optional, Tuple

    Mark = Optional[Tuple[int, int, int]]

ROOM = "DP_PREFORK_ROOM"
NAME = b"dp-prefork"


class Refused(Exception):
    """A fork of this process would not be what a cold start gives; the text says why."""


class Changed(Refused):
    """Once more, from the beginning, may do: imports write caches that they read afterwards."""


class Template:
    """Imports, then forks until the listener is gone."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.begun = time.time_ns()
        self.name = own_name()
        self.launcher: types.ModuleType
        self.read: set[str] = set()

    def run(self) -> dict[str, Any]:
        """Returns in each kernel, with its order; the template itself never does."""
        order, fds = self.receive()
        close_all(fds)
        rename(NAME)
        try:
            self.load(order)
        except Refused as error:
            self.leave({"refused": str(error), "again": isinstance(error, Changed)})
        except BaseException as error:  # SystemExit of the launcher, too
            self.leave({"refused": f"{type(error).__name__}: {error}"[:1000]})
        gc.collect()
        gc.freeze()
        self.send({"ready": sorted(self.read)})
        while True:
            order, fds = self.receive()
            pid = fork()
            if pid == 0:
                self.control.close()
                self.watched = Watched()
                return dict(order, log=fds[0], gate=fds[1])
            close_all(fds)
            changed = self.watched.changed()  # while the kernel goes to its gate
            if changed:
                self.leave({"id": order["id"], "why": f"{changed} has changed"})
            self.send({"id": order["id"], "pid": pid, "start": start_time(pid)})

    def load(self, order: dict[str, Any]) -> None:
        self.watched = Watched()
        self.watched.directories(sys.path)
        if site.ENABLE_USER_SITE:
            self.watched.directories([site.getusersitepackages()])
        before = dict(os.environ)
        with watched_environment() as self.read, watched_files() as opened:
            self.launcher = load_launcher(order["launcher"])
            kernel_class = self.launcher.import_early(order["kernel_class"])
            if not getattr(kernel_class, "prefork", True):
                raise Refused(f"the kernel class {order['kernel_class']} says so")
            for name in order["preload"]:
                try:
                    importlib.import_module(name)
                except Exception as error:
                    raise Refused(f"preload {name}: {type(error).__name__}: {error}") from error
        after = dict(os.environ)
        self.assigned = {name: value for name, value in after.items() if before.get(name) != value}
        self.dropped = [name for name in before if name not in after]
        self.watched.files(opened)
        self.watched.files(
            [sys.executable, os.path.realpath(sys.executable), os.path.join(sys.prefix, "pyvenv.cfg")]
        )
        self.watched.modules()
        self.watched.files(mapped_files())
        changed = self.watched.changed() or self.watched.newer(self.begun)
        if changed:
            raise Changed(f"{changed} has changed meanwhile")
        check_single()
        check_untouched(self.control.fileno())

    # speaking with the listener

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """An order, and the file descriptors that come with it. Leaves when there is nobody to order anything."""
        numbers = array.array("i")
        try:
            data, control, _, _ = self.control.recvmsg(64, socket.CMSG_SPACE(4 * numbers.itemsize))
        except OSError:
            data, control = b"", []
        for level, kind, piece in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(piece[: len(piece) - len(piece) % numbers.itemsize])
        if not data or not numbers:
            os._exit(0)
        fds = list(numbers)
        with open(fds.pop(0), "rb") as file:
            file.seek(0)
            order: dict[str, Any] = json.loads(file.read())
        return order, fds

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            os._exit(0)

    def leave(self, message: dict[str, Any]) -> None:
        self.send(message)
        os._exit(0)


def load_launcher(path: str) -> types.ModuleType:
    """The launcher as it is when it is run, but for its main(); nothing can import it."""
    module = types.ModuleType("launch")  # not yet "__main__", so that it does not run
    module.__file__ = path
    with open(path, "rb") as file:
        exec(compile(file.read(), path, "exec"), module.__dict__)
    module.__name__ = "__main__"
    return module


# --- what a fork must not share, and what must not have changed ----------------------------------------------------------------------


def check_single() -> None:
    """Threads do not survive a fork. Native ones may be stopped for it and come back (as OpenBLAS's): a fork shows it. Raises Refused."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if others:
        raise Refused(f"what is imported has started a thread: {', '.join(others)}")
    if len(os.listdir("/proc/self/task")) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # what Python says of such a fork is what is tried here
            pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        left = len(os.listdir("/proc/self/task")) - 1
        if left:
            raise Refused(f"what is imported has {left} native threads that a fork would lose")


def check_untouched(control: int) -> None:
    """Raises Refused for what all kernels would share: children, temporary files, sockets, pipes, ZMQ contexts, loops, applications."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        raise Refused("what is imported has started a process")
    if tempfile._name_sequence is not None:  # type: ignore[attr-defined]
        raise Refused("what is imported has made a temporary file")
    kinds = {
        "a ZMQ context": ("zmq.sugar.context", "Context"),
        "an event loop": ("asyncio.events", "AbstractEventLoop"),
        "an application": ("traitlets.config.application", "Application"),
    }
    forbidden = {
        getattr(sys.modules[module], name): words
        for words, (module, name) in kinds.items()
        if module in sys.modules and hasattr(sys.modules[module], name)
    }
    for kind in {type(item) for item in gc.get_objects()}:
        for base in kind.__mro__:
            if base in forbidden:
                raise Refused(f"what is imported has made {forbidden[base]}")
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            mode = os.fstat(int(name)).st_mode
            target = os.readlink(f"/proc/self/fd/{name}")
            special = stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or target.startswith("anon_inode:")
            if special and int(name) not in (0, 1, 2, control):
                raise Refused(f"what is imported has opened {target}")


class Watched:
    """Files and directories that imports depend on, as they were."""

    def __init__(self) -> None:
        self.marks: dict[str, Mark] = {}
        self.lists: dict[str, tuple[Mark, frozenset[str]]] = {}

    def directories(self, names: Iterable[str]) -> None:
        """What can be imported from there, and `.pth` files. Archives count as files."""
        for name in names:
            path = os.path.abspath(name)
            if os.path.isfile(path):
                self.files([path])
                continue
            self.lists[path] = mark(path), entries(path)
            self.files(os.path.join(path, item) for item in self.lists[path][1] if item.endswith(".pth"))

    def files(self, names: Iterable[str]) -> None:
        for name in names:
            self.marks.setdefault(name, mark(name))

    def modules(self) -> None:
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if isinstance(path, str):
                self.files([path])

    def changed(self) -> str:
        """What is not as it was, or ""."""
        for path, before in self.marks.items():
            if mark(path) != before:
                return path
        for path, (then, items) in self.lists.items():
            now = mark(path)
            if now != then:
                if entries(path) != items:
                    return path
                self.lists[path] = now, items  # a `__pycache__` was made there
        return ""

    def newer(self, when: int) -> str:
        """A file that was written after `when` (ns since the epoch): perhaps after it was read. Or ""."""
        for path, before in self.marks.items():
            if before is not None and before[0] >= when:
                return path
        return ""


def mapped_files() -> set[str]:
    """Shared libraries, which are replaced apart from the modules that use them, and whatever else is in memory as a file is."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        found = {line.rstrip("\n").split(None, 5)[-1] for line in file if "/" in line}
    return {path for path in found if path.startswith("/") and os.path.isfile(path)}


def mark(path: str) -> Mark:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def entries(path: str) -> frozenset[str]:
    try:
        return frozenset(name for name in os.listdir(path) if name != "__pycache__")
    except OSError:
        return frozenset()


@contextlib.contextmanager
def watched_environment() -> Iterator[set[str]]:
    """The names that are looked up in os.environ meanwhile, whether they are there or not."""
    names: set[str] = set()
    kind: Any = type(os.environ)

    class Watching(kind):  # type: ignore[misc]
        def __getitem__(self, name: str) -> Any:
            if isinstance(name, str):
                names.add(name)
            return super().__getitem__(name)

    os.environ.__class__ = Watching
    # As the kernel application sets it, before anybody can import matplotlib.
    backend = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = backend or "module://matplotlib_inline.backend_inline"
    try:
        yield names
    finally:
        os.environ.__class__ = kind
        del os.environ["MPLBACKEND"]
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
        if "matplotlib" not in sys.modules:
            names.discard("MPLBACKEND")


@contextlib.contextmanager
def watched_files() -> Iterator[set[str]]:
    """The absolute paths that are opened for reading by `open` meanwhile."""
    names: set[str] = set()
    real = builtins.open

    def watching(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if isinstance(file, (str, os.PathLike)) and not set(mode) & set("wax+"):
            path = os.path.abspath(os.fspath(file))
            if isinstance(path, str) and not path.startswith(("/proc/", "/sys/", "/dev/")):
                names.add(path)
        return real(file, mode, *arguments, **named)

    builtins.open = watching
    try:
        yield names
    finally:
        builtins.open = real


# --- a kernel ---------------------------------------------------------------------------------------------------------------------------


def fork() -> int:
    """Fork a grandchild, whose parent is then the listener, its subreaper: it sees the exit of the kernel as that of any other.

    Returns its pid; 0 in the grandchild.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
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
        os._exit(1)  # there is no memory for another process; the listener sees that this one is gone
    return int(text)


def become_kernel(template: Template, order: dict[str, Any]) -> None:
    """Make this process what an exec of the launcher would have made it, and wait to be let go."""
    os.setsid()
    rename(template.name)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, fd in enumerate((null, order["log"], order["log"])):
        os.dup2(fd, number)
    close_all({null, order["log"]} - {0, 1, 2})
    argv = order["argv"]
    retitle(argv, order["environment"].get("KERNEL_ID", ""))
    os.environ.clear()
    os.environ.update(order["environment"])
    os.environ.update(template.assigned)
    for name in template.dropped:
        os.environ.pop(name, None)
    os.chdir(order["directory"])
    sys.argv[:] = argv[1:]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = argv
    sys.modules["__main__"] = template.launcher
    time.tzset()
    renew()
    importlib.invalidate_caches()
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


def main() -> None:
    # What lies beside this file belongs to the listener.
    here = os.path.dirname(os.path.abspath(__file__))
    for place in (here, os.path.realpath(here)):
        while place in sys.path:
            sys.path.remove(place)
        sys.path_importer_cache.pop(place, None)
    os.environ.pop(ROOM, None)
    end_with_parent()
    template = Template(socket.socket(fileno=int(sys.argv[1])))
    order = template.run()
    become_kernel(template, order)
    template.launcher.main()


if __name__ == "__main__":
    main()
