"""Small kernels on this machine for the tests of `jupyter ssh-cluster`: they open their sockets, write to their log, and wait."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from typing import Any

from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh import Connections

KERNEL = """
import json, os, signal, socket, sys, time
info = json.load(open(sys.argv[1]))
held = []
for channel in ("shell", "iopub", "stdin", "control", "hb"):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{info['ip']}-{info[channel + '_port']}")
    sock.listen()
    held.append(sock)
for number in range(5):
    print("line", number, flush=True)
signal.signal(signal.SIGUSR1, lambda *_: print("a signal\\na half", end="", flush=True))
signal.signal(signal.SIGUSR2, lambda *_: print(" and the rest", flush=True))
while True:
    time.sleep(60)
"""

SERVER = """
import asyncio, json, os, sys
from tests.unit.cli.cluster_kernels import launch
launch(**json.loads(sys.argv[1]))
os._exit(0)  # as with kill -9: nothing is said to anybody
"""


def launch(kernel_id: str = "", name: str = "small") -> str:
    """Start a kernel of this process on localhost; its id."""
    kernel_id = kernel_id or str(uuid.uuid4())
    params: dict[str, Any] = {
        "kernel_id": kernel_id, "generation": 1, "kernel_name": name, "argv": [sys.executable, "-c", KERNEL, "{connection_file}"],
        "resource_dir": "", "bundle": None, "key": secrets.token_hex(16), "spec_env": {}, "request_env": {}, "directories": [],
        "transport": "ipc", "address": None, "port_range": [0, 0], "ports": None, "ip": None, "encryption": None, "public_key": "",
        "launch_timeout": 40.0, "orphan_timeout": 0, "interrupt_target": "group", "remote_python": "python3", "log_dir": "",
    }  # fmt: skip
    ask("launch", timeout=50.0, **params)
    return kernel_id


def launch_by_another_server(kernel_id: str = "", name: str = "small") -> str:
    """Start a kernel of a process that is gone when this returns."""
    kernel_id = kernel_id or str(uuid.uuid4())
    arguments = json.dumps({"kernel_id": kernel_id, "name": name})
    subprocess.run([sys.executable, "-c", SERVER, arguments], check=True, timeout=60)
    deadline = time.monotonic() + 10
    while (status_of(kernel_id) or {})["server_connected"]:  # its bridge ends a moment after it
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return kernel_id


def ask(op: str, timeout: float = 20.0, **params: Any) -> dict[str, Any]:
    """Ask the listener of localhost."""

    async def asked() -> dict[str, Any]:
        connection = Connections.current().get(HostAddress("localhost"), Login())
        await connection.connect()
        return await connection.request(op, timeout=timeout, **params)

    return IOThread.current().submit(asked()).result(60)


def status_of(kernel_id: str) -> dict[str, Any] | None:
    found = [status for status in ask("list")["kernels"] if status["kernel_id"] == kernel_id]
    return found[0] if found else None


def signal_to(kernel_id: str, number: int = signal.SIGUSR1) -> None:
    status = status_of(kernel_id)
    assert status is not None
    os.kill(status["kernel_pid"], number)


def forget_all() -> None:
    """End every kernel here."""
    for status in ask("list")["kernels"]:
        ask("forget", kernel_id=status["kernel_id"], generation=status["generation"], keep_log=False)
