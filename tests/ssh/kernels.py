"""Launching real kernels straight through a connection, as the kernel layer does it."""

from __future__ import annotations

import contextlib
import secrets
import sys
import uuid
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient

from distributed_provisioner.models import CHANNELS, HostAddress, RemoteProcess
from distributed_provisioner.ssh import Attachment, HostConnection


def launch_params(**changes: Any) -> dict[str, Any]:
    """Parameters of a launch request for an IPython kernel that is told its connection file."""
    return {
        "kernel_id": str(uuid.uuid4()),
        "generation": 1,
        "kernel_name": "test",
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "resource_dir": "",
        "bundle": None,
        "key": secrets.token_hex(16),
        "spec_env": {},
        "request_env": {"IPYTHONDIR": "/tmp/.ipython-test"},
        "directories": [],
        "transport": "ipc",
        "address": None,
        "port_range": [0, 0],
        "ports": None,
        "ip": None,
        "encryption": None,
        "public_key": "",
        "launch_timeout": 40.0,
        "orphan_timeout": 0,
        "interrupt_target": "group",
        "remote_python": "python3",
        "log_dir": "",
        **changes,
    }


def process_of(address: HostAddress, params: dict[str, Any], reply: dict[str, Any]) -> RemoteProcess:
    """Where the launched kernel is."""
    return RemoteProcess(
        host=address, pid=reply["pid"], kernel_pid=reply["kernel_pid"], pgid=reply["pgid"],
        generation=params["generation"], kernel_transport=params["transport"], ip=reply["ip"], ports=reply["ports"],
        directory=reply["directory"],
    )  # fmt: skip


def client_of(attachment: Attachment, key: str) -> BlockingKernelClient:
    """A client that has its channels open."""
    client = BlockingKernelClient()
    info: Any = {
        "transport": attachment.transport,
        "ip": attachment.ip,
        "key": key.encode(),
        "signature_scheme": "hmac-sha256",
        **{f"{channel}_port": attachment.ports[channel] for channel in CHANNELS},
    }
    client.load_connection_info(info)
    client.start_channels()
    return client


def value_of(client: BlockingKernelClient, expression: str, timeout: float = 30) -> str:
    """What the kernel says to an expression."""
    reply = client.execute_interactive(
        "", user_expressions={"value": expression}, timeout=timeout, silent=False, store_history=False
    )
    return str(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])


@contextlib.contextmanager
def closing(client: BlockingKernelClient) -> Any:
    try:
        yield client
    finally:
        client.stop_channels()


async def forget(connection: HostConnection, params: dict[str, Any]) -> None:
    """End the kernel and remove what it left."""
    await connection.request(
        "forget", timeout=20, kernel_id=params["kernel_id"], generation=params["generation"], keep_log=False
    )
