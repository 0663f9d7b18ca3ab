"""What a host is asked for when it is to launch a kernel, and how that kernel's messages will get here."""

from __future__ import annotations

from typing import Any

from ..errors import HostSetupError
from ..models import KernelTransport, LaunchRequest, RemoteProcess
from ..ssh import HostConnection


class UnfitHostError(HostSetupError):
    """The host is well, but cannot have this kind of kernel."""


def question(
    request: LaunchRequest,
    connection: HostConnection,
    generation: int,
    transport: KernelTransport,
    kept: RemoteProcess | None,
) -> dict[str, Any]:
    """The parameters of the listener's `launch`; the endpoints are those of the process `kept`, if there is one."""
    return {
        "kernel_id": request.kernel_id,
        "generation": generation,
        "kernel_name": request.kernel_name,
        "argv": list(request.argv),
        "resource_dir": request.resource_dir,
        "key": request.key,
        "spec_env": dict(request.spec_env),
        "request_env": dict(request.request_env),
        "directories": list(request.directories),
        "transport": transport,
        "address": direct_address(connection) if transport == "direct" else None,
        "port_range": [request.port_range.low, request.port_range.high],
        "ports": dict(kept.ports) if kept else None,
        "ip": kept.ip if kept else None,
        "encryption": dict(request.encryption or {}) if transport != "ipc" or request.encrypt_ipc else None,
        "prefix": request.prefix,
        "public_key": request.public_key,
        "launch_timeout": request.launch_timeout,
        "orphan_timeout": request.orphan_timeout,
        "interrupt_target": request.interrupt_target,
        "remote_python": request.remote_python,
        "log_dir": request.kernel_log_dir,
        "annotations": dict(request.annotations),
        "relay": is_relayed(request, transport),
        "output_limit": request.output_limit,
        "prefork": request.prefork,
        "preload": list(request.preload),
        "prefork_idle": request.prefork_idle,
    }


def transport_for(request: LaunchRequest, connection: HostConnection) -> KernelTransport:
    """What the kernel's sockets will be: as wanted, or what sshd lets us reach. Raises UnfitHostError."""
    wanted = request.kernel_transport
    if is_relayed(request, wanted):
        return wanted
    if wanted in connection.supports:
        return wanted
    if wanted == "ipc" and "tcp" in connection.supports:
        return "tcp"
    if getattr(connection, "run_as", None):
        wanted = "tcp"  # its own Unix sockets are out of reach for sshd
    option = "AllowTcpForwarding" if wanted == "tcp" else "AllowStreamLocalForwarding"
    raise UnfitHostError(
        f"sshd on {connection.address} forbids the forwarding that this kernel needs ({wanted}). "
        f"Set {option} to yes (or local) in its sshd_config.",
        host=str(connection.address),
    )


def is_relayed(request: LaunchRequest, transport: KernelTransport) -> bool:
    """Whether the kernel's messages go through a relay on its host: not where they are encrypted, and not where nothing is between."""
    return transport != "direct" and not (request.encryption and (transport != "ipc" or request.encrypt_ipc))


def direct_address(connection: HostConnection) -> str:
    """The host's own address, as the server sees it."""
    return str(getattr(connection, "peer_address", None) or connection.address.host)
