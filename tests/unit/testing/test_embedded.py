"""The embedded cluster of SSH servers, which the demo and the quick tests stand on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest

from distributed_provisioner.testing import marked
from distributed_provisioner.testing.embedded import EmbeddedCluster


@pytest.fixture
def embedded() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(3) as running:
        yield running


@contextlib.asynccontextmanager
async def connect(
    cluster: EmbeddedCluster, host: str = "host1"
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with asyncssh.connect(
        host,
        config=[cluster.home / ".ssh/config"],
        known_hosts=str(cluster.home / ".ssh/known_hosts"),
        login_timeout=20,
    ) as connection:
        yield connection


def ssh(cluster: EmbeddedCluster, host: str, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [*cluster.ssh(host, *options), command]
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )


def test_openssh_runs_commands_with_a_home_of_each_host(embedded: EmbeddedCluster) -> None:
    """Else the demo's hosts would share their state and know it."""
    for host in embedded.hosts:
        done = ssh(embedded, host.name, "echo $HOME; pwd; echo $XDG_RUNTIME_DIR$XDG_STATE_HOME; exit 7")
        assert done.stdout.split() == [str(host.home), str(host.home)]
        assert done.returncode == 7


async def test_large_streams_arrive_whole(embedded: EmbeddedCluster) -> None:
    """Else shipped files and logs would be cut short."""
    data = os.urandom(3_000_000)
    async with connect(embedded) as connection:
        done = await connection.run("tee /dev/stderr", input=data, encoding=None)
    assert done.stdout == data
    assert done.stderr == data


async def test_signal_of_a_command_is_told(embedded: EmbeddedCluster) -> None:
    """A killed launcher must not look like one that ended well."""
    async with connect(embedded) as connection:
        done = await connection.run("kill -9 $$")
    assert done.exit_signal is not None
    assert done.exit_signal[0] == "KILL"


async def test_ports_and_sockets_are_forwarded(embedded: EmbeddedCluster, tmp_path: Path) -> None:
    """Kernels are reached through forwards only."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()
        await writer.wait_closed()

    path = str(tmp_path / "socket")
    tcp = await asyncio.start_server(echo, "127.0.0.1", 0)
    unix = await asyncio.start_unix_server(echo, path)
    port = tcp.sockets[0].getsockname()[1]
    async with connect(embedded) as connection:
        for opening in (connection.open_connection("127.0.0.1", port), connection.open_unix_connection(path)):
            reader, writer = await opening
            writer.write(b"abc")
            assert await reader.read(3) == b"abc"
            writer.close()
        embedded["host1"].allow_tcp_forwarding = False
        with pytest.raises(asyncssh.ChannelOpenError) as refused:
            await connection.open_connection("127.0.0.1", port)
        assert refused.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
        embedded["host1"].allow_streamlocal_forwarding = False
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection(path)
    for server in (tcp, unix):
        server.close()
        await server.wait_closed()


async def test_command_outlives_its_connection_as_under_sshd(embedded: EmbeddedCluster) -> None:
    """The listener's life after a cut line could not be tested if the server ended it."""
    host = embedded["host1"]
    with contextlib.suppress(asyncssh.Error):
        async with connect(embedded) as connection:
            process = await connection.create_process("echo $$; exec sleep 1234")
            pid = int(await process.stdout.readline())
            host.disconnect()
            await process.wait()
    assert pid in [process.pid for process in host.processes()]


async def test_lost_connection_ends_standard_input(embedded: EmbeddedCluster) -> None:
    """A bridge that reads its standard input ends when the line is cut."""
    host = embedded["host1"]
    with contextlib.suppress(asyncssh.Error):
        async with connect(embedded) as connection:
            process = await connection.create_process("echo ready; cat >/dev/null")
            await process.stdout.readline()
            host.disconnect()
            await process.wait()
    until = time.monotonic() + 10
    while host.processes():
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def test_refused_connections_are_accepted_again_on_the_same_port(embedded: EmbeddedCluster) -> None:
    """A host that comes back comes back where it was."""
    host = embedded["host1"]
    port = host.port
    host.refuse_connections()
    with pytest.raises(ConnectionRefusedError):
        async with connect(embedded):
            pass
    host.accept_connections()
    assert host.port == port
    async with connect(embedded) as connection:
        assert (await connection.run("echo yes")).stdout == "yes\n"


async def test_slow_host_is_slow(embedded: EmbeddedCluster) -> None:
    """Time-outs are tested with it."""
    embedded["host1"].slow(login=0.3, command=0.3)
    started = time.monotonic()
    async with connect(embedded) as connection:
        assert time.monotonic() - started >= 0.3
        await connection.run("true")
    assert time.monotonic() - started >= 0.6


async def test_stranger_and_wrong_host_key_are_refused(embedded: EmbeddedCluster) -> None:
    """Keys are checked on both sides."""
    stranger = asyncssh.generate_private_key("ssh-ed25519")
    config = [embedded.home / ".ssh/config"]
    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect("host1", config=config, client_keys=[stranger], agent_path=None)
    other = f"[127.0.0.1]:{embedded['host1'].port} {embedded['host2'].host_key}"
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await asyncssh.connect("host1", config=config, known_hosts=asyncssh.import_known_hosts(other))


def test_stop_ends_detached_processes_and_removes_files(tmp_path: Path) -> None:
    """A demo leaves nothing running."""
    with EmbeddedCluster(2, directory=tmp_path) as cluster:
        for name in ("host1", "host2"):
            ssh(cluster, name, "setsid sleep 999 </dev/null >/dev/null 2>&1 & echo >$TMPDIR/x")
        detached = [process.pid for host in cluster.hosts for process in host.processes()]
        markers = [host.marker for host in cluster.hosts]
        ports = [host.port for host in cluster.hosts]
        assert len(detached) == 2
    assert [marked.processes(marker) for marker in markers] == [[], []]
    assert list(tmp_path.iterdir()) == []
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1)


def test_stop_with_open_connections_does_not_hang() -> None:
    """Ctrl-C in the demo ends it at once."""
    started = time.monotonic()
    with EmbeddedCluster(1) as cluster:
        session = subprocess.Popen(
            [*cluster.ssh("host1"), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(b"x\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"x\n"
    session.communicate()
    assert time.monotonic() - started < 5
