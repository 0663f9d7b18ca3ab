"""What the tests of real kernels share: a kernelspec made by hand, managers, and questions to kernels and hosts."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

import distributed_provisioner
from distributed_provisioner.provisioner import DistributedProvisioner
from distributed_provisioner.testing.host import Host

needs_encryption = pytest.mark.skipif(
    not hasattr(AsyncKernelManager, "transport_encryption"),
    reason="other platform: jupyter_client before 8.9 does not encrypt",
)
LAUNCHER = "launch_ipykernel.py"
REMOTE = Path(distributed_provisioner.__file__).parent / "remote"
STAND_IN = r"""
import json, socket, sys, time
info = json.load(open(sys.argv[1]))
shell, iopub, *held = [socket.create_server((info["ip"], info[n + "_port"])) for n in ("shell", "iopub", "stdin", "control", "hb")]
ready = b"\5READY\13Socket-Type\0\0\0\4XPUB\10Identity\0\0\0\0"
while True:
    held.append(iopub.accept()[0])
    held[-1].sendall(b"\xff\0\0\0\0\0\0\0\0\x7f\3\0NULL".ljust(64, b"\0") + bytes((4, len(ready))) + ready)
"""
"""A kernel that costs next to no CPU: it greets its relay and says nothing."""


def write_spec(
    name: str = "remote_python",
    *,
    argv: list[str] | None = None,
    env: dict[str, str] | None = None,
    language: str = "python",
    metadata: dict[str, Any] | None = None,
    interrupt_mode: str = "signal",
    **config: Any,
) -> str:
    """Install a kernelspec into this test's JUPYTER_DATA_DIR; without an argv it is the page's, with our launcher."""
    directory = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)
    directory.mkdir(parents=True, exist_ok=True)
    if argv is None:
        scripts = directory / "scripts"
        scripts.mkdir(exist_ok=True)
        for file in ("launch_ipykernel.py", "server_listener.py"):
            (scripts / file).write_bytes((REMOTE / file).read_bytes())
        argv = [
            "python",
            str(scripts / LAUNCHER),
            "--kernel-id",
            "{kernel_id}",
            "--port-range",
            "{port_range}",
        ]
        argv += ["--response-address", "{response_address}", "--public-key", "{public_key}"]
        argv += ["--kernel-class-name", "ipykernel.ipkernel.IPythonKernel"]
    config = {"remote_hosts": ["host1"], "remote_python": sys.executable, "unauthorized_users": [], **config}
    stanza = {"provisioner_name": "distributed-provisioner", "config": config}
    spec = {
        "argv": argv, "env": env or {}, "display_name": name, "language": language, "interrupt_mode": interrupt_mode,
        "metadata": {**(metadata or {}), "kernel_provisioner": stanza},
    }  # fmt: skip
    (directory / "kernel.json").write_text(json.dumps(spec))
    return name


def provisioner_of(manager: Any) -> DistributedProvisioner:
    provisioner = manager.provisioner
    assert isinstance(provisioner, DistributedProvisioner)
    return provisioner


def host_of(manager: Any) -> str:
    """Name of the host on which the manager's kernel runs."""
    process = provisioner_of(manager).kernel.process
    assert process is not None
    return process.host.host


@asynccontextmanager
async def running(
    name: str, *, encryption: str = "", ready: float = 30, now: bool = True, **start: Any
) -> AsyncIterator[tuple[AsyncKernelManager, AsyncKernelClient]]:
    """A kernel and a client that is connected after at most `ready` seconds; shut down afterwards.

    `encryption` is the manager's `transport_encryption`, where this version of jupyter_client has it.
    """
    traits = {"transport_encryption": encryption} if encryption else {}
    manager = AsyncKernelManager(kernel_name=name, **traits)
    await manager.start_kernel(**start)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=ready)
        yield manager, client
    finally:
        client.stop_channels()
        if now or manager.has_kernel:
            await manager.shutdown_kernel(now=now)


def prefork_of(manager: AsyncKernelManager) -> dict[str, Any]:
    """Whether the manager's kernel was forked ("used"), and why not."""
    process = provisioner_of(manager).kernel.process
    assert process is not None
    return dict(process.details["prefork"])


async def warm(name: str) -> None:
    """Return when the next kernel of this specification will be a fork."""
    for _ in range(20):
        async with running(name) as (manager, _client):
            found = prefork_of(manager)
        if found["used"]:
            return
        await asyncio.sleep(0.5)
    raise AssertionError(found)


async def run(client: AsyncKernelClient, code: str, timeout: float = 30) -> str:
    """Run code; what it printed. Errors of the code are raised."""
    printed: list[str] = []

    def output(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    reply = await client.execute_interactive(code, timeout=timeout, output_hook=output, allow_stdin=False)
    if reply["content"]["status"] != "ok":
        raise RuntimeError(f"{reply['content'].get('ename')}: {reply['content'].get('evalue')}")
    return "".join(printed).strip()


async def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    """Wait until the condition holds; fail when it does not in time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {condition}")
        await asyncio.sleep(0.02)


def kernels_on(host: Host) -> list[str]:
    """Command lines of kernels and launchers that run on a host."""
    return [
        p.command
        for p in host.processes()
        if "launch_ipykernel" in p.command or "ipykernel_launcher" in p.command
    ]
