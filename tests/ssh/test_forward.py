"""A kernel's sockets here: private, at the same place as long as the kernel lives, and none of them can harm another one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.errors import ConfigurationError
from distributed_provisioner.models import CHANNELS, KernelTransport, RemoteProcess
from distributed_provisioner.ssh import Attachment, HostConnection

from .conftest import Get, Run

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster, Host

pytestmark = pytest.mark.cluster

SERVE = """
import os, socket, sys, threading
mode, where = sys.argv[1:]
try:
    os.unlink(where)
except OSError:
    pass
listener = socket.socket(socket.AF_UNIX)
listener.bind(where)
listener.listen(50)
print("ready", flush=True)
def serve(connection):
    with connection:
        if mode == "close":
            return
        if mode == "hold":
            threading.Event().wait()
        while data := connection.recv(65536):
            connection.sendall(data)
        connection.sendall(b"bye")
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@pytest.fixture
def prefix() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="dp-") as directory:
        yield f"{directory}/k"


def far_end(
    connection: HostConnection, transport: KernelTransport = "ipc", ip: str = "/tmp/far"
) -> RemoteProcess:
    ports = {channel: number for number, channel in enumerate(CHANNELS, 1)}
    return RemoteProcess(connection.address, 1, 1, 1, 1, transport, ip, ports, "/")


@contextlib.contextmanager
def serving(host: Host, mode: str, number: int = 1) -> Iterator[None]:
    """A server on the host at /tmp/far-{number}."""
    command = ["python3", "-c", SERVE, mode, f"/tmp/far-{number}"]
    process = subprocess.Popen([*host._enter(host._account(None)), *command], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        host.run("pkill", "-9", "-f", f"/tmp/far-{number}$", check=False)


def dial(path: str) -> socket.socket:
    near = socket.socket(socket.AF_UNIX)
    near.settimeout(10)
    near.connect(path)
    return near


def echo(path: str, data: bytes = b"hello") -> bytes:
    with dial(path) as near:
        near.sendall(data)
        near.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: near.recv(65536), b""))


async def attached(connection: HostConnection, process: RemoteProcess, prefix: str) -> Attachment:
    await connection.connect()
    return await connection.attach(process, prefix)


