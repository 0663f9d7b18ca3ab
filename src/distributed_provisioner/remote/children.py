"""The processes that the listener watches: its own children, and kernels that an earlier listener has started."""

from __future__ import annotations

import asyncio
import os

from kernels import Kernel
from places import SetupError, check_private
from server_listener import load_json, remove, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from listener import Listener


class Children:
    """Sees processes end, and says so."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def reap(self) -> None:
        """Called at each SIGCHLD; of several exits one may be all that is signaled."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            if not self.listener.relays.ended(pid):
                self.ended(pid, code)

    def ended(self, pid: int, code: int) -> None:
        for kernel in list(self.listener.kernels.values()):
            if kernel.pid == pid and not kernel.leader_gone:
                kernel.leader_gone = True
                if kernel.state != "running" or not kernel.kernel_lives():
                    self.exited(kernel, code)
            elif kernel.kernel_pid == pid and kernel.leader_gone and kernel.state == "running":
                # The launcher had ended before; the kernel that it started is ours since then, as we are its subreaper.
                self.exited(kernel, code)

    def exited(self, kernel: Kernel, code: int | None) -> None:
        if kernel.state == "exited":
            return
        starting = kernel.state == "starting"
        kernel.state, kernel.code = "exited", code
        reason, kernel.detail = self.listener.reasons.explain(kernel, code)
        kernel.reason = kernel.reason or reason
        if kernel.ending is not None and not kernel.ending.done():
            kernel.ending.set_result(None)
        if not starting:
            kernel.try_to_save()
            tail = kernel.log_tail()
            fields: dict[str, Any] = {"code": code, "reason": kernel.reason, "detail": kernel.detail}
            self.listener.tell(kernel, "exited", log_tail=tail, **fields)

    # of an earlier listener

    def take_over(self) -> str | None:
        """The directory of a listener that is gone, if its kernels are still there; they are watched from now on."""
        listener = self.listener
        directory: str | None = load_json(listener.places.record).get("directory")
        if not directory or not os.path.isdir(directory):
            return None
        try:
            check_private(directory)
        except (SetupError, OSError):
            return None  # it was cleared away, and somebody else has made one of that name
        for name in os.listdir(directory):
            home = os.path.join(directory, name)
            values = load_json(os.path.join(home, "record"))
            if name.isdigit():
                listener.counter = max(listener.counter, int(name))
            if values:
                self.adopt(home, values)
            elif name.isdigit():
                remove(home)
        return directory

    def adopt(self, home: str, values: dict[str, Any]) -> None:
        """A kernel from its record."""
        listener = self.listener
        kernel = Kernel(home, **values)
        listener.kernels[kernel.kernel_id] = kernel
        if kernel.state == "starting":  # nobody waits for it any more
            kernel.state, kernel.reason = "exited", "cancelled"
            listener.spawn(listener.discard(kernel, keep_log=False))
            return
        if kernel.state != "exited":
            kernel.state = "running"
            if start_time(kernel.pid) == kernel.start:
                listener.spawn(self.watch_foreign(kernel, kernel.pid, kernel.start))
            elif kernel.kernel_lives():  # its launcher had ended before
                listener.spawn(self.watch_foreign(kernel, kernel.kernel_pid, kernel.kernel_start))
            else:
                self.exited(kernel, None)
        listener.relays.take_over(kernel)

    async def watch_foreign(self, kernel: Kernel, pid: int, start: int | None) -> None:
        """A kernel that another listener started is not our child: its status is for nobody to see."""
        await gone(pid, start)
        if self.listener.kernels.get(kernel.kernel_id) is kernel:
            self.exited(kernel, None)


async def gone(pid: int, start: int | None) -> None:
    """Return when a process that is not our child has ended."""
    try:
        handle = os.pidfd_open(pid)  # Linux, Python 3.9
    except (AttributeError, OSError):
        while start_time(pid) == start:
            await asyncio.sleep(1)
        return
    loop = asyncio.get_event_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(handle, lambda: None if ended.done() else ended.set_result(None))
    try:
        if start_time(pid) == start:  # else the number went to another process meanwhile
            await ended
    finally:
        loop.remove_reader(handle)
        os.close(handle)
