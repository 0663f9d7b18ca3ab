"""What a launch starts: argv, environment, directory, endpoints and log, for this host."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess

from files import bundle_digest, interpreter_of
from kernels import OpError
from login import expand
from places import user_name
from server_listener import CHANNELS, choose_ports, is_free, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Collection, Mapping

    from kernels import Kernel
    from places import Places
    from prefork_kind import Kind
    from prefork_process import Template


class Program:
    """The program of one launch, from its request. `notes` says what is not as it was asked for."""

    def __init__(self, request: dict[str, Any], kernel: Kernel, places: Places) -> None:
        self.request, self.kernel, self.places = request, kernel, places
        self.notes: list[str] = []
        self.kind: Kind | None = None
        """Which template could fork it; None where none could."""
        self.template: Template | None = None
        """The one that has."""

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
            home = environment.get("HOME") or self.places.home
            self.kernel.directory = home if os.path.isdir(home) else "/"
            if self.notes and self.request.get("directories"):
                self.notes.append(f"the kernel starts in {self.kernel.directory}")

    def choose_endpoints(self, taken: Collection[int]) -> None:
        """`taken`: ports of other kernels. Raises PortsExhausted."""
        kernel, request = self.kernel, self.request
        low, high = request.get("port_range") or (0, 0)
        if kernel.transport == "ipc":
            kernel.ip = os.path.join(kernel.home, "k")
            kernel.ports = {channel: number for number, channel in enumerate(CHANNELS, 1)}
            return
        kernel.ip = request["address"] if kernel.transport == "direct" else "127.0.0.1"
        wanted = request.get("ports")
        if (
            wanted
            and not set(taken) & set(wanted.values())
            and all(is_free(kernel.ip, port) for port in wanted.values())
        ):
            kernel.ports = {channel: int(wanted[channel]) for channel in CHANNELS}
        else:
            kernel.ports = dict(zip(CHANNELS, choose_ports(5, low, high, kernel.ip, taken)))

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
        here = os.path.join(self.places.bundles, bundle)
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
        if not os.access(found, os.X_OK) and not found.startswith(self.places.bundles):
            raise OpError("interpreter-not-found", f"{found}: {os.strerror(errno.EACCES)} for {user}")
        return found

    def start(self, argv: list[str], environment: Mapping[str, str], umask: int | None) -> None:
        """Start it in a session of its own. Raises OpError, or OSError for its log."""
        kernel = self.kernel
        log = self.open_log()
        before = os.umask(0o022)
        os.umask(before if umask is None else umask)
        try:
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

    def open_log(self) -> int:
        """The file that gets what the program prints. A program that cannot print may end, so on a full disk there is none."""
        kernel = self.kernel
        directory = os.path.expanduser(self.request.get("log_dir") or "")
        kernel.private_log = not directory
        if kernel.private_log:
            directory = os.path.join(self.places.state, "logs")
        path = os.path.join(directory, f"{kernel.kernel_id}.log")
        log = -1
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            kernel.log = path
            os.fchmod(log, 0o600)
            kernel.log_start = os.fstat(log).st_size
            os.write(log, bytes(4096))
            os.ftruncate(log, kernel.log_start)
        except OSError as error:
            if log >= 0:
                os.close(log)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.notes.append(
                f"{directory}: {error.strerror}. What the kernel prints to its terminal is not kept"
            )
            return os.open(os.devnull, os.O_WRONLY)
        return log


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
