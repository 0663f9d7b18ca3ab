"""The listener: what runs on a host for one user, beside the kernels that it starts, watches, signals and ends.

It is shipped verbatim (standard library, Python 3.8 or newer, POSIX). This file has four roles; the last one needs no other file beside it:

`bridge`    executed by the SSH session from memory (see the package's ssh/bootstrap.py): finds the user's listener or starts it, and copies
            bytes between the session and the listener's Unix socket (bridge.py).
`serve`     the listener itself (listener.py): one for each user and host, detached, single-threaded.
`dump-env`  prints the environment of a login shell between two marks (login.py).
a module    `launch_ipykernel.py` and other launchers take `Report`, `choose_ports` and `write_connection_file` from here.

The control protocol, number 1: one JSON object a line, in UTF-8.

    request  {"id": n, "op": name, ...}      reply  {"id": n, "result": {...}} or {"id": n, "error": {"type", "message", ...}}
    event    {"event": "exited" | "note", "kernel_id", "generation", ...} or {"event": "drained", "drained", "reason"}

    hello    protocol, owner, client -> who the host is, what it has, the owner's kernels; must come first
    ship     bundle, files[, commit] -> keeps the files of a kernelspec's directory under their digest
    launch   see launch.py -> where the kernel is, once its five sockets accept connections and its relay, if any, hears it
    cancel, signal, end, forget   kernel_id, generation[, signal, target | grace | keep_log]
    attach   kernels -> their states, and from now on their events come here
    adopt    kernels -> the same with the keys, for those of this owner; this client has them from now on
    annotate kernel_id, generation, annotations -> merged into what is kept with the kernel; null removes
    relay    kernel_id, generation -> channel: a stream to the kernel's relay, in frames (see channels.py) between the lines
    list     [usage] -> every kernel of this user, and the host
    drain    on[, reason] -> drained: the host takes no new kernels
    log, ping, retire

A launcher finds its listener at `--response-address`, a Unix socket: the listener sends one line, `{"key", "signature_scheme", "transport",
"ip", "ports", "directory", ...}`; when its sockets are bound the launcher answers with one line, `{"connection_info": {...}, "pid": n,
"pgid": n}`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # Nothing here uses TLS, OpenSSL's digests or archives; without them the listener takes 6 MB less of resident memory.
    for unused in ("ssl", "_hashlib", "bz2", "lzma"):
        sys.modules.setdefault(unused, None)  # type: ignore[arg-type] # an import then fails, as where it is missing

import errno
import json
import os
import random
import shutil
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Collection

PROTOCOL = 1
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
NAME = "distributed-provisioner"

MAX_LINE = 64 << 20


# --- for launchers ----------------------------------------------------------------------------------------------------------------------


class Report:
    """A launcher's line to its listener: `Report(address)` connects and reads what the kernel shall use (`.given`); `send` answers."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address)
        self.stream = self.socket.makefile("rb")
        self.given = json.loads(self.stream.readline(MAX_LINE))

    def send(self, connection_info: dict[str, Any], pid: int | None = None) -> None:
        """Tell the listener that the kernel's sockets are bound; `connection_info` has `transport`, `ip`, the five ports and `key`."""
        pid = pid or os.getpid()
        line = {"connection_info": connection_info, "pid": pid, "pgid": os.getpgid(pid)}
        self.socket.sendall(json.dumps(line).encode() + b"\n")
        self.socket.close()


def launcher_parser(description: str, program: str | None = None) -> argparse.ArgumentParser:
    """The arguments that every launcher takes. The dotted spellings are those of specifications that were made for older gateways."""
    import argparse

    def port_range(text: str) -> tuple[int, int]:
        try:
            low, high = (int(part) for part in text.split(".."))
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not LOW..HIGH, two numbers") from None
        if low > high or (low != high and not 1024 <= low <= high <= 65535):
            raise argparse.ArgumentTypeError(f"'{text}' does not lie in 1024..65535 with the lower end first")
        return low, high

    parser = argparse.ArgumentParser(program, description=description, allow_abbrev=False)

    def add(name: str, text: str, **settings: Any) -> None:
        parser.add_argument(f"--{name}", f"--RemoteProcessProxy.{name}", help=text, **settings)

    add("kernel-id", "the kernel's id, for KERNEL_ID", default="")
    add("port-range", "ports to choose from, for TCP", default=(0, 0), type=port_range, metavar="LOW..HIGH")
    add("response-address", "the listener's Unix socket; without it, a connection file is made", default="")
    add("public-key", "accepted and not needed: nothing leaves the host unencrypted", default="")
    modes = ("lazy", "eager", "none")
    text = "create the Spark session at first use, at start in the background, or never"
    add("spark-context-initialization-mode", text, default="none", choices=modes)
    return parser


