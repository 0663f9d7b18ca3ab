"""A template: a process that has imported what every Python kernel imports, and forks a kernel at each request of the listener.

It runs in the kernels' own interpreter and environment; `prefork.py` is its other end. Over the socket whose number is argv[1] (packets;
what is large comes as a file descriptor) it is told

    first   {launcher, kernel_class, preload}      -> {"ready": names of the environment variables that the imports have read}
                                                      or {"refused": why, "again": whether another may do}
    each    {id, argv, environment, directory}     -> {id, pid, start} once a kernel waits at its gate, or {id, "why"}: then it leaves
            with two more file descriptors: the kernel's log, and its gate: a byte lets it go on, the end of the file ends it
    or      {started: pid}                         of a kernel that has: what it has copied of the memory, a spare copies beforehand

It leaves when the listener does. The rest of its own argv, and a variable of its environment, are room for what `ps` shows of the kernels.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import site
import socket
import stat
import sys
import tempfile
import threading
import time
import types
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from prefork_child import (  # noqa: E402
    ROOM,
    Spare,
    become_kernel,
    close_all,
    end_with_parent,
    fork,
    own_name,
    receive,
    rename,
    start_time,
)
from prefork_pages import make_own, own_pages  # noqa: E402
from prefork_watch import Watched, mapped_files, watched_environment, watched_files  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from prefork_pages import Ranges

NAME = b"dp-prefork"
QUIET = 0.3
"""Seconds without an order after which a spare is made: neither beside the start of the kernel before, nor within a burst."""


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
        self.spare: Spare | None = None
        self.pages: Ranges = []
        """What a spare makes its own beforehand."""

    def run(self) -> dict[str, Any]:
        """Returns in each kernel, with its order; the template itself never does."""
        order, fds = receive(self.control)
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
            if self.spare is None and not readable(self.control, QUIET):
                own = self.make_spare()
                if own is not None:
                    return self.forked(*receive(own), own)
            # Here it waits, also where no spare could be made: that is not tried again before the next order.
            order, fds = receive(self.control)
            if "started" in order:
                close_all(fds)
                self.pages = own_pages(order["started"]) or self.pages
                continue
            if self.fork_for(order, fds):
                return self.forked(order, fds)
            del order

    def make_spare(self) -> socket.socket | None:
        """In the spare: its socket. Without the means for another process there is none."""
        with contextlib.suppress(OSError):
            self.spare = Spare()
        if self.spare is None or self.spare.pid:
            return None
        self.control.close()  # the listener shall see the end of the template, not of its spare
        make_own(self.pages)
        return self.spare.control

    def fork_for(self, order: dict[str, Any], fds: list[int]) -> bool:
        """Have a kernel at its gate, and say so; leave where that must not be. Whether this is the kernel."""
        spare, self.spare = self.spare, None
        if spare is not None and not spare.take(fds):
            spare = None
        try:
            pid = fork() if spare is None else spare.pid
        except OSError as error:
            self.leave({"id": order["id"], "why": f"it cannot fork: {error.strerror}"})
        if pid == 0:
            self.control.close()
            return True
        close_all(fds)
        why = self.watched.changed()  # while the kernel goes to its gate
        why = f"{why} has changed" if why else ""
        if spare is not None and not spare.arrived():
            why = why or "the fork that waited does not go on"
        if why:
            self.leave({"id": order["id"], "why": why})
        self.send({"id": order["id"], "pid": pid, "start": start_time(pid)})
        return False

    def forked(
        self, order: dict[str, Any], fds: list[int], told: socket.socket | None = None
    ) -> dict[str, Any]:
        """In the fork: the order that is its own. `told`: where it says that it is at its gate."""
        self.spare, self.watched = None, Watched()
        text, log, gate = fds
        os.close(text)
        return dict(order, log=log, gate=gate, told=told)

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


def readable(control: socket.socket, timeout: float) -> bool:
    """Whether there is something to read, within so many seconds."""
    poll = select.poll()
    poll.register(control, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def main() -> None:
    # What lies beside this file belongs to the listener: no kernel can import it, nor has imported it.
    for place in (HERE, os.path.realpath(HERE)):
        while place in sys.path:
            sys.path.remove(place)
        sys.path_importer_cache.pop(place, None)
    for name in ("prefork_child", "prefork_pages", "prefork_watch"):
        del sys.modules[name]
    os.environ.pop(ROOM, None)
    end_with_parent()
    template = Template(socket.socket(fileno=int(sys.argv[1])))
    order = template.run()
    become_kernel(template.launcher, order, template.name, template.assigned, template.dropped)
    template.launcher.main()


if __name__ == "__main__":
    main()
