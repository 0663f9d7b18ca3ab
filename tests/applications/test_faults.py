"""What users read when a kernel does not start: word for word, in the exception and in what Jupyter Server sends to the browser."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import pytest
from jupyter_client.manager import AsyncKernelManager
from tornado.web import HTTPError

from distributed_provisioner import errors
from distributed_provisioner.testing.keys import new_key
from tests.applications.desk import Desk
from tests.applications.server import JupyterServer

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

PROGRAM = "import sys, time; print('100% of %s is %d', flush=True); "


@dataclass(frozen=True)
class Fault:
    """What is wrong, and what is said about it."""

    sentence: str
    """`{…}` stands for what differs from machine to machine, see `words`."""
    kind: type[errors.ProvisionerError]
    status: int
    """Of the answer to POST /api/kernels."""
    config: Mapping[str, Any] = field(default_factory=dict)
    argv: list[str] | None = None
    reason: type[errors.HostError] | None = None
    """Of the host, where no host is left."""


NOBODY = errors.NoHostAvailableError
FAULTS = {
    "unknown host": Fault(
        "no-such-host.invalid cannot be reached: its name no-such-host.invalid is unknown ({unknown_name})."
        " Correct the name in remote_hosts, or give it a HostName in ~/.ssh/config.",
        NOBODY, 503, {"remote_hosts": ["no-such-host.invalid"]}, reason=errors.HostUnreachableError,
    ),
    "refused key": Fault(
        "refused-key refused user {user} (it allows: publickey; tried: host (ssh-ed25519))."
        " Check the user name, and that one of these keys is in ~/.ssh/authorized_keys there;"
        " a key with a passphrase must be in the agent (ssh-add).",
        NOBODY, 503, {"remote_hosts": ["refused-key"]}, reason=errors.AuthenticationError,
    ),
    "unknown host key": Fault(
        "The host key of unknown-key is unknown: it showed {fingerprint} (ssh-ed25519), and {address} is in no known_hosts file."
        " Compare the fingerprint with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_…_key.pub), then run:"
        " ssh-keyscan {address} >> ~/.ssh/nobody_known",
        NOBODY, 503, {"remote_hosts": ["unknown-key"]}, reason=errors.HostKeyError,
    ),
    "changed host key": Fault(
        "The host key of changed-key has changed: it showed {fingerprint} (ssh-ed25519), which is not the key known for {address}."
        " Someone may be listening in; if the host was set up anew and the fingerprint is right, run:"
        " ssh-keygen -R {address} -f ~/.ssh/known_before and then ssh-keyscan {address} >> ~/.ssh/known_before",
        NOBODY, 503, {"remote_hosts": ["changed-key"]}, reason=errors.HostKeyError,
    ),
    "no host left": Fault(
        "None of the 2 hosts could take the kernel. Mend one of them and try again:\n"
        "  {user}@host1:9 cannot be reached: {address}:9 refused the connection."
        " Check that sshd runs there and that the port is right (ssh_port, or user@host:port).\n"
        "  no-such-host.invalid cannot be reached: its name no-such-host.invalid is unknown ({unknown_name})."
        " Correct the name in remote_hosts, or give it a HostName in ~/.ssh/config.",
        NOBODY, 503, {"remote_hosts": ["{user}@host1:9", "no-such-host.invalid"]}, reason=errors.HostUnreachableError,
    ),
    "missing interpreter": Fault(
        "The kernel's program is not on host1: /no/such/python: No such file or directory."
        " Install it there, or name another one in kernel.json's argv or in remote_python.",
        errors.InterpreterNotFoundError, 500, {"remote_python": "/no/such/python"},
    ),
    "missing launcher": Fault(
        "Kernel specification 'missing-launcher' cannot be launched: its argv names {spec}/scripts/gone.py, and there is no such file."
        " Install the specification again, or correct its kernel.json.",
        errors.KernelSpecError, 500, argv=["python", "{spec}/scripts/gone.py", "--response-address", "{response_address}"],
    ),
    "missing ipykernel": Fault(
        "The kernel did not start on host1: python exited with status 1 before the kernel was ready. The last lines of its log:\n"
        "The kernel class ipykernel.ipkernel.IPythonKernel cannot be loaded by {python}: No module named 'ipykernel'."
        " Install its package on this host, or correct --kernel-class-name.",
        errors.LauncherExitedError, 500, {"remote_python": "{bare_python}"},
    ),
    "launcher that exits": Fault(
        "The kernel did not start on host1: python exited with status 3 before the kernel was ready."
        " The last lines of its log:\n100% of %s is %d",
        errors.LauncherExitedError, 500, argv=["python", "-c", f"{PROGRAM} sys.exit(3)", "{response_address}"],
    ),
    "launch that takes too long": Fault(
        "The kernel on host1 was not ready within 1 s and was ended."
        " Raise launch_timeout (or KERNEL_LAUNCH_TIMEOUT) if it needs longer. The last lines of its log:\n100% of %s is %d",
        errors.LaunchTimeoutError, 500, {"launch_timeout": 1},
        argv=["python", "-c", f"{PROGRAM} time.sleep(60)", "{response_address}"],
    ),
    "range without a free port": Fault(
        "host1 has no room in the port range 21000..22000: fewer than 5 free ports in 21000..22000 on 127.0.0.1."
        " Widen port_range, or end kernels there.",
        errors.PortRangeExhaustedError, 500, {"port_range": "21000..22000", "kernel_transport": "tcp"},
    ),
    "user not allowed": Fault(
        "User '{user}' is not authorized to start this kernel, because authorized_users does not have that name."
        " Set KERNEL_USERNAME to the user that the kernel is for, or add the name to authorized_users.",
        errors.NotAuthorizedError, 403, {"authorized_users": ["somebody"]},
    ),
    "user forbidden": Fault(
        "User '{user}' is not authorized to start this kernel, because unauthorized_users has that name."
        " Set KERNEL_USERNAME to the user that the kernel is for, or take the name out of unauthorized_users.",
        errors.NotAuthorizedError, 403, {"unauthorized_users": ["{user}"]},
    ),
}  # fmt: skip


# --- a desk from which everything goes wrong -----------------------------------------------------------------------------------------


def spec_name(fault: str) -> str:
    return fault.replace(" ", "-")


@pytest.fixture(scope="module")
def words(cluster: Cluster, desk: Desk) -> dict[str, str]:
    """What differs from machine to machine."""
    return {
        "user": cluster.user,
        "address": cluster["host1"].address,
        "fingerprint": asyncssh.import_public_key(cluster["host1"].host_key).get_fingerprint(),
        "unknown_name": unknown_name(),
        "python": sys.executable,
        "bare_python": f"/home/{cluster.user}/bare-python",
    }


def unknown_name() -> str:
    """How this machine's resolver says that a name is unknown."""
    try:
        socket.getaddrinfo("no-such-host.invalid", 22)
    except socket.gaierror as error:
        return str(error.strerror)
    pytest.skip("this network knows every name, even no-such-host.invalid")


