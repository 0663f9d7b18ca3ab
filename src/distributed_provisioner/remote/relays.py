"""The relays of the kernels: a process for each, forked from the listener, that outlives it and keeps what nobody has heard."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import relay
from children import gone
from kernels import OpError
from relay_wire import HELLO, PROTOCOL, TELL, Records, Rubbish, loads, told
from server_listener import remove, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, NoReturn

    from kernels import Kernel
    from listener import Listener

ASK_TIMEOUT = 0.5
"""Seconds that a relay gets to tell how its kernel is; a list is not held up by one that is stopped."""
FIRST_PAUSE, LAST_PAUSE = 0.1, 60.0
"""Seconds before a relay is started again that ended soon after its start."""


class Relays:
    """Starts, watches and ends them. A kernel's `relay` is the path of its socket, or None."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.own: dict[int, Kernel] = {}
        """Those that are our children, by pid."""
        self.pauses: dict[str, tuple[float, float]] = {}
        """kernel id -> (when its relay was started last, pause before the next start)"""

    # life

    def start(self, kernel: Kernel) -> None:
        """Fork a relay for a kernel. It listens at once; `connect` tells it where the kernel is. Raises OSError."""
        path = os.path.join(kernel.home, "t")
        os.makedirs(kernel.home, mode=0o700, exist_ok=True)  # somebody may have cleared it away
        remove(path)  # of one that was killed
        directories = [kernel.home, self.listener.places.state]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                become_relay(path, kernel.output_limit, directories)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        kernel.relay, kernel.relay_pid, kernel.relay_start = path, pid, start_time(pid)
        self.own[pid] = kernel

    def lives(self, kernel: Kernel) -> bool:
        return bool(kernel.relay_pid) and start_time(kernel.relay_pid) == kernel.relay_start

    def hand_on(self, before: Kernel, kernel: Kernel) -> None:
        """A restarted kernel keeps its relay, which its clients are connected to."""
        for name in ("relay", "relay_pid", "relay_start"):
            setattr(kernel, name, getattr(before, name))
        before.relay, before.relay_pid = None, 0
        if kernel.relay_pid in self.own:
            self.own[kernel.relay_pid] = kernel
        else:
            self.listener.spawn(self.watch_foreign(kernel))

    async def end(self, kernel: Kernel) -> None:
        """End a kernel's relay, with all that it keeps."""
        pid, start = kernel.relay_pid, kernel.relay_start
        kernel.relay, kernel.relay_pid = None, 0
        self.pauses.pop(kernel.kernel_id, None)
        give_up = time.monotonic() + 2
        while pid and start_time(pid) == start and time.monotonic() < give_up:
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.002)

    def listen_again(self) -> None:
        """The directories were cleared away: relays make their sockets again when they get SIGHUP."""
        for kernel in self.listener.kernels.values():
            if kernel.relay and not os.path.exists(kernel.relay) and self.lives(kernel):
                os.kill(kernel.relay_pid, signal.SIGHUP)

    # watching

    def ended(self, pid: int) -> bool:
        """Told of each child that has ended; whether it was a relay."""
        kernel = self.own.pop(pid, None)
        if kernel is not None:
            self.lost(kernel, pid)
        return kernel is not None

    async def watch_foreign(self, kernel: Kernel) -> None:
        """A relay that another listener started."""
        pid = kernel.relay_pid
        await gone(pid, kernel.relay_start)
        self.lost(kernel, pid)

    def lost(self, kernel: Kernel, pid: int) -> None:
        """A relay has ended. One whose kernel lives gets a successor."""
        if kernel.relay_pid != pid or self.listener.kernels.get(kernel.kernel_id) is not kernel:
            return
        kernel.relay_pid = 0
        if kernel.state == "running":
            self.listener.spawn(self.start_again(kernel))
        else:
            kernel.relay = None

    def take_over(self, kernel: Kernel) -> None:
        """The relay of a kernel that another listener has launched."""
        if kernel.relay is None:
            return
        if self.lives(kernel):
            self.listener.spawn(self.watch_foreign(kernel))
        else:
            self.lost(kernel, kernel.relay_pid)

    async def start_again(self, kernel: Kernel) -> None:
        now = time.monotonic()
        last, pause = self.pauses.get(kernel.kernel_id, (0.0, 0.0))
        pause = 0.0 if now - last > LAST_PAUSE else min(max(pause * 2, FIRST_PAUSE), LAST_PAUSE)
        self.pauses[kernel.kernel_id] = now + pause, pause
        await asyncio.sleep(pause)
        if kernel.state != "running" or self.listener.kernels.get(kernel.kernel_id) is not kernel:
            return
        started = 0
        try:
            self.start(kernel)
            started = kernel.relay_pid
            kernel.try_to_save()
            await asyncio.wait_for(self.connect(kernel), 30)
        except (OSError, OpError, asyncio.TimeoutError) as error:
            words = str(error) or type(error).__name__
            self.note(kernel, f"its relay ended, and another could not be started: {words}")
            if not self.lives(kernel):
                # Unless its exit has been told already, and the next one is on its way.
                self.lost(kernel, started)
        else:
            self.note(kernel, "its relay ended and was started again: what it had kept is lost")

    def note(self, kernel: Kernel, text: str) -> None:
        self.listener.tell(kernel, "note", text=text)

    # speaking with them

    async def connect(self, kernel: Kernel) -> None:
        """Tell a relay where its kernel is; returns when it hears all that the kernel publishes. Raises OpError."""
        message = {"tell": "connect", "info": kernel.connection_info(), "name": kernel.kernel_id}
        while self.lives(kernel) and kernel.relay and not os.path.exists(kernel.relay):
            await asyncio.sleep(0.002)
        try:
            answer = await self.ask(kernel, message, ("connected", "failed"))
        except (OSError, EOFError, Rubbish) as error:
            raise OpError("relay", f"the kernel's relay ended ({type(error).__name__})") from None
        if answer["tell"] == "failed":
            raise OpError("relay", f"the kernel's relay cannot connect to it: {answer.get('why')}")

    async def ask_states(self, kernels: Iterable[Kernel]) -> None:
        """Learn from the relays how their kernels are; what one does not tell in time stays as it was."""

        async def ask(kernel: Kernel) -> None:
            try:
                answer = await asyncio.wait_for(
                    self.ask(kernel, {"tell": "status"}, ("status",)), ASK_TIMEOUT
                )
                kernel.execution_state = str(answer.get("execution_state") or "")
            except (OSError, EOFError, Rubbish, asyncio.TimeoutError):
                pass

        waiting = [ask(kernel) for kernel in kernels if kernel.relay and kernel.state == "running"]
        await asyncio.gather(*waiting)

    async def ask(self, kernel: Kernel, message: dict[str, Any], wanted: tuple[str, ...]) -> dict[str, Any]:
        """Tell a relay something and await its answer. Raises OSError, EOFError or Rubbish."""
        if kernel.relay is None:
            raise EOFError
        reader, writer = await asyncio.open_unix_connection(kernel.relay)
        try:
            writer.write(told(HELLO, {"protocol": PROTOCOL, "role": "listener"}) + told(TELL, message))
            records = Records()
            while True:
                data = await reader.read(65536)
                if not data:
                    raise EOFError
                for kind, _, _, _, payload in records.feed(data):
                    answer = loads(payload) if kind == TELL else {}
                    if answer.get("tell") in wanted:
                        return answer
        finally:
            writer.close()


def become_relay(path: str, limit: int, directories: list[str]) -> NoReturn:
    """What a forked child does; it never comes back to the listener's loop."""
    try:
        relay.serve(path, limit, directories)
    finally:
        os._exit(1)
