"""What Jupyter sees: a kernel provisioner, one object a kernel. It translates, and does nothing else."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from .annotations import Annotations
from .awaited_kernel import AwaitedKernel
from .errors import ConfigurationError, HostError, ProvisionerError
from .finding import Found
from .http_errors import as_http_error
from .jupyter_manager import JupyterManager
from .kernel import RemoteKernel
from .launch_request import build_request, check_kernel_id
from .models import CHANNELS, ExitReason, LaunchRequest
from .persistence import (
    connection_info_from_json,
    connection_info_to_json,
    launch_to_json,
    login_from_json,
    login_to_json,
    process_from_json,
    process_to_json,
)
from .server_hosts import remember_host
from .server_kernels import forget_kernel, remember_kernel
from .server_sessions import session_being_started
from .settings import SettingsTraits
from .turns import take_turn

T = TypeVar("T")


class DistributedProvisioner(SettingsTraits, KernelProvisionerBase):  # type: ignore[metaclass] # it is a subclass of both
    """Starts kernels on a set of hosts over SSH.

    Every error is of the package's tree and also tornado's HTTPError: 403 where a user may not, 503 where no host can, else 500.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._manager = JupyterManager(kwargs.get("parent"))
        try:
            if os.name == "nt":
                raise ConfigurationError(
                    "The distributed provisioner does not run on Windows. Start the server on Linux or macOS, for example in WSL."
                )
            super().__init__(**kwargs)
        except ProvisionerError as error:
            self._manager.forget_pending(kwargs.get("kernel_id"))
            raise as_http_error(error) from error.__cause__
        self.connection_info: KernelConnectionInfo = {}
        self._request: LaunchRequest | None = None
        self._key = ""
        self._curve: dict[str, str] | None = None
        self._has_process = False
        self._kernel = AwaitedKernel(
            self.kernel_id or "",
            self.log,
            unreachable_timeout=self.settings.unreachable_timeout,
            on_given_up=self._on_given_up,
        )
        self.annotations = Annotations(self._kernel.on_host, self.log)
        """What the host keeps for the application, for as long as it has the kernel."""

    # --- for users of the library --------------------------------------------------------------------------------------------

    @property
    def kernel(self) -> RemoteKernel:
        """The kernel: its state, host, processes, notes."""
        return self._kernel

    @property
    def exit_reason(self) -> ExitReason | None:
        """Why the kernel is no more; None while it is, or may be."""
        return self._kernel.exit_reason

    @property
    def launch_phases(self) -> Mapping[str, float]:
        """Seconds of the last launch: reserve, connect, ship, start, forward, ready."""
        return dict(self._kernel.phases)

    async def kernel_log(self, limit: int = 65536) -> str:
        """The last `limit` bytes of what the kernel wrote to its standard output and error.

        Raises:
            HostUnreachableError: its host cannot be asked.
        """
        return await _translated(self._kernel.log(limit))

    # --- start: KernelManager calls pre_launch, launch_kernel, has_process, post_launch -----------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Settle the launch from what the start request brought (`env`, `cwd`, `extra_arguments`).

        The base class would fill `${NAME}` in the spec's env from the server's environment; here that is done on the host.

        Raises:
            NotAuthorizedError: the user may not start this kernel (403).
            ConfigurationError: something in the request or in an option cannot be used.
        """
        try:
            await take_turn()
            self._request = self._build_request(kwargs)
        except ProvisionerError as error:
            raise self._failed(error) from error.__cause__
        except BaseException:
            self._manager.forget_pending(self.kernel_id)
            raise
        return {**kwargs, "cmd": list(self._request.argv)}

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel and give a new dict of connection info. Nothing is left of a launch that fails or is cancelled.

        Raises:
            NoHostAvailableError: no host could take it (503); `tried` has each host's reason.
            LaunchError: it does not start (500).
        """
        if self._request is None:
            raise RuntimeError("pre_launch() has to be called before launch_kernel().")
        try:
            info = await self._manager.with_retries(lambda: self._launch(cmd), self.log)
        except ProvisionerError as error:
            raise self._failed(error) from error.__cause__
        except BaseException:
            self._manager.forget_pending(self.kernel_id)
            raise
        self.connection_info = info
        self._has_process = True
        self._launched()
        return info

    async def post_launch(self, **kwargs: Any) -> None:
        """Learn of the restarter, which exists from here on, when it starts a kernel again by itself."""
        self.watch_restarts()

    def watch_restarts(self) -> None:
        """As `post_launch`, for a kernel that was adopted."""
        self._manager.watch_restarts(on_dead=self._dead)

    @property
    def has_process(self) -> bool:
        """Whether a kernel was launched whose end nobody has waited for."""
        return self._has_process

    # --- life ---------------------------------------------------------------------------------------------------------------

    async def poll(self) -> int | None:
        """None while the kernel runs, or cannot be asked; else its exit status. Answers from memory.

        Asks nobody, but waits for the end that a shutdown request has asked for: whoever asks here would sleep longer than that.
        """
        return await self._kernel.poll_at_end() if self._has_process else 0

    async def wait(self) -> int | None:
        """Return the exit status, when the kernel has exited."""
        code = await self._kernel.wait() if self._has_process else 0
        self._has_process = False
        return code

    async def send_signal(self, signum: int) -> None:
        """Interrupt or signal the kernel: one message.

        Raises:
            HostUnreachableError: its host cannot be asked (503); never while Jupyter shuts the kernel down.
        """
        if not self._has_process:
            return
        shutting_down = self._manager.shutting_down
        if shutting_down:
            await self._kernel.about_to_end()
        try:
            await _translated(self._kernel.send_signal(signum))
        except HostError as error:
            if not shutting_down:
                raise
            self.log.debug("no interrupt before the shutdown: %s", error)

    async def kill(self, restart: bool = False) -> None:
        """End the kernel and all its descent, at once. Counts as exited afterwards, whatever its host says."""
        if self._has_process:
            await _translated(self._kernel.kill())

    async def terminate(self, restart: bool = False) -> None:
        """Ask the kernel's process group to end (SIGTERM)."""
        if self._has_process:
            await _translated(self._kernel.terminate())

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Jupyter has asked the kernel to end, over its control channel: there is nothing to send."""
        if self._has_process:
            await _translated(self._kernel.shutdown_requested())

    async def cleanup(self, restart: bool = False) -> None:
        """Leave nothing, here and on the host; before a restart, keep host and endpoints."""
        await _translated(self._kernel.cleanup(restart))
        self._has_process = False
        if not restart:
            self.connection_info = {}
            forget_kernel(self._kernel.kernel_id)

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Seconds for a graceful shutdown: as configured, since exits are told at once."""
        return recommended

    def get_stable_start_time(self, recommended: float = 10.0) -> float:
        """Seconds after which a started kernel counts as stable."""
        return recommended

    # --- for applications that keep kernels over their own restart ----------------------------------------------------------

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Plain JSON, from which `load_provisioner_info` of another process finds the kernel again. No password is in it."""
        info = await super().get_provisioner_info()
        info["connection_info"] = connection_info_to_json(self.connection_info)
        process = self._kernel.process if self._has_process else None
        info["process"] = process_to_json(process) if process else None
        info["login"] = login_to_json(self._kernel.login)
        info["curve"] = self._curve
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take the kernel over. `connection_info` has its new endpoints at once; the host is contacted in the background.

        Raises:
            ConfigurationError: the information is damaged or of another version.
        """
        try:
            info = connection_info_from_json(provisioner_info["connection_info"])
            await super().load_provisioner_info({**provisioner_info, "connection_info": info})
            self._key = info.get("key", b"").decode("utf-8")
            self._curve = provisioner_info.get("curve")
            if provisioner_info.get("process"):
                process = process_from_json(provisioner_info["process"])
                login = login_from_json(provisioner_info["login"], self.settings.login.password)
                self._kernel.kernel_id = check_kernel_id(self.kernel_id)
                scheme = str(info.get("signature_scheme") or "hmac-sha256")
                where = await self._kernel.adopt(process, login, self._key, scheme)
                self.connection_info = _connection_info({**info, **where})
                self._has_process = True
        except ProvisionerError as error:
            raise as_http_error(error) from error.__cause__

    def take_over(self, found: Found) -> KernelConnectionInfo:
        """Go on with a kernel of an earlier process of this server; its endpoints are there at once. Waits for the I/O thread only.

        Raises:
            ConfigurationError: its id cannot be used.
        """
        self._kernel.kernel_id = check_kernel_id(self.kernel_id)
        if self._kernel.is_awaited:
            self.annotations.returned(found.annotations)
        else:
            self.annotations.adopted(found.annotations)
        where = self._kernel.take_over(found.process, found.login, found.key, found.signature_scheme)
        return self._go_on(found, where)

    def await_host(self, found: Found) -> KernelConnectionInfo:
        """As `take_over`, for a kernel whose host is away: it counts as unreachable until `take_over`, or `found_dead`."""
        self._kernel.kernel_id = check_kernel_id(self.kernel_id)
        self.annotations.adopted(found.annotations)
        return self._go_on(found, self._kernel.await_host(found.process, found.login))

    @property
    def is_awaited(self) -> bool:
        """Whether its host has not yet told what became of it."""
        return self._kernel.is_awaited

    def found_dead(self, reason: ExitReason, log_tail: str) -> None:
        """The host of an awaited kernel has told that it is no more."""
        self._kernel.found_dead(reason, log_tail)

    def remember(self) -> None:
        """Write down what the next start of this server will need should the host be away then."""
        process = self._kernel.process
        if process is None or not self._has_process:
            return
        remember_kernel(
            Found(
                kernel_id=self._kernel.kernel_id,
                kernel_name=self._manager.kernel_name,
                process=process,
                login=self._kernel.login,
                key=self._key,
                signature_scheme=str(self.connection_info.get("signature_scheme") or "hmac-sha256"),
                encryption=self._curve,
                annotations=self.annotations.values,
                execution_state=str(getattr(self.parent, "execution_state", None) or ""),
            )
        )

    def leave_running(self) -> None:
        """Let go of the kernel: it runs on for the next start of the server. To this one it is no more."""
        self._has_process = False
        self._kernel.detach()

    # --- helpers --------------------------------------------------------------------------------------------------------------

    def _build_request(self, kwargs: Mapping[str, Any]) -> LaunchRequest:
        kernel_id = check_kernel_id(self.kernel_id)
        self._kernel.kernel_id = kernel_id
        cwd, extra_arguments = kwargs.get("cwd"), kwargs.get("extra_arguments") or ()
        request = build_request(
            self.settings,
            kernel_id=kernel_id,
            kernel_name=self._manager.kernel_name,
            kernel_spec=self.kernel_spec,
            env=kwargs.get("env"),
            cwd=cwd,
            extra_arguments=extra_arguments,
            key=self._session_key(),
            encryption=self._encryption(),
            encrypt_ipc=self._manager.encryption(self.kernel_spec) != "disabled",
        )
        launch = launch_to_json(request, self.kernel_spec, cwd, extra_arguments)
        notes = self.annotations.for_launch({"launch": launch, **session_being_started()})
        return replace(request, annotations=notes)

    def _launched(self) -> None:
        self.annotations.set({})  # what was said of the kernel while it was being started
        process = self._kernel.process
        if process is not None:
            remember_host(process.host, self._kernel.login)
        self.remember()

    def _go_on(self, found: Found, where: Mapping[str, Any]) -> KernelConnectionInfo:
        self._key, self._curve = found.key, dict(found.encryption or {}) or None
        known = {"key": found.key, "signature_scheme": found.signature_scheme, **(found.encryption or {})}
        self.connection_info = _connection_info({**known, **where})
        self._has_process = True
        return self.connection_info

    def _dead(self) -> None:
        """The restarter has given it up."""
        forget_kernel(self._kernel.kernel_id)
        self._kernel.discard()

    async def _launch(self, cmd: list[str]) -> KernelConnectionInfo:
        assert self._request is not None
        self._manager.remember_loop()
        return _connection_info(await self._kernel.launch(self._request))

    def _session_key(self) -> str:
        """The manager's, so that it is the same after a restart."""
        self._key = self._manager.session_key or self._key or secrets.token_hex(32)
        return self._key

    def _encryption(self) -> dict[str, str] | None:
        """Curve keys where the kernel can use them, the same over restarts; nobody but the provisioner makes them."""
        if not self._manager.can_encrypt(self.kernel_spec):
            return None
        if self._curve is None:
            public, secret = zmq.curve_keypair()
            self._curve = {
                "curve_publickey": public.decode("ascii"),
                "curve_secretkey": secret.decode("ascii"),
            }
        return self._curve

    def _failed(self, error: ProvisionerError) -> ProvisionerError:
        self._has_process = False
        forget_kernel(self.kernel_id or "")
        self._manager.launch_failed(self.kernel_id)
        return as_http_error(error)

    def _on_given_up(self) -> None:
        self._manager.give_up(self._kernel.give_up)


def _connection_info(info: Mapping[str, Any]) -> KernelConnectionInfo:
    """A dict of its own for Jupyter, types as jupyter_client wants them."""
    key = info.get("key", b"")
    result: dict[str, Any] = {
        "transport": str(info["transport"]),
        "ip": str(info["ip"]),
        "key": key if isinstance(key, bytes) else str(key).encode("utf-8"),
        "signature_scheme": str(info.get("signature_scheme") or "hmac-sha256"),
        **{f"{channel}_port": int(info[f"{channel}_port"]) for channel in CHANNELS},
    }
    for name in ("curve_publickey", "curve_secretkey"):
        if info.get(name):
            result[name] = str(info[name])
    return result  # type: ignore[return-value]


async def _translated(work: Awaitable[T]) -> T:
    try:
        return await work
    except ProvisionerError as error:
        raise as_http_error(error) from error.__cause__