@pytest.fixture(scope="module")
def desk(cluster: Cluster, session_directory: Path) -> Desk:
    """A desk whose ssh config has a host for each way in which keys are wrong, and a kernelspec for each fault."""
    directory = Path(tempfile.mkdtemp(prefix="desk-", dir=session_directory))
    desk = Desk(directory, directory / "home", cluster.user)
    write_ssh_files(cluster, desk.home / ".ssh")
    desk.install("ssh_python", "--remote-hosts", "host1")
    bare = cluster["host1"].path(f"/home/{cluster.user}/bare-python")
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    return desk


def write_ssh_files(cluster: Cluster, directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True)
    private, public = new_key()  # its comment is "host"
    (directory / "id_other").write_text(private)
    (directory / "id_other").chmod(0o600)
    address = cluster["host1"].address
    (directory / "known_before").write_text(f"{address} {public}\n")
    good = cluster.home / ".ssh"
    aliases = {
        "refused-key": (directory / "id_other", good / "known_hosts"),
        "unknown-key": (good / "id_ed25519", directory / "nobody_known"),
        "changed-key": (good / "id_ed25519", directory / "known_before"),
    }
    lines = [f"Include {good}/config"]
    for alias, (key, known) in aliases.items():
        lines += [f"Host {alias}", f"  HostName {address}", f"  User {cluster.user}", "  IdentitiesOnly yes"]
        lines += [f"  IdentityFile {key}", f"  UserKnownHostsFile {known}"]
    (directory / "config").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def specs(desk: Desk, words: dict[str, str]) -> dict[str, str]:
    """A kernelspec for each fault; gives its sentence."""
    sentences = {}
    for name, fault in FAULTS.items():
        here = {
            **words,
            "spec": str(desk.kernels / spec_name(name)),
            "response_address": "{response_address}",
        }
        config = {option: filled(value, here) for option, value in fault.config.items()}
        changes = {} if fault.argv is None else {"argv": filled(fault.argv, here)}
        desk.copy("ssh_python", spec_name(name), **changes, **config)
        sentences[name] = fault.sentence.format_map(here)
    return sentences


def filled(value: Any, words: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [filled(item, words) for item in value]
    return value.format_map(words) if isinstance(value, str) else value


@pytest.fixture
def full_range(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[None]:
    """For the fault that needs it, every port of the range is taken on the host."""
    if request.node.callspec.params["name"] != "range without a free port":
        yield
        return
    command = [*cluster.ssh("host1"), sys.executable, "-c", shlex.quote(TAKE_PORTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        yield
        process.stdin.close()  # it ends


TAKE_PORTS = """
import resource, socket, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = [socket.create_server(("127.0.0.1", port)) for port in range(21000, 22001)]
print("taken", flush=True)
sys.stdin.read()
"""


# --- what is said ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("full_range")
@pytest.mark.parametrize("name", FAULTS)
async def test_the_exception_says_what_is_wrong_and_what_to_do(specs: dict[str, str], name: str) -> None:
    """If it fails: who starts kernels by a program cannot tell the faults apart, or is not told what to do."""
    fault = FAULTS[name]
    manager = AsyncKernelManager(kernel_name=spec_name(name))
    with pytest.raises(fault.kind) as caught:
        await manager.start_kernel()
    assert str(caught.value) == specs[name]
    error: Any = caught.value
    assert isinstance(error, HTTPError)
    assert error.status_code == fault.status
    if isinstance(caught.value, errors.NoHostAvailableError):
        assert {type(error) for error in caught.value.tried.values()} == {fault.reason}
    assert not manager.has_kernel


@pytest.mark.usefixtures("full_range")
@pytest.mark.parametrize("name", FAULTS)
def test_the_browser_shows_the_same_words(server: JupyterServer, specs: dict[str, str], name: str) -> None:
    """If it fails: JupyterLab's dialog says "Internal Server Error", or garbles the reason."""
    fault, spec = FAULTS[name], spec_name(name)
    status, body = server.request("POST", "/api/kernels", {"name": spec})
    assert (status, body["message"]) == (fault.status, specs[name])
    session = {"kernel": {"name": spec}, "name": "", "path": f"{spec}.ipynb", "type": "notebook"}
    status, body = server.request("POST", "/api/sessions", session)
    assert (status, body["message"]) == (500, specs[name])
    assert server.request("GET", "/api/kernels") == (200, [])
    assert server.request("GET", "/api/sessions") == (200, [])