def report_for(pid: int, argv: list[str]) -> int:
    """Report for the launcher `pid`, which cannot speak to a Unix socket; the first line printed is the path of its connection file."""
    options = launcher_parser(
        "Launch IRkernel and report its connection information.", "launch_IRkernel.R"
    ).parse_args(argv)
    if options.response_address:
        report = Report(options.response_address)
        given = report.given
        path = os.path.join(given["directory"], "connection.json")
        info = {name: given[name] for name in given if name not in ("kernel_id", "directory", "ports")}
        write_connection_file(path, info)
        report.send(info, pid)
        print(path)
        return 0
    try:
        ports = choose_ports(5, *options.port_range)
    except PortsExhausted as error:
        print(f"The kernel needs five ports: {error}.", file=sys.stderr)
        return 1
    info = {f"{channel}_port": port for channel, port in zip(CHANNELS, ports)}
    info.update(transport="tcp", ip="127.0.0.1", key=os.urandom(16).hex(), signature_scheme="hmac-sha256")
    runtime = os.environ.get("JUPYTER_RUNTIME_DIR") or os.path.expanduser("~/.local/share/jupyter/runtime")
    os.makedirs(runtime, mode=0o700, exist_ok=True)
    path = os.path.join(runtime, f"kernel-{options.kernel_id or os.urandom(8).hex()}.json")
    write_connection_file(path, info)
    print(f"{path}\nThe connection file is {path}\nTo use the kernel: jupyter console --existing {path}")
    return 0


class PortsExhausted(Exception):
    """Too few free ports in the range."""


def choose_ports(
    count: int, low: int = 0, high: int = 0, address: str = "127.0.0.1", taken: Collection[int] = ()
) -> list[int]:
    """`count` different TCP ports that are free on `address`, at random from `low..high` (low == high: any).

    They are not reserved: bind them soon. Raises PortsExhausted.
    """
    if high <= low:
        low, high = unclaimed_ports()
    everything = range(low, high + 1)
    found: list[int] = []
    for size in (min(64, len(everything)), len(everything)):  # nearly always the first ones do
        for port in random.sample(everything, size):
            if port not in taken and port not in found and is_free(address, port):
                found.append(port)
            if len(found) == count:
                return found
    raise PortsExhausted(f"fewer than {count} free ports in {low}..{high} on {address}")


def is_free(address: str, port: int) -> bool:
    """Whether a TCP port can be bound now. Raises OSError for an address that is not this host's."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            return False
    return True


def unclaimed_ports() -> tuple[int, int]:
    """Ports that the system does not give to outgoing connections: one of those could take a port before the kernel binds it."""
    first = read_text("/proc/sys/net/ipv4/ip_local_port_range").split() or ["49152"]
    return (10000, int(first[0]) - 1) if int(first[0]) > 12000 else (10000, 65535)


def write_connection_file(path: str, info: dict[str, Any]) -> None:
    """Write a Jupyter connection file that only its owner can read."""
    write_private(path, json.dumps(info, indent=1).encode())


def write_private(path: str, data: bytes) -> None:
    """Write a file of mode 0600 in one step: readers see the old one or the new one."""
    temporary = f"{path}.{os.getpid()}.{random.getrandbits(32):x}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        remove(temporary)
        raise


def remove(path: str) -> None:
    """Remove a file or a tree; one that is not there is fine."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EISDIR):  # what macOS says of a directory
            shutil.rmtree(path, ignore_errors=True)


# --- processes and files -----------------------------------------------------------------------------------------------------------------


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; 0 where there is no /proc, None when there is no such process (or only a zombie)."""
    fields = stat_fields(pid)
    if fields is None:
        return None if os.path.isdir("/proc/self") or not alive(pid) else 0
    return None if fields[0] in "ZX" else int(fields[19])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def stat_fields(pid: int | str) -> list[str] | None:
    """Fields of /proc/PID/stat after the name: [0] state, [1] ppid, [2] pgrp, [3] session, [19] start time."""
    text = read_text(f"/proc/{pid}/stat")
    return text.rpartition(") ")[2].split() if text else None


def read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def load_json(path: str) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def bridge(sources: list[tuple[str, str]]) -> int:
    """Run bridge.py; it and what it imports are in memory only, as this file is then. `sources`: (name, text) of each file."""
    sys.modules["server_listener"] = sys.modules["__main__"]
    for name in ("places", "bridge"):
        module = sys.modules[name] = type(sys)(name)
        exec(compile(dict(sources)[f"{name}.py"], f"{name}.py", "exec"), module.__dict__)
    code: int = sys.modules["bridge"].bridge(sources)
    return code


def main(argv: list[str]) -> int:
    role = argv[1] if len(argv) > 1 else ""
    if role == "bridge":
        return bridge(globals()["sources"])
    if role == "report":
        return report_for(int(argv[2]), argv[3:])
    if role not in ("serve", "dump-env"):
        print(__doc__, file=sys.stderr)
        return 2
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    if role == "serve":
        import listener

        listener.serve(argv[2], int(argv[3]))
    else:
        import login

        login.dump_environment(argv[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
