"""Going on with the kernels of an earlier run of this Jupyter Server, and leaving them for the next one.

Looks into MappingKernelManager and SessionManager of jupyter_server 2.14 to 2.21, which have no door for kernels that run already.
"""

from __future__ import annotations

import inspect
import os
import queue
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_core.paths import jupyter_data_dir

from .errors import ConfigurationError, ProvisionerError
from .finding import Found, Place, Search, end_later, newest
from .kernel_log import Log
from .owner import owner
from .persistence import launch_arguments_from_json
from .provisioner import DistributedProvisioner
from .server_hosts import HostHints, use_hints
from .server_sessions import Sessions
from .settings import OPTION, ServerSettings, Settings, resolve, server_environment

PROVISIONER = "distributed-provisioner"
WAIT = 2.5
"""Seconds that the start of the server waits for hosts to answer; kernels on others appear when they do."""


class Adoption:
    """Finds kernels and hands them to the server's managers; on the server's own thread, but for what it asks the I/O thread to do.

    Args:
        server: the ServerApp, its managers made, its loop not yet running or running.
    """

    def __init__(self, server: Any, settings: ServerSettings) -> None:
        self._server = server
        self._log = server.log
        self._settings = settings
        self._kernels = server.kernel_manager
        self._sessions = Sessions(server.session_manager, self._annotate)
        self._hints = HostHints(hints_file())
        self._arrived: queue.SimpleQueue[list[Found]] = queue.SimpleQueue()
        self._search: Search | None = None

    def watch(self) -> None:
        """Keep on the hosts what the next run will need, and let kernels be that are to be kept."""
        use_hints(self._hints)
        self._sessions.watch()
        shutdown_all = self._kernels.shutdown_all

        def leave_and_shut_down(*args: Any, **kwargs: Any) -> Any:
            self._stopping()
            return shutdown_all(*args, **kwargs)

        self._kernels.shutdown_all = leave_and_shut_down

    def adopt(self, wait: float = WAIT) -> None:
        """Ask the hosts; what those say that answer within `wait` seconds is in place when this returns."""
        hinted = self._hints.read(self._settings.settings.login.password)
        places = configured_places(self._settings, all_specs(self._server.kernel_spec_manager), self._log)
        if not places and not hinted:
            return
        search = self._search = Search(places, hinted or places, self._deliver, self._log)
        search.start()
        search.wait(wait)
        self._hints.add(place for place in hinted if place not in search.answered)
        self._take_in()

    # --- what arrives -------------------------------------------------------------------------------------------------------

    def _deliver(self, kernels: list[Found]) -> None:
        """On the I/O thread."""
        self._arrived.put(kernels)
        try:
            self._server.io_loop.add_callback(self._take_in)
        except RuntimeError:
            self._log.debug("the server is ending: %d kernels are left to the next one", len(kernels))

    def _take_in(self) -> None:
        arrived: list[Found] = []
        if self._search is None:
            return  # the server is stopping: they are left to the next one
        while not self._arrived.empty():
            arrived += self._arrived.get()
        latest, superseded = newest(arrived)
        for kernel in superseded:
            end_later(kernel)
        taken = [kernel for kernel in latest if self._take(kernel)]
        self._hints.add(Place(kernel.process.host, kernel.login) for kernel in taken)
        if taken:
            hosts = sorted({str(kernel.process.host) for kernel in taken})
            self._log.info("went on with %d kernels of an earlier run, on %s", len(taken), ", ".join(hosts))

    def _take(self, kernel: Found) -> bool:
        """Go on with one kernel; nothing that is wrong with it keeps the server from starting, or the kernel from living."""
        if not self._has_place_for(kernel):
            return False
        try:
            register(self._kernels, kernel, adopted_manager(self._kernels, kernel))
            sessions = self._sessions.restore(kernel.kernel_id, kernel.annotations)
        except Exception:
            self._log.exception(
                "[kernel=%s host=%s] cannot be gone on with", kernel.kernel_id[:4], kernel.process.host
            )
            self._kernels.remove_kernel(kernel.kernel_id)
            return False
        for session in sessions.values():
            self._update_environment(kernel.kernel_id, session)
        where = ", ".join(str(session.get("path")) for session in sessions.values()) or "no session"
        self._log.info("[kernel=%s host=%s] goes on (%s)", kernel.kernel_id[:4], kernel.process.host, where)
        return True

    def _has_place_for(self, kernel: Found) -> bool:
        """Whether its id is free here; of two launches of one kernel the later one stays."""
        if kernel.kernel_id in self._kernels._pending_kernels:
            end_later(kernel)  # a client has chosen its id for a new one
            return False
        if kernel.kernel_id not in self._kernels:
            return True
        provisioner = getattr(self._kernels.get_kernel(kernel.kernel_id), "provisioner", None)
        process = provisioner.kernel.process if isinstance(provisioner, DistributedProvisioner) else None
        if process is None or process.generation >= kernel.process.generation:
            if process is None or process.generation > kernel.process.generation:
                end_later(kernel)
            return False
        leave(self._kernels, kernel.kernel_id)
        end_later(Found(kernel.kernel_id, "", process, kernel.login, "", "", None, {}, ""))
        return True

    def _update_environment(self, kernel_id: str, session: Mapping[str, Any]) -> None:
        """The notebook may have been renamed since the kernel was started; a restart shall know its name."""
        get = getattr(self._server.session_manager, "get_kernel_env", None)
        update = getattr(self._kernels, "update_env", None)
        if get is not None and update is not None and session.get("type") == "notebook":
            update(kernel_id=kernel_id, env=get(session["path"], session.get("name")))

    # --- what is kept -------------------------------------------------------------------------------------------------------

    def _annotate(self, kernel_id: str, annotations: dict[str, Any]) -> None:
        manager = self._kernels._kernels.get(kernel_id)
        provisioner = getattr(manager, "provisioner", None)
        if isinstance(provisioner, DistributedProvisioner):
            provisioner.annotations.set(annotations)

    def _stopping(self) -> None:
        """Let kernels be that are to be kept; what remains after this is ended."""
        if self._search is not None:
            self._search.stop()
            self._search = None
        for kernel_id, manager in list(self._kernels._kernels.items()):
            provisioner = getattr(manager, "provisioner", None)
            if (
                not isinstance(provisioner, DistributedProvisioner)
                or provisioner.settings.on_server_stop != "keep"
            ):
                continue
            busy = kernel_id in self._kernels._pending_kernels or manager.shutting_down
            if provisioner.has_process and not busy:  # else it is being started, restarted or ended
                leave(self._kernels, kernel_id)
                self._log.info("[kernel=%s] is left running for the next start of this server", kernel_id[:4])


