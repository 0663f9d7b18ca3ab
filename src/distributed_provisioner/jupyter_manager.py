"""What the provisioner needs of the KernelManager that it works for, and the cures for that manager's traps.

Managers differ: synchronous or not, with a restarter or not, below a MultiKernelManager or not, older than Curve or not. Only this file
looks at them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from jupyter_core import utils

from .errors import ConfigurationError, ProvisionerError
from .launch_request import Encryption

RETRY_PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each further attempt to start a kernel that died; nobody is there to try again by hand."""

T = TypeVar("T")


class JupyterManager:
    """The manager, or None where the provisioner is used without one."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._loop: asyncio.AbstractEventLoop | None = None
        self._restarting_by_itself = False
        self._watched: Any = None

    # --- what it is ---------------------------------------------------------------------------------------------------------

    @property
    def kernel_name(self) -> str:
        return str(getattr(self._manager, "kernel_name", "") or "")

    @property
    def shutting_down(self) -> bool:
        return bool(getattr(self._manager, "shutting_down", False))

    @property
    def session_key(self) -> str:
        session = getattr(self._manager, "session", None)
        return bytes(session.key).decode("utf-8") if session is not None else ""

    def encryption(self, kernel_spec: Any) -> Encryption:
        """The policy for this kernel: `auto` becomes `disabled` where the kernel cannot.

        Raises:
            ConfigurationError: encryption is required, and this kernel or this jupyter_client cannot.
        """
        value = str(getattr(self._manager, "transport_encryption", "disabled")).lower()
        if value == "required" and not self.can_encrypt(kernel_spec):
            raise ConfigurationError(
                f"transport_encryption is 'required', but kernel specification '{self.kernel_name}' does not declare "
                '"curve" in metadata.supported_encryption. Declare it if its kernel can, or start another kernel.'
            )
        if value == "required":
            return "required"
        return "auto" if value == "auto" and self.can_encrypt(kernel_spec) else "disabled"

    def can_encrypt(self, kernel_spec: Any) -> bool:
        """Whether the kernel declares Curve, and the manager (jupyter_client 8.9 and later) speaks it."""
        declared = (getattr(kernel_spec, "metadata", None) or {}).get("supported_encryption") or ()
        names = [declared] if isinstance(declared, str) else declared
        return hasattr(self._manager, "curve_publickey") and "curve" in {
            str(name).strip().lower() for name in names
        }

    # --- its traps ------------------------------------------------------------------------------------------------------------

    def remember_loop(self) -> None:
        """The loop of this call is the one on which the manager's callbacks may be called."""
        self._loop = asyncio.get_running_loop()

    def forget_pending(self, kernel_id: str | None) -> None:
        """A failed start stays in `_pending_kernels` for ever, and on SIGTERM the server would wait for it for ever."""
        pending = getattr(getattr(self._manager, "parent", None), "_pending_kernels", None)
        if isinstance(pending, dict) and kernel_id is not None:
            pending.pop(kernel_id, None)

    def watch_restarts(self, on_dead: Callable[[], None]) -> None:
        """Have the restarter tell when it is about to start a dead kernel again, and when it gives it up: nobody cleans up then."""
        restarter = getattr(self._manager, "_restarter", None)
        if restarter is not None and restarter is not self._watched:
            self._watched = restarter
            restarter.add_callback(self._on_restart, "restart")
            restarter.add_callback(on_dead, "dead")

    def _on_restart(self) -> None:
        self._restarting_by_itself = True

    async def with_retries(self, attempt: Callable[[], Awaitable[T]], log: Any) -> T:
        """A launch; when the restarter asks for it, with retries, as it makes one attempt only and says nothing when that fails."""
        pauses = list(RETRY_PAUSES) if self._restarting_by_itself else []
        while True:
            try:
                result = await attempt()
            except ProvisionerError as error:
                if not pauses:
                    raise
                log.warning(
                    "The kernel could not be started again, next attempt in %g s: %s", pauses[0], error
                )
                await asyncio.sleep(pauses.pop(0))
            else:
                self._restarting_by_itself = False
                return result

    def launch_failed(self, kernel_id: str | None) -> None:
        """Nothing waits for this kernel any more; after an automatic restart, its users are told that it is dead."""
        self.forget_pending(kernel_id)
        if self._restarting_by_itself:
            self._restarting_by_itself = False
            self._declare_dead()

    def give_up(self, then: Callable[[], None]) -> None:
        """Stop the restarter, tell that the kernel is dead, and only `then` let it count as exited. Called on any thread."""

        def on_loop() -> None:
            try:
                if self._manager is not None and hasattr(self._manager, "stop_restarter"):
                    self._manager.stop_restarter()
                self._declare_dead()
            finally:
                then()

        loop = getattr(getattr(self._manager, "loop", None), "asyncio_loop", None) or self._loop
        if self._watched is None or loop is None or loop.is_closed():
            on_loop()
        else:
            loop.call_soon_threadsafe(on_loop)

    def _declare_dead(self) -> None:
        restarter = getattr(self._manager, "_restarter", None)
        if restarter is not None:
            restarter._fire_callbacks("dead")


def _part_with_the_parents_loop() -> None:
    """Have a forked child make an event loop of its own for jupyter_client's synchronous calls, nbclient and papermill.

    They go on with the loop that jupyter_core remembers. Its epoll and its wake-up pipe are the parent's, too: each of the two would
    take wake-ups of the other, which then waits for ever, and closing the loop in one of them would deafen the other.
    """
    remembered = getattr(utils, "_loop", None)
    loop = remembered.get() if remembered is not None else None
    if loop is not None and not loop.is_running():
        loop._closed = True  # jupyter_core makes a new one for a closed one, and nobody closes it again


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_part_with_the_parents_loop)
