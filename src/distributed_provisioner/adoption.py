"""Going on with the kernels of an earlier run of this Jupyter Server, and leaving them for the next one.

Looks into MappingKernelManager and SessionManager of jupyter_server 2.14 to 2.21, which have no door for kernels that run already.
"""

from __future__ import annotations

import inspect
import queue
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from jupyter_client.provisioning.factory import KernelProvisionerFactory

from .adopted_kernels import adopted_manager, awaiting, leave, register, returned
from .errors import ConfigurationError
from .finding import Answer, Found, Place, Search, end_later, newest
from .kernel_log import Log
from .models import HostAddress, Login, needs_user
from .provisioner import DistributedProvisioner
from .server_files import file_of_this_server
from .server_hosts import HostHints, use_hints
from .server_kernels import KnownKernels, use_known
from .server_sessions import Sessions
from .settings import OPTION, ServerSettings, Settings, resolve

PROVISIONER = "distributed-provisioner"
WAIT = 2.5
"""Seconds that the start of the server waits for hosts to answer. Known kernels on others are unreachable until they do."""


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
        self._hints = HostHints(file_of_this_server("hosts"))
        self._known = KnownKernels(file_of_this_server("kernels"))
        self._earlier: dict[str, Found] = {}
        """Known kernels of earlier runs of which their hosts have not yet told."""
        self._awaited: set[str] = set()
        """Ids of those of them that were put into the server's list meanwhile."""
        self._arrived: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._search: Search | None = None

    def watch(self) -> None:
        """Keep, on the hosts and in files, what the next run will need, and let kernels be that are to be kept."""
        password = self._settings.settings.login.password
        self._earlier = {kernel.kernel_id: kernel for kernel in self._known.earlier(password)}
        use_hints(self._hints)
        use_known(self._known)
        self._sessions.watch()
        shutdown_all = self._kernels.shutdown_all

        def leave_and_shut_down(*args: Any, **kwargs: Any) -> Any:
            self._stopping()
            return shutdown_all(*args, **kwargs)

        self._kernels.shutdown_all = leave_and_shut_down

    def adopt(self, wait: float = WAIT) -> None:
        """Ask the hosts. What those say that answer within `wait` seconds is in place when this returns, and the others' known kernels."""
        hinted = self._hints.read(self._settings.settings.login.password)
        places = configured_places(self._settings, all_specs(self._server.kernel_spec_manager), self._log)
        hinted = [with_password(place, places) for place in hinted]
        for kernel in self._earlier.values():
            login = with_password(kernel.place, places).login
            self._earlier[kernel.kernel_id] = replace(kernel, login=login)
        first = [*hinted, *(kernel.place for kernel in self._earlier.values())]
        if not places and not first:
            return
        search = self._search = Search(
            places, first or places, self._deliver, self._log, self._earlier.values()
        )
        search.start()
        search.wait(wait)
        answered = set(search.answered)
        self._hints.add(place for place in first if place not in answered)
        self._take_in()
        for kernel in list(self._earlier.values()):
            if kernel.place not in answered:
                self._await(kernel)

    # --- what arrives -------------------------------------------------------------------------------------------------------

    def _deliver(self, answer: Answer) -> None:
        """On the I/O thread."""
        self._arrived.put(answer)
        try:
            self._server.io_loop.add_callback(self._take_in)
        except RuntimeError:
            self._log.debug("the server is ending: kernels are left to the next one")

    def _take_in(self) -> None:
        answers: list[Answer] = []
        if self._search is None:
            return  # the server is stopping: they are left to the next one
        while not self._arrived.empty():
            answers.append(self._arrived.get())
        latest, superseded = newest(
            [kernel for answer in answers for kernel in answer.taken if self._is_its_users(kernel)]
        )
        for kernel in superseded:
            end_later(kernel)
        taken = [kernel for kernel in latest if self._take(kernel)]
        self._hints.add(kernel.place for kernel in taken)
        if taken:
            hosts = sorted({str(kernel.process.host) for kernel in taken})
            self._log.info("went on with %d kernels of an earlier run, on %s", len(taken), ", ".join(hosts))
        for answer in answers:
            for kernel in list(self._earlier.values()):
                if kernel.place == answer.place:
                    self._missing(kernel, answer)

    def _is_its_users(self, kernel: Found) -> bool:
        """Whether it is not known to be somebody else's: a listener is in its user's hands, and could say that it has any kernel."""
        known = self._earlier.get(kernel.kernel_id)
        login, host = (known.login, known.process.host) if known is not None else (None, None)
        if known is None and kernel.kernel_id in self._kernels:
            provisioner = getattr(self._kernels.get_kernel(kernel.kernel_id), "provisioner", None)
            if isinstance(provisioner, DistributedProvisioner) and provisioner.kernel.process is not None:
                login, host = provisioner.kernel.login, provisioner.kernel.process.host
        if login is None or host is None or whose(host, login) == whose(kernel.process.host, kernel.login):
            return True
        self._log.warning(
            "[kernel=%s host=%s] a listener there says that it has it, but it is another user's: it is left alone",
            kernel.kernel_id[:4], kernel.process.host,
        )  # fmt: skip
        return False

    def _take(self, kernel: Found) -> bool:
        """Go on with one kernel; nothing that is wrong with it keeps the server from starting, or the kernel from living."""
        earlier = self._earlier.get(kernel.kernel_id)
        if earlier is not None and earlier.process.generation > kernel.process.generation:
            end_later(kernel)  # it was started again since, where nobody has told yet
            return False
        self._earlier.pop(kernel.kernel_id, None)
        if kernel.kernel_id in self._awaited and kernel.kernel_id not in self._kernels:
            end_later(kernel)  # it was shut down while its host was away
            return False
        if (manager := awaiting(self._kernels, kernel.kernel_id)) is not None:
            if earlier is not None and earlier.process.generation < kernel.process.generation:
                end_later(earlier)
            if self._attempt(kernel, lambda: returned(manager, kernel) and self._in_place(kernel)):
                return True
            leave(self._kernels, kernel.kernel_id)
        if not self._has_place_for(kernel):
            return False
        if not self._attempt(kernel, lambda: self._register(kernel) and self._in_place(kernel)):
            self._kernels.remove_kernel(kernel.kernel_id)
            return False
        return True

    def _await(self, kernel: Found) -> None:
        """Have a known kernel in the list though its host does not answer: nobody is to take it for dead, or start another one for it."""
        if kernel.kernel_id in self._kernels:
            return
        away = replace(kernel, execution_state="")  # what it was is long ago
        self._awaited.add(kernel.kernel_id)
        if not self._attempt(kernel, lambda: self._register(away, is_there=False) and self._shown(kernel)):
            self._awaited.discard(kernel.kernel_id)
            self._kernels.remove_kernel(kernel.kernel_id)

    def _missing(self, kernel: Found, answer: Answer) -> None:
        """Tell, as of any kernel, if the answer of its host says that a known one is no more."""
        end = answer.end_of(kernel)
        is_anothers = answer.names(kernel, answer.others)
        if end is None and not is_anothers:
            return
        del self._earlier[kernel.kernel_id]
        manager = awaiting(self._kernels, kernel.kernel_id)
        if manager is None and kernel.kernel_id in self._kernels:
            return  # it was started again meanwhile
        self._known.drop(kernel.kernel_id)
        names = kernel.kernel_id[:4], kernel.process.host
        if end is None:
            self._log.warning("[kernel=%s host=%s] another process of this server has it", *names)
            if manager is not None:
                leave(self._kernels, kernel.kernel_id)
        elif manager is not None:
            manager.reason = f"The kernel on {kernel.process.host} has ended: {end[0]}."
            manager.provisioner.found_dead(*end)
        elif kernel.kernel_id not in self._awaited and not answer.names(kernel, answer.ended):
            # Of those that their host knows, the search has told.
            self._log.warning("[kernel=%s host=%s] has ended while no server was there: %s", *names, end[0])

    # --- one kernel ---------------------------------------------------------------------------------------------------------

    def _register(self, kernel: Found, *, is_there: bool = True) -> bool:
        register(self._kernels, kernel, adopted_manager(self._kernels, kernel, is_there=is_there))
        return True

    def _attempt(self, kernel: Found, step: Callable[[], bool]) -> bool:
        try:
            return step()
        except Exception:
            self._log.exception(
                "[kernel=%s host=%s] cannot be gone on with", kernel.kernel_id[:4], kernel.process.host
            )
            return False

    def _in_place(self, kernel: Found) -> bool:
        provisioner = self._kernels.get_kernel(kernel.kernel_id).provisioner
        where = self._with_sessions(kernel.kernel_id, provisioner.annotations.values)
        provisioner.remember()
        self._log.info("[kernel=%s host=%s] goes on (%s)", kernel.kernel_id[:4], kernel.process.host, where)
        return True

    def _shown(self, kernel: Found) -> bool:
        where = self._with_sessions(kernel.kernel_id, kernel.annotations)
        self._log.warning(
            "[kernel=%s host=%s] its host does not answer: it counts as unreachable until that is back (%s)",
            kernel.kernel_id[:4], kernel.process.host, where,
        )  # fmt: skip
        return True

    def _with_sessions(self, kernel_id: str, annotations: Mapping[str, Any]) -> str:
        """Have a kernel's sessions in the server's list; their paths, for the log."""
        sessions = self._sessions.restore(kernel_id, annotations)
        for session in sessions.values():
            self._update_environment(kernel_id, session)
        return ", ".join(str(session.get("path")) for session in sessions.values()) or "no session"

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
            provisioner.remember()

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
    # Whose kernels may be where the user is left open, the hints know.
    places = [
        Place(host, each.login)
        for each in settings
        for host in each.remote_hosts
        if not needs_user(host, each.login)
    ]
    return list(dict.fromkeys(places))


def whose(host: HostAddress, login: Login) -> tuple[str | None, str | None]:
    """Whose listener a kernel there has: who logs in, and whom it is run as."""
    return host.user or login.user, login.run_as


def all_specs(spec_manager: Any) -> dict[str, Any]:
    """The kernel.json of each kernelspec by its name; empty for managers that cannot tell without waiting."""
    found = spec_manager.get_all_specs()
    if inspect.isawaitable(found):
        if inspect.iscoroutine(found):
            found.close()
        return {}
    return {name: each["spec"] for name, each in found.items()}


def with_password(place: Place, configured: Iterable[Place]) -> Place:
    """The place with the password of the configured one that it is, whomever its kernels are run as: that is written down nowhere."""
    for each in configured:
        login = replace(place.login, password=each.login.password)
        if each == Place(place.address, replace(login, run_as=each.login.run_as)):
            return Place(place.address, login)
    return place