# --- where to ask -------------------------------------------------------------------------------------------------------------------


def configured_places(server: ServerSettings, specs: Mapping[str, Any], log: Log) -> list[Place]:
    """All hosts of the configuration, if it names some, and of the kernelspecs for our provisioner."""
    settings: list[Settings] = []
    if "remote_hosts" in server.configured() or OPTION["remote_hosts"].from_environment():
        settings.append(server.settings)
    for name, spec in specs.items():
        stanza = (spec.get("metadata") or {}).get("kernel_provisioner") or {}
        default = KernelProvisionerFactory.instance().default_provisioner_name
        if stanza.get("provisioner_name", default) != PROVISIONER:
            continue
        try:
            settings.append(resolve(stanza.get("config") or {}, server.configured()))
        except ConfigurationError as error:
            log.warning("kernelspec '%s': no kernels of it are looked for: %s", name, error)
    places = [Place(host, each.login) for each in settings for host in each.remote_hosts]
    return list(dict.fromkeys(places))


def all_specs(spec_manager: Any) -> dict[str, Any]:
    """The kernel.json of each kernelspec by its name; empty for managers that cannot tell without waiting."""
    found = spec_manager.get_all_specs()
    if inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()
        return {}
    return {name: each["spec"] for name, each in found.items()}


def hints_file() -> Path:
    return Path(jupyter_data_dir(), PROVISIONER, f"hosts-{owner().rpartition(':')[2]}.json")


# --- one kernel ---------------------------------------------------------------------------------------------------------------------


def adopted_manager(kernels: Any, kernel: Found) -> Any:
    """A KernelManager for a kernel that runs, in the state in which `start_kernel()` leaves one."""
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
    manager._attempted_start = True
    with suppress(OSError):  # the earlier run's; where it says the same, the manager would not take it in
        os.remove(manager.connection_file)
    manager._reconcile_connection_info(provisioner.take_over(kernel))
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
