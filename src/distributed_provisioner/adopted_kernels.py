"""Kernel managers for kernels that run already, in and out of the manager of Jupyter Server.

Looks into MappingKernelManager of jupyter_server 2.14 to 2.21, which has no door for them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from .authorization import USER_VARIABLE, user_of
from .errors import ProvisionerError
from .finding import Found
from .persistence import launch_arguments_from_json
from .provisioner import DistributedProvisioner
from .settings import server_environment


def adopted_manager(kernels: Any, kernel: Found, *, is_there: bool = True) -> Any:
    """A KernelManager for a kernel that runs, in the state in which `start_kernel()` leaves one.

    Args:
        is_there: its host has told so; else it counts as unreachable until that is known.
    """
    manager, _, _ = kernels.pre_start_kernel(kernel.kernel_name or None, {"kernel_id": kernel.kernel_id})
    manager.kernel_id = kernel.kernel_id
    launch = kernel.annotations.get("launch") or {}
    manager._launch_args = launch_arguments_from_json(launch, server_environment())
    if hasattr(manager, "transport_encryption") and hasattr(kernels, "transport_encryption"):
        manager.transport_encryption = kernels.transport_encryption
    try:
        spec = manager.kernel_spec
    except NoSuchKernel:
        manager.log.warning(
            "[kernel=%s] its kernelspec '%s' is not installed any more: it goes on, but cannot be restarted",
            kernel.kernel_id[:4], kernel.kernel_name,
        )  # fmt: skip
        spec = manager._kernel_spec = KernelSpec(argv=[], **(launch.get("spec") or {}))
    provisioner = manager.provisioner = provisioner_for(manager, spec, kernel.kernel_id)
    if whose := user_of(provisioner.settings, kernel.process.host, kernel.login):
        # What was kept with the kernel is in its user's hands, who could write another's name there.
        manager._launch_args["env"][USER_VARIABLE] = whose
    manager._attempted_start = True
    with suppress(OSError):  # the earlier run's; where it says the same, the manager would not take it in
        os.remove(manager.connection_file)
    info = provisioner.take_over(kernel) if is_there else provisioner.await_host(kernel)
    manager._reconcile_connection_info(info)
    manager.ready.set_result(None)
    manager.start_restarter()
    manager._connect_control_socket()
    provisioner.watch_restarts()
    return manager


def provisioner_for(manager: Any, spec: KernelSpec, kernel_id: str) -> DistributedProvisioner:
    """As its kernelspec has it now; a kernel whose kernelspec has changed to another provisioner, or is wrong now, goes on with ours."""
    try:
        factory = KernelProvisionerFactory.instance(parent=manager.parent)
        provisioner = factory.create_provisioner_instance(kernel_id, spec, parent=manager)
        if isinstance(provisioner, DistributedProvisioner):
            return provisioner
    except (ProvisionerError, ModuleNotFoundError) as error:
        manager.log.warning("[kernel=%s] goes on, but cannot be restarted: %s", kernel_id[:4], error)
    return DistributedProvisioner(kernel_id=kernel_id, kernel_spec=spec, parent=manager)


def register(kernels: Any, kernel: Found, manager: Any) -> None:
    """What MappingKernelManager does when a kernel has started."""
    kernel_id = kernel.kernel_id
    kernels._kernels[kernel_id] = manager
    kernels._kernel_connections[kernel_id] = 0
    kernels._kernel_ports[kernel_id] = manager.ports
    kernels.start_watching_activity(kernel_id)
    kernels.add_restart_callback(kernel_id, lambda: kernels._handle_kernel_died(kernel_id), "dead")
    if kernel.execution_state == "idle":
        manager.execution_state = "idle"
    else:
        # A websocket would wait for a busy kernel's answer to kernel_info for a minute.
        manager.execution_state = "busy"
        manager._kernel_info_future = manager.loop.asyncio_loop.create_future()
        manager._kernel_info_future.set_result({})
        if kernel.execution_state != "busy":
            _ask_whether_idle(manager)
    _count(manager, +1)
    if not kernels._initialized_culler:
        kernels.initialize_culler()


def returned(manager: Any, kernel: Found) -> bool:
    """Go on with an awaited kernel whose host has told that it lives; False if clients would not find it where they look for it."""
    before = manager.provisioner.connection_info
    if manager.provisioner.take_over(kernel) != before:
        return False
    if kernel.execution_state in ("busy", "idle"):
        manager.execution_state = kernel.execution_state
    return True


def awaiting(kernels: Any, kernel_id: str) -> Any:
    """The manager of a kernel whose host has not yet told what became of it; None for others."""
    manager = kernels._kernels.get(kernel_id)
    provisioner = getattr(manager, "provisioner", None)
    return manager if isinstance(provisioner, DistributedProvisioner) and provisioner.is_awaited else None


def leave(kernels: Any, kernel_id: str) -> None:
    """Let go of a kernel and let it run."""
    manager = kernels.get_kernel(kernel_id)
    manager.stop_restarter()
    kernels.stop_watching_activity(kernel_id)
    kernels.stop_buffering(kernel_id)
    kernels.remove_kernel(kernel_id)
    kernels._kernel_connections.pop(kernel_id, None)
    kernels._kernel_ports.pop(kernel_id, None)
    manager._close_control_socket()
    manager.cleanup_connection_file()  # not its ipc files: on this machine they are the kernel's own
    manager.provisioner.leave_running()
    _count(manager, -1)


def _ask_whether_idle(manager: Any) -> None:
    """Nobody knows whether the kernel is busy: it answers on shell as soon as it is not."""
    channel = manager.connect_shell()

    def answered(message: Sequence[bytes]) -> None:
        channel.close()
        if manager.execution_state == "busy":
            manager.execution_state = "idle"

    channel.on_recv(answered)
    manager.session.send(channel, "kernel_info_request")


def _count(manager: Any, change: int) -> None:
    from jupyter_server.prometheus import metrics

    metrics.KERNEL_CURRENTLY_RUNNING_TOTAL.labels(type=manager.kernel_name).inc(change)


def is_served_here(kernels: Any) -> bool:
    """Whether the server starts kernels itself; one that is a client of a gateway has none."""
    from jupyter_server.gateway.managers import GatewayMappingKernelManager
    from jupyter_server.services.kernels.kernelmanager import MappingKernelManager

    return (
        isinstance(kernels, MappingKernelManager)
        and not isinstance(kernels, GatewayMappingKernelManager)
        and os.name != "nt"
    )
