"""A launch, from the request to five sockets that answer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import time

from files import bundle_digest, interpreter_of
from kernels import Kernel, OpError
from login import expand
from processes import ended_at_logout, in_group, members
from server_listener import (
    CHANNELS,
    PortsExhausted,
    choose_ports,
    is_free,
    remove,
    start_time,
    user_name,
    write_connection_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Coroutine, Mapping

    from connections import Connection
    from listener import Listener

KERNEL_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


class Launch:
    """One `launch`: environment, directory, log, process, report, answering sockets."""

    def __init__(self, listener: Listener, connection: Connection, request: dict[str, Any]) -> None:
        self.listener, self.connection, self.request = listener, connection, request
        kernel_id = request["kernel_id"]
        if not isinstance(kernel_id, str) or not KERNEL_ID.fullmatch(kernel_id):
            raise OpError(
                "bad-request", "a kernel id has letters, digits, '_', '.', '-' and at most 200 of them"
            )
        if not request["argv"]:
            raise OpError("bad-request", "the kernel specification has an empty argv")
        self.before = self.earlier()
        self.cancelled = False
        self.phases: dict[str, float] = {}
        self.notes: list[str] = []
        self.report: asyncio.Future[dict[str, Any]] | None = None
        self.envelope: str | None = None

    def earlier(self) -> Kernel | None:
        """The launch of this kernel that this one takes the place of. Raises OpError where there is none older."""
        known = self.listener.kernels.get(self.request["kernel_id"])
        if known is None:
            return None
        if known.owner != self.connection.owner:
            raise OpError("bad-request", f"another server of this user has a kernel {known.kernel_id}")
        if known.generation >= self.request["generation"]:
            raise OpError("superseded", f"kernel {known.kernel_id} is at generation {known.generation}")
        return known

    async def supersede(self) -> None:
        """End what ran under this kernel id before, and take its place."""
        listener, request = self.listener, self.request
        if self.before is not None:
            self.before.reason = self.before.reason or "superseded"
            await listener.discard(self.before, keep_log=True)
            self.earlier()  # a third launch may have come meanwhile, or a cancellation
            if self.cancelled:
                if self.before.private_log:
                    remove(self.before.log)
                raise OpError("cancelled", f"the launch of {request['kernel_id']} was cancelled")
        listener.counter += 1
        home = os.path.join(listener.directory, str(listener.counter))
        if self.before is not None and request["transport"] == "ipc" and request.get("ip"):
            home = self.before.home  # a restart keeps its endpoints
        try:
            os.makedirs(home, mode=0o700)
        except OSError as error:
            raise OpError("resources", f"cannot make {home}: {error.strerror}") from error
        self.kernel = Kernel(
            home,
            kernel_id=request["kernel_id"],
            generation=request["generation"],
            kernel_name=request.get("kernel_name", ""),
            owner=self.connection.owner,
            client=self.connection.client,
            transport=request["transport"],
            key=request["key"],
            encryption=request.get("encryption"),
            orphan_timeout=float(request.get("orphan_timeout", 0)),
            interrupt_target=request.get("interrupt_target", "group"),
        )
        self.kernel.watchers.add(self.connection)
        listener.kernels[self.kernel.kernel_id] = self.kernel

    async def run(self) -> dict[str, Any]:
        kernel = self.kernel
        timeout = float(self.request.get("launch_timeout", 30))
        try:
            await asyncio.wait_for(self.start(), timeout)
            kernel.state = "running"
            kernel.save()
        except asyncio.TimeoutError:
            tail = kernel.log_tail()
            await self.undo()
            raise OpError("timeout", f"not ready after {timeout:g} s", log_tail=tail) from None
        except PortsExhausted as error:
            await self.undo()
            raise OpError("ports-exhausted", str(error)) from None
        except OSError as error:
            await self.undo()
            raise OpError("resources", f"{error.strerror}: {error.filename or kernel.home}") from None
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.undo()))
            raise
        names = ("pid", "start", "kernel_pid", "pgid", "transport", "ip", "ports", "key", "directory", "log")
        reply = {name: getattr(kernel, name) for name in names}
        return dict(
            reply,
            signature_scheme="hmac-sha256",
            envelope=self.envelope,
            notes=self.notes,
            phases=self.phases,
            encryption=kernel.encryption,
        )

    async def undo(self) -> None:
        self.kernel.reason = self.kernel.reason or "cancelled"
        await self.listener.discard(self.kernel, keep_log=False)

    async def start(self) -> None:
        kernel, begun = self.kernel, time.monotonic()
        environment, umask, note = await self.listener.login.get()
        if note:
            self.notes.append(note)
        if ended_at_logout():
            self.notes.append(
                "this host ends processes at logout (KillUserProcesses): kernels may not outlive a lost connection"
            )
        environment = self.environment(environment)
        self.choose_directory(environment)
        self.choose_endpoints()
        server = await self.listen_for_report() if self.uses_launcher() else None
        try:
            argv = self.arguments(environment)
            if not self.uses_launcher():
                write_connection_file(os.path.join(kernel.home, "connection.json"), self.connection_info())
            ready = time.monotonic()
            self.phases["environment"] = ready - begun
            self.popen(argv, environment, umask)
            spawned = time.monotonic()
            self.phases["spawn"] = spawned - ready
            await self.unless_exited(self.answering())
            self.phases["ready"] = time.monotonic() - spawned
        finally:
            if server is not None:
                server.close()
                remove(os.path.join(kernel.home, "r"))

    def uses_launcher(self) -> bool:
        return any("{response_address}" in item for item in self.request["argv"])

    def environment(self, environment: dict[str, str]) -> dict[str, str]:
        """The login's environment, the kernelspec's stanza, the request's own, in this order."""
        request_env = self.request.get("request_env") or {}
        variables = dict(environment)
        variables.update((name, value) for name, value in request_env.items() if name.startswith("KERNEL_"))
        variables["KERNEL_ID"] = self.kernel.kernel_id
        for name, value in (self.request.get("spec_env") or {}).items():
            environment[name] = expand(value, variables)
        environment.update(request_env)
        environment["KERNEL_ID"] = self.kernel.kernel_id
        environment.pop("JPY_PARENT_PID", None)
        for name, value in environment.items():
            if "\0" in name or "\0" in value or not name or "=" in name:
                raise OpError(
                    "bad-request",
                    f"environment variable {name!r} has a name or value that no process can have",
                )
        return environment

    def choose_directory(self, environment: Mapping[str, str]) -> None:
        for directory in self.request.get("directories") or ():
            if os.path.isdir(directory) and os.access(directory, os.X_OK):
                self.kernel.directory = directory
                break
            self.notes.append(f"the directory {directory} does not exist on the host or cannot be entered")
        else:
            home = environment.get("HOME") or self.listener.places.home
            self.kernel.directory = home if os.path.isdir(home) else "/"
            if self.notes and self.request.get("directories"):
                self.notes.append(f"the kernel starts in {self.kernel.directory}")

    def choose_endpoints(self) -> None:
        kernel, request = self.kernel, self.request
        low, high = request.get("port_range") or (0, 0)
        if kernel.transport == "ipc":
            kernel.ip = os.path.join(kernel.home, "k")
            kernel.ports = {channel: number for number, channel in enumerate(CHANNELS, 1)}
            return
        kernel.ip = request["address"] if kernel.transport == "direct" else "127.0.0.1"
        taken = {port for other in self.listener.kernels.values() for port in (other.ports).values()}
        wanted = request.get("ports")
        if (
            wanted
            and not taken & set(wanted.values())
            and all(is_free(kernel.ip, port) for port in wanted.values())
        ):
            kernel.ports = {channel: int(wanted[channel]) for channel in CHANNELS}
        else:
            kernel.ports = dict(zip(CHANNELS, choose_ports(5, low, high, kernel.ip, taken)))

    def connection_info(self) -> dict[str, Any]:
        kernel = self.kernel
        info: dict[str, Any] = {f"{channel}_port": kernel.ports[channel] for channel in CHANNELS}
        info.update(
            transport="ipc" if kernel.transport == "ipc" else "tcp",
            ip=kernel.ip,
            key=kernel.key,
            signature_scheme="hmac-sha256",
            kernel_name=kernel.kernel_name,
        )
        info.update(kernel.encryption or {})
        return info

    def arguments(self, environment: Mapping[str, str]) -> list[str]:
        """argv for this host: placeholders substituted, shipped files in place of the server's, the interpreter found."""
        request, kernel = self.request, self.kernel
        low, high = request.get("port_range") or (0, 0)
        theirs, here = request.get("resource_dir") or "", self.resource_directory()
        values = {
            "kernel_id": kernel.kernel_id, "port_range": f"{low}..{high}", "public_key": request.get("public_key", ""),
            "resource_dir": here,
            "response_address": os.path.join(kernel.home, "r"), "connection_file": os.path.join(kernel.home, "connection.json"),
        }  # fmt: skip
        if request.get("prefix"):
            values["prefix"] = request["prefix"]
        argv = []
        for template in request["argv"]:
            item = re.sub(
                r"\{([A-Za-z0-9_]+)\}", lambda match: values.get(match.group(1), match.group(0)), template
            )
            if theirs and item.startswith(theirs + "/"):
                item = here + item[len(theirs) :]
            argv.append(item)
        if argv[0] in ("python", "python3"):
            argv[0] = request.get("remote_python") or argv[0]
        argv[0] = self.executable(argv[0], environment)
        if here != theirs and argv[0].startswith(here + "/"):
            argv[:1] = [*interpreter_of(argv[0]), argv[0]]
        return argv

    def resource_directory(self) -> str:
        theirs: str = self.request.get("resource_dir") or ""
        bundle = self.request.get("bundle")
        if not bundle:
            return theirs
        with contextlib.suppress(OSError):  # a copy that cannot be read is not the same
            if os.path.isdir(theirs) and bundle_digest(theirs) == bundle:
                return theirs
        here = os.path.join(self.listener.places.bundles, bundle)
        if not os.path.isdir(here):
            raise OpError("need-bundle", f"the host has no copy of {theirs}")
        os.utime(here)
        return here

    def executable(self, name: str, environment: Mapping[str, str]) -> str:
        name = os.path.expanduser(name)
        path = environment.get("PATH", os.defpath)
        found = shutil.which(name, path=path) if "/" not in name else name
        user = user_name()
        if found is None:
            raise OpError("interpreter-not-found", f"'{name}' is not in the PATH of {user}: {path}")
        if not os.path.isfile(found):
            why = errno.EISDIR if os.path.isdir(found) else errno.ENOENT
            raise OpError("interpreter-not-found", f"{found}: {os.strerror(why)}")
        if not os.access(found, os.X_OK) and not found.startswith(self.listener.places.bundles):
            raise OpError("interpreter-not-found", f"{found}: {os.strerror(errno.EACCES)} for {user}")
        return found

    def popen(self, argv: list[str], environment: Mapping[str, str], umask: int | None) -> None:
        kernel = self.kernel
        directory = os.path.expanduser(self.request.get("log_dir") or "")
        kernel.private_log = not directory
        if kernel.private_log:
            directory = os.path.join(self.listener.places.state, "logs")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        kernel.log = os.path.join(directory, f"{kernel.kernel_id}.log")
        log = os.open(kernel.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        before = os.umask(0o022)
        os.umask(before if umask is None else umask)
        try:
            os.fchmod(log, 0o600)
            kernel.log_start = os.fstat(log).st_size
            process = subprocess.Popen(
                argv,
                env=environment,
                cwd=kernel.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise not_started(error, argv, environment) from error
        finally:
            os.umask(before)
            os.close(log)
        kernel.pid = kernel.pgid = kernel.kernel_pid = process.pid
        process.returncode = 0  # `Listener.reap` waits for it
        kernel.start = start_time(process.pid)

    async def listen_for_report(self) -> asyncio.AbstractServer:
        report: asyncio.Future[dict[str, Any]] = asyncio.get_event_loop().create_future()
        self.report, kernel = report, self.kernel
        given = dict(
            self.connection_info(), kernel_id=kernel.kernel_id, directory=kernel.home, ports=kernel.ports
        )

        async def reported(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(json.dumps(given).encode() + b"\n")
                line = await reader.readline()
                if line and not report.done():
                    report.set_result(json.loads(line))
            except (OSError, ValueError):
                pass  # rubbish, or a launcher that went away: its exit, or the time-out, will tell
            finally:
                writer.close()

        path = os.path.join(kernel.home, "r")
        server = await asyncio.start_unix_server(reported, path, limit=1 << 20)
        os.chmod(path, 0o600)
        return server

    async def answering(self) -> None:
        kernel = self.kernel
        if self.report is not None:
            report = await self.report
            if "data" in report and "epk" in report:
                self.envelope, kernel.ip, kernel.ports = json.dumps(report), "", {}
                return
            self.take(report)
        await kernel.wait_until_answering()

    def take(self, report: dict[str, Any]) -> None:
        """What the launcher says: it may have chosen ports, a key or a transport of its own."""
        kernel = self.kernel
        info = report.get("connection_info", report)
        try:
            ports = {channel: int(info[f"{channel}_port"]) for channel in CHANNELS}
            pid, pgid = int(report.get("pid", kernel.pid)), int(report.get("pgid", kernel.pgid))
        except (KeyError, TypeError, ValueError):
            raise OpError(
                "launcher-exited",
                "the launcher's report makes no sense",
                exit_status=None,
                log_tail=kernel.log_tail(),
            ) from None
        kernel.ports, kernel.ip, kernel.key = ports, info.get("ip", kernel.ip), info.get("key", kernel.key)
        if info.get("transport") == "tcp" and kernel.transport == "ipc":
            kernel.transport = "tcp"
        if pid in members(kernel.pid, kernel.start, kernel.pgid) or start_time(pid) == 0:
            kernel.kernel_pid, kernel.kernel_start = pid, start_time(pid)
            kernel.pgid = pgid if in_group(pid, pgid) and pid != kernel.pid else kernel.pgid

    async def unless_exited(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, or raise as soon as the launcher has ended."""
        kernel = self.kernel
        kernel.ending = asyncio.get_event_loop().create_future()
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, kernel.ending], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        raise OpError(
            "launcher-exited",
            f"{os.path.basename(self.request['argv'][0])} {kernel.detail} before the kernel was ready",
            exit_status=kernel.code,
            log_tail=kernel.log_tail(),
        )


def not_started(error: OSError, argv: list[str], environment: Mapping[str, str]) -> OpError:
    """Why a program could not be started; what it was to be given may be too large for any."""
    if error.errno == errno.E2BIG:
        items = [(len(value), f"the environment variable {name}") for name, value in environment.items()]
        items += [(len(item), f"argument {number}") for number, item in enumerate(argv)]
        size, name = max(items)
        total = sum(size for size, _ in items)
        return OpError(
            "too-large",
            f"{os.strerror(errno.E2BIG)}: {total >> 10} KB in all, {name} has {size >> 10} KB of it",
        )
    if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.EISDIR):
        return OpError("resources", f"{error.strerror}: {argv[0]}")
    words = f"{argv[0]}: {error.strerror}"
    if error.errno == errno.ENOENT and os.path.exists(argv[0]):
        with contextlib.suppress(OSError):
            words = f"{argv[0]}: its interpreter {' '.join(interpreter_of(argv[0]))} was not found"
    return OpError("interpreter-not-found", words)
