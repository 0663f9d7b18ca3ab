"""One kernel for those who have it: what is known of it, and how it is asked to do things.

The work is done on the I/O loop; callers come from any loop and any thread. `poll()` and the properties are reads of memory.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import HostError, LaunchError
from ..io_thread import IOThread
from ..kernel_log import Log
from ..kernel_on_host import ASK_TIMEOUT, KernelOnHost
from ..models import ExitReason, KernelIdentity, KernelState, LaunchRequest, Login, RemoteProcess
from .adopting import Adopting
from .life import KernelLife
from .orders import Orders
from .starting import Starting


class RemoteKernel:
    """A kernel on some host. Launched, restarted and ended through one object, which survives all its processes.

    Args:
        log: gets lines that begin with `[kernel=… host=…]`.
        unreachable_timeout: seconds, 0 for never; when the host could not be reached for so long, `on_given_up` is called on
            the I/O thread, and whoever gets it answers with `give_up()`.
    """

    def __init__(
        self,
        kernel_id: str,
        log: Log,
        *,
        unreachable_timeout: float = 0.0,
        on_given_up: Callable[[], None] | None = None,
    ) -> None:
        self.kernel_id = kernel_id
        self._life = KernelLife(kernel_id, log, unreachable_timeout, on_given_up or self.give_up)
        self._orders = Orders(self._life)
        self._starting = Starting(self._life, self._orders, log)
        self._adopting = Adopting(self._life)

    # --- what is known ---------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> KernelState:
        return self._life.state

    @property
    def exit_reason(self) -> ExitReason | None:
        """Set once the kernel of the last launch is no more."""
        return self._life.exit_reason

    @property
    def log_tail(self) -> str:
        """The last lines of its log, once it has exited."""
        return self._life.log_tail

    @property
    def process(self) -> RemoteProcess | None:
        """Where the kernel runs, or ran last."""
        return self._life.process

    @property
    def phases(self) -> Mapping[str, float]:
        """Seconds of the last launch: reserve, connect, ship, start, forward, ready."""
        return self._life.phases

    @property
    def generation(self) -> int:
        """Of the last launch; each has a greater one than those before."""
        return self._life.generation

    @property
    def login(self) -> Login:
        return self._life.login

    @property
    def notes(self) -> tuple[str, ...]:
        """What the host remarked about the last launch."""
        return self.process.notes if self.process else ()

    def poll(self) -> int | None:
        """The exit status, None while the kernel runs, starts or cannot be asked. Never waits, never asks anybody."""
        if self.state is not KernelState.EXITED:
            return None
        return self.exit_reason.returncode if self.exit_reason else 0

    async def poll_at_end(self) -> int | None:
        """As `poll`; but if the kernel was asked to end within the last second, waits for its end, which is then seen when it comes."""
        if self._life.end_expected:
            await self._life.expected_end()
        return self.poll()

    # --- what it is asked ------------------------------------------------------------------------------------------------------

    async def launch(self, request: LaunchRequest) -> Mapping[str, Any]:
        """Start the kernel and give Jupyter's connection info (the key as text). Leaves nothing when it fails or is cancelled.

        A second launch is a restart: same host, if it can be reached, and same endpoints.

        Raises:
            NoHostAvailableError: no host could take it.
            LaunchError: it does not start.
        """
        return await self._starting.launch(request)

    async def send_signal(self, number: int) -> None:
        """SIGINT goes where `interrupt_target` says, SIGKILL to the whole descent, any other signal to the process group.

        Raises:
            HostUnreachableError: the host cannot be asked; the kernel may well be alive.
        """
        if number == signal.SIGKILL:
            await self.kill()
        elif number and self.state is not KernelState.EXITED:
            target = "default" if number == signal.SIGINT else "group"
            await IOThread.current().run(self._orders.signal(int(number), target))

    async def terminate(self) -> None:
        """SIGTERM to the process group. A kernel whose host cannot be reached counts as exited from here, and is ended later."""
        self._life.expect_end()
        if self.state is not KernelState.EXITED:
            await IOThread.current().run(self._orders.terminate())

    async def kill(self) -> None:
        """End the whole descent. Where the host cannot be asked: as `terminate`."""
        self._life.ending = True
        if self.state is not KernelState.EXITED:
            await IOThread.current().run(self._orders.end())

    async def about_to_end(self) -> None:
        """It will be asked over its own channels to end; that message gets nowhere when the host cannot be reached."""
        self._life.ending = True
        if self.state is KernelState.UNREACHABLE:
            await self.kill()

    async def shutdown_requested(self) -> None:
        """As `about_to_end`, and that message is on its way."""
        self._life.expect_end()
        await self.about_to_end()

    async def wait(self) -> int | None:
        """Return the exit status when the kernel has exited."""
        if self.state is not KernelState.EXITED:
            await self._life.ended.wait()
        return self.poll()

    async def cleanup(self, restart: bool = False) -> None:
        """Leave nothing of the kernel here and on its host; with `restart`, keep what the next launch needs to be like this one."""
        await self._starting.abandon_last()
        if self._life.to_forget:
            await IOThread.current().run(self._orders.clean_to_the_end(restart))

    async def log(self, limit: int = 65536) -> str:
        """The last `limit` bytes of what the kernel wrote to its standard output and error.

        Raises:
            HostUnreachableError: the host cannot be asked, and the kernel has not exited.
        """
        if self.process is None:
            return ""
        try:
            return await IOThread.current().run(self._life.on_host().log(limit))
        except (HostError, LaunchError):
            if self.state is KernelState.EXITED:
                return self.log_tail[-limit:]
            raise

    async def adopt(
        self, process: RemoteProcess, login: Login, key: str = "", signature_scheme: str = "hmac-sha256"
    ) -> Mapping[str, Any]:
        """Take a kernel over that another process launched. It is attached in the background, as soon as its host can be reached.

        Returns:
            where its endpoints will be on this side, as connection info.
        """
        identity = KernelIdentity(self.kernel_id, key, signature_scheme)
        return await IOThread.current().run(self._adopting.adopt(process, login, identity))

    def take_over(
        self, process: RemoteProcess, login: Login, key: str = "", signature_scheme: str = "hmac-sha256"
    ) -> Mapping[str, Any]:
        """As `adopt`, for callers that cannot await."""
        identity = KernelIdentity(self.kernel_id, key, signature_scheme)
        return IOThread.current().submit(self._adopting.adopt(process, login, identity)).result()

    def detach(self) -> None:
        """Let go of the kernel, which runs on for whoever adopts it. To this process it has ended. Returns when all is let go here."""
        IOThread.current().submit(self._adopting.detach()).result(ASK_TIMEOUT)

    def on_host(self) -> KernelOnHost | None:
        """What its host can be asked, on the I/O loop; None while there is no process."""
        return None if self.process is None or self.state is KernelState.EXITED else self._life.on_host()

    def discard(self) -> None:
        """Nobody wants a kernel that has exited any more: have its host forget it, in the background."""
        if self._life.to_forget and self.state is KernelState.EXITED:
            IOThread.current().submit(self._orders.clean_to_the_end(False))

    def give_up(self) -> None:
        """Count an unreachable kernel as exited; nothing starts it again by itself. Its host ends it when it is back."""
        self._life.ending = True
        IOThread.current().submit(self._orders.give_up())

    def __repr__(self) -> str:
        where = f" on {self.process.host}" if self.process else ""
        pid = f" pid={self.process.pid}" if self.process else ""
        why = f" ({self.exit_reason})" if self.state is KernelState.EXITED and self.exit_reason else ""
        return f"<RemoteKernel {self.kernel_id[:8]}{where} {self.state.value}{why}{pid}>"
