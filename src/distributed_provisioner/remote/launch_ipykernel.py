"""Launch an IPython kernel, or a subclass of it, and report its connection information.

With `--response-address` (the path of the listener's Unix socket for this kernel) the listener says which key, transport and
endpoints to use, and is told when the kernel's sockets are bound. By hand, without it, the launcher makes its own and prints where the
connection file is:

    python launch_ipykernel.py --kernel-id test --port-range 40000..41000
    jupyter console --existing /path/that/was/printed.json

This file is shipped verbatim together with `server_listener.py`; it needs Python 3.8 or newer and ipykernel.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))


def main(argv: list[str] | None = None) -> None:
    options, extra = parse(argv)
    sys.path.insert(0, HERE)
    import server_listener

    # A notebook must not be able to import what lies beside the launcher.
    for place in (HERE, os.path.realpath(HERE)):
        while place in sys.path:
            sys.path.remove(place)
    # The listener decides when a kernel ends, not the life of some parent.
    os.environ.pop("JPY_PARENT_PID", None)
    if options.kernel_id:
        os.environ.setdefault("KERNEL_ID", options.kernel_id)
    kernel_class = load_class(options.kernel_class_name)
    if options.response_address:
        report = server_listener.Report(options.response_address)
        given = report.given
        path = os.path.join(given["directory"], "connection.json")
    else:
        report = None
        given = own_connection(server_listener, options)
        path = own_path(options)
    info = {name: given[name] for name in given if name not in ("kernel_id", "directory", "ports")}
    server_listener.write_connection_file(path, info)
    terminal = os.dup(1)  # once it is initialized, what the application prints goes to its clients
    application = make_application(kernel_class, path, extra)
    if report is not None:
        report.send(dict(info, **bound_ports(application)))
    else:
        text = f"The connection file is {path}\nTo use the kernel: jupyter console --existing {path}\n"
        os.write(terminal, text.encode())
    os.close(terminal)
    application.start()


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog="Other arguments go to the kernel application."
    )
    # The dotted spellings are those of kernel specifications that were made for older gateways.
    parser.add_argument(
        "--kernel-id", "--RemoteProcessProxy.kernel-id", default="", help="the kernel's id, for KERNEL_ID"
    )
    parser.add_argument(
        "--port-range",
        "--RemoteProcessProxy.port-range",
        default="0..0",
        type=port_range,
        metavar="LOW..HIGH",
        help="ports to choose from, for TCP",
    )
    parser.add_argument(
        "--response-address",
        "--RemoteProcessProxy.response-address",
        default="",
        help="the listener's Unix socket; without it, a connection file is made",
    )
    parser.add_argument(
        "--public-key",
        "--RemoteProcessProxy.public-key",
        default="",
        help="accepted and not needed: nothing leaves the host unencrypted",
    )
    parser.add_argument(
        "--spark-context-initialization-mode", "--RemoteProcessProxy.spark-context-initialization-mode", default="none", choices=["none"],
        help="only 'none': kernels with a Spark context need a specification made with --spark",
    )  # fmt: skip
    parser.add_argument(
        "--kernel-class-name",
        default="ipykernel.ipkernel.IPythonKernel",
        metavar="MODULE.CLASS",
        help="a subclass of the IPython kernel to run",
    )
    return parser.parse_known_args(argv)


def port_range(text: str) -> tuple[int, int]:
    try:
        low, high = (int(part) for part in text.split(".."))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not LOW..HIGH, two numbers") from None
    if low > high or (low != high and not 1024 <= low <= high <= 65535):
        raise argparse.ArgumentTypeError(f"'{text}' does not lie in 1024..65535 with the lower end first")
    return low, high


def load_class(name: str) -> type[Any]:
    """The kernel's class. Exits with one sentence when there is none of that name."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        sys.exit(
            f"The kernel class {name} cannot be loaded by {sys.executable}: {error}. "
            "Install its package on this host, or correct --kernel-class-name."
        )
    from ipykernel.kernelbase import Kernel

    if not (isinstance(found, type) and issubclass(found, Kernel)):
        sys.exit(f"{name} is not a kernel class: it must be a subclass of ipykernel.kernelbase.Kernel.")
    return found


def own_connection(server_listener: ModuleType, options: argparse.Namespace) -> dict[str, Any]:
    low, high = options.port_range
    try:
        ports = server_listener.choose_ports(5, low, high)
    except server_listener.PortsExhausted as error:
        sys.exit(f"The kernel needs five ports: {error}.")
    info = {f"{channel}_port": port for channel, port in zip(server_listener.CHANNELS, ports)}
    return dict(info, transport="tcp", ip="127.0.0.1", key=uuid.uuid4().hex, signature_scheme="hmac-sha256")


def own_path(options: argparse.Namespace) -> str:
    from jupyter_core.paths import jupyter_runtime_dir
    from jupyter_core.utils import ensure_dir_exists

    ensure_dir_exists(jupyter_runtime_dir(), 0o700)
    return os.path.join(jupyter_runtime_dir(), f"kernel-{options.kernel_id or uuid.uuid4()}.json")


def make_application(kernel_class: type[Any], path: str, extra: list[str]) -> Any:
    from ipykernel.kernelapp import IPKernelApp

    class LaunchedKernelApp(IPKernelApp):
        def log_connection_info(self) -> None:
            """How to connect is the launcher's to say; the advice about Ctrl-C does not hold here."""

    sys.argv[1:] = ["-f", path, *extra]
    application = LaunchedKernelApp.instance(kernel_class=kernel_class)
    application.initialize(sys.argv[1:])  # type: ignore[no-untyped-call]
    return application


def bound_ports(application: Any) -> dict[str, int]:
    return {
        f"{channel}_port": getattr(application, f"{channel}_port")
        for channel in ("shell", "iopub", "stdin", "control", "hb")
    }


if __name__ == "__main__":
    main()