def test_near_ends_are_private_numbered_as_jupyter_has_them_and_removed_at_the_end(
    cluster: Cluster, run: Run, get: Get, prefix: str
) -> None:
    """Another user of this machine must not reach a kernel."""
    connection = get("host1")
    attachment = run(attached(connection, far_end(connection), prefix))
    assert (attachment.transport, attachment.ip) == ("ipc", prefix)
    assert attachment.ports == {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
    for number in range(1, 6):
        status = os.stat(f"{prefix}-{number}")
        assert stat.S_ISSOCK(status.st_mode)
        assert status.st_mode & 0o777 == 0o600
    run(attachment.close())
    run(attachment.close())
    assert not list(Path(prefix).parent.iterdir())


def test_bytes_pass_both_ways_with_the_ends_of_both(
    cluster: Cluster, run: Run, get: Get, prefix: str
) -> None:
    """Large buffers, half-closed connections: whatever ZMQ does."""
    connection = get("host1")
    attachment = run(attached(connection, far_end(connection), prefix))
    data = os.urandom(5 << 20)
    with serving(cluster["host1"], "echo"):
        assert echo(f"{prefix}-1", b"small") == b"smallbye"

        async def large() -> bytes:
            reader, writer = await asyncio.open_unix_connection(f"{prefix}-1", limit=1 << 20)
            writer.write(data)
            writer.write_eof()
            answer = await reader.read(-1)
            writer.close()
            return answer

        assert asyncio.run(large()) == data + b"bye"
    run(attachment.close())


def test_a_forward_that_fails_closes_only_its_own_connection(
    cluster: Cluster, run: Run, get: Get, prefix: str
) -> None:
    """A kernel that dies must not take the other kernels' connection with it."""
    connection = get("host1")
    attachment = run(attached(connection, far_end(connection), prefix))
    with serving(cluster["host1"], "echo"), serving(cluster["host1"], "close", 2):
        with dial(f"{prefix}-1") as living:
            for _ in range(30):
                assert echo_or_reset(f"{prefix}-2") == b""  # accepted and closed at once over there
                assert echo_or_reset(f"{prefix}-3") == b""  # nobody listens over there
                dial(f"{prefix}-1").close()  # gone before its channel is open
            living.sendall(b"still here")
            assert living.recv(100) == b"still here"
        assert run(connection.request("ping", timeout=5)) == {}
    assert open_channels(connection, left=1) == 1  # the control channel
    run(attachment.close())


def test_a_channel_that_opens_too_late_is_closed(host: Host, run: Run, get: Get, prefix: str) -> None:
    """Otherwise it stays open on the host, and in the kernel, as long as the connection lasts."""
    connection = get(host.name)
    attachment = run(attached(connection, far_end(connection), prefix))
    with serving(host, "hold"):
        host.delay(300)
        near = dial(f"{prefix}-1")
        time.sleep(0.1)
        run(attachment.close())
        assert open_channels(connection) == 2
        assert open_channels(connection, left=1) == 1
        near.close()


def open_channels(connection: HostConnection, left: int = 100) -> int:
    """The channels of its SSH connection; waits a while until no more than `left` are."""
    assert connection._lines.transport is not None
    channels = connection._lines.transport.connection._channels
    deadline = time.monotonic() + 5
    while len(channels) > left and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(channels)


def echo_or_reset(path: str) -> bytes:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        return echo(path)
    return b""


def test_who_connects_while_the_host_is_away_is_served_when_it_is_back(
    cluster: Cluster, run: Run, get: Get, prefix: str
) -> None:
    """Connected clients must go on without being told anything."""
    connection = get("host1")
    attachment = run(attached(connection, far_end(connection), prefix))
    inode = os.stat(f"{prefix}-1").st_ino

    async def lose() -> None:
        assert connection._lines.transport is not None
        connection._lines.transport.connection.abort()
        await asyncio.sleep(0.1)

    with serving(cluster["host1"], "echo"):
        before = dial(f"{prefix}-1")
        before.sendall(b"x")
        assert before.recv(1) == b"x"
        run(lose())
        assert before.recv(1) == b""
        waiting, gone = dial(f"{prefix}-1"), dial(f"{prefix}-1")
        waiting.sendall(b"early words")
        gone.close()
        run(connection.connect())
        assert waiting.recv(100) == b"early words"
        assert os.stat(f"{prefix}-1").st_ino == inode
        assert attachment._forwards[0].count == 1
        for near in (before, waiting):
            near.close()
    run(attachment.close())


def test_a_stale_socket_is_replaced_and_a_successors_is_not_removed(
    cluster: Cluster, run: Run, get: Get, prefix: str
) -> None:
    """A restart makes the near ends anew at the same paths, whichever of old and new is settled first."""
    connection = get("host1")
    first = run(attached(connection, far_end(connection), prefix))
    second = run(attached(connection, far_end(connection), prefix))
    run(first.close())
    assert Path(f"{prefix}-1").exists()
    with serving(cluster["host1"], "echo"):
        assert echo(f"{prefix}-1") == b"hellobye"
    for number in range(1, 6):
        os.unlink(f"{prefix}-{number}")  # what jupyter_client does to ipc files on a restart
    run(second.close())


def test_a_path_that_is_too_long_is_refused_with_a_sentence(cluster: Cluster, run: Run, get: Get) -> None:
    """TMPDIR may be long; the kernel's sockets cannot be."""
    connection = get("host1")
    run(connection.connect())
    with pytest.raises(ConfigurationError, match="too long for a Unix socket"):
        run(connection.attach(far_end(connection), "/tmp/" + "x" * 100))


def test_what_cannot_be_made_leaves_nothing(cluster: Cluster, run: Run, get: Get, prefix: str) -> None:
    """A launch that fails leaves no forward."""
    connection = get("host1")
    run(connection.connect())
    os.mkdir(f"{prefix}-4")
    with pytest.raises(OSError, match="already in use"):
        run(connection.attach(far_end(connection), prefix))
    assert [path.name for path in Path(prefix).parent.iterdir()] == ["k-4"]


def test_direct_kernels_are_not_forwarded(cluster: Cluster, run: Run, get: Get, prefix: str) -> None:
    """With `transport = "direct"` the client goes to the host's own address."""
    connection = get("host1")
    attachment = run(attached(connection, far_end(connection, "direct", "10.1.2.3"), prefix))
    assert (attachment.transport, attachment.ip, attachment.ports["hb"]) == ("tcp", "10.1.2.3", 5)
    assert not list(Path(prefix).parent.iterdir())
