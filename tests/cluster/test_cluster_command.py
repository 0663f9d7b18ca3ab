"""`jupyter ssh-cluster` and the health of hosts, with real kernels on real hosts and several servers."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from tests.cluster.real_kernels import host_of, provisioner_of, run, running, until, write_spec

from distributed_provisioner.errors import HostDrainedError, NoHostAvailableError
from distributed_provisioner.hosts import HostPool, HostState
from distributed_provisioner.models import HostAddress, KernelState

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone", "undrained")]

IPYKERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
SERVER = """
import sys
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name=sys.argv[1])
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=30)
print(manager.kernel_id, flush=True)
for line in sys.stdin:
    client.execute(line)
"""


@pytest.fixture
def undrained(cluster: Cluster) -> Iterator[None]:
    """Hosts begin without what tests of killed servers left on them, and take kernels again afterwards."""
    subprocess.run(
        [*COMMAND, "stop", "--all", "--yes", "--remote-hosts", "host1,host2,host3"],
        check=False,
        capture_output=True,
    )
    yield
    subprocess.run(
        [*COMMAND, "undrain", "host1", "host2", "--remote-hosts", "host1,host2"],
        check=True,
        capture_output=True,
    )


COMMAND = [sys.executable, "-m", "distributed_provisioner.cli.ssh_cluster"]


async def command(*argv: str, code: int = 0) -> tuple[str, str]:
    """Run `jupyter ssh-cluster …`; what it wrote to standard output and to standard error."""
    done = await asyncio.to_thread(
        subprocess.run, [*COMMAND, *argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


async def kernels(*argv: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """What `kernels --json` says, by kernel id."""
    out, _ = await command("kernels", "--json", *argv, code=code)
    return {kernel["kernel_id"]: kernel for kernel in json.loads(out)["kernels"]}


@asynccontextmanager
async def other_server(spec: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Another host application with a kernel; a line that is written to it is run as a cell. It is killed at the end."""
    pipe, kernel_id = asyncio.subprocess.PIPE, "none"
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, spec, stdin=pipe, stdout=pipe)
    try:
        assert server.stdout is not None
        kernel_id = (await asyncio.wait_for(server.stdout.readline(), 40)).decode().strip()
        yield server, kernel_id
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()
        await asyncio.to_thread(
            subprocess.run, [*COMMAND, "stop", kernel_id, "--yes"], capture_output=True, check=False
        )


async def orphaned(kernel_id: str) -> None:
    """Wait until the host has noticed that the kernel's server is gone."""
    deadline = time.monotonic() + 15
    while (await kernels())[kernel_id]["server"] != "orphaned":
        assert time.monotonic() < deadline


# --- kernels, stop --------------------------------------------------------------------------------------------------------------------


async def test_kernels_of_all_servers_are_shown_and_only_orphans_are_stopped(cluster: Cluster) -> None:
    """If it fails: nobody sees what a crashed server left, or clearing it up ends what others work with."""
    mine = write_spec("mine", argv=IPYKERNEL, remote_hosts=["host1"])
    theirs = write_spec("theirs", argv=IPYKERNEL, remote_hosts=["host2"])
    async with running(mine) as (manager, client), other_server(theirs) as (server, orphan):
        await run(client, "x = 1")
        found = await kernels()
        assert {kernel_id: kernel["host"] for kernel_id, kernel in found.items()} == {
            manager.kernel_id: "host1",
            orphan: "host2",
        }
        assert {kernel["server"] for kernel in found.values()} == {"connected"}
        assert all(kernel["memory_bytes"] > 10 << 20 for kernel in found.values())
        server.send_signal(signal.SIGKILL)
        await server.wait()
        await orphaned(orphan)
        out, _ = await command("stop", "--orphans", "--yes")
        assert out == f"Stopped 1 kernel: {orphan}.\n"
        assert list(await kernels()) == [manager.kernel_id]
        assert await run(client, "print(x)") == "1"


async def test_a_kernel_that_is_stopped_is_dead_to_its_server_at_once(cluster: Cluster) -> None:
    """If it fails: the notebook says nothing, and waits for a kernel that is gone."""
    async with running(write_spec(argv=IPYKERNEL)) as (manager, _client):
        _, err = await command("stop", manager.kernel_id[:8], "--yes")
        await until(lambda: provisioner_of(manager).kernel.state is KernelState.EXITED)
        assert "may start it again" in err


async def test_a_host_that_is_down_is_told_and_the_others_are_shown(cluster: Cluster) -> None:
    """If it fails: one host that is down hides all kernels of the others, or nobody notices."""
    spec = write_spec(argv=IPYKERNEL, remote_hosts=["host1", "host2", "host3"], connect_timeout=3)
    async with running(spec) as (manager, _client):
        for fault, mend in (("kill_sshd", "start_sshd"), ("blackhole", "heal")):
            getattr(cluster["host3"], fault)()
            try:
                out, err = await command("hosts", code=1)
                states = {line.split()[0]: line.split()[1] for line in out.splitlines()[1:]}
                assert states == {"host1": "ok", "host2": "ok", "host3": "unreachable"}
                assert "host3 cannot be reached" in err
                assert list(await kernels(code=1)) == [manager.kernel_id]
            finally:
                getattr(cluster["host3"], mend)()


# --- drain ----------------------------------------------------------------------------------------------------------------------------


async def test_a_drained_host_gets_no_kernels_from_servers_that_run_and_that_start(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """If it fails: an operator has to restart every server before a host can be taken down."""
    spec = write_spec(argv=IPYKERNEL, remote_hosts=["host1", "host2"])
    many = AsyncMultiKernelManager()
    try:
        first_id = await many.start_kernel(kernel_name=spec)
        first = many.get_kernel(first_id)
        assert host_of(first) == "host1"
        await many.start_kernel(kernel_name=spec)
        await command("drain", "host1", "--reason", "new disks")
        await until(lambda: HostPool.current().state(HostAddress("host1")) is HostState.DRAINED)
        for _ in range(2):
            assert host_of(many.get_kernel(await many.start_kernel(kernel_name=spec))) == "host2"
        await many.restart_kernel(first_id, now=True)  # what runs there stays, and may be restarted
        assert host_of(first) == "host1"
        async with other_server(spec) as (_server, other):  # it has never spoken with host1
            assert (await kernels())[other]["host"] == "host2"
        await command("undrain", "host1")
        await until(lambda: HostPool.current().state(HostAddress("host1")) is HostState.WELL)
        hosts = {host_of(many.get_kernel(await many.start_kernel(kernel_name=spec))) for _ in range(2)}
        assert hosts == {"host1", "host2"}
    finally:
        await many.shutdown_all(now=True)


async def test_when_all_hosts_are_drained_the_error_says_so_and_what_to_do(cluster: Cluster) -> None:
    """If it fails: users read that their hosts cannot be used, and look for a fault that is none."""
    await command("drain", "host1", "host2", "--reason", "move", "--remote-hosts", "host1,host2")
    manager = AsyncKernelManager(kernel_name=write_spec(argv=IPYKERNEL, remote_hosts=["host1", "host2"]))
    for _ in range(2):  # the first time it learns that, the second time it knows
        with pytest.raises(Exception, match="2 hosts are drained") as failure:
            await manager.start_kernel()
        text = str(failure.value)
        assert "host1 (move), host2 (move)" in text
        assert "jupyter ssh-cluster undrain HOST" in text
    with pytest.raises(Exception, match=r"host1 is drained \(move\)") as failure:
        await AsyncKernelManager(
            kernel_name=write_spec("one", argv=IPYKERNEL, remote_hosts=["host1"])
        ).start_kernel()
    causes: list[Any] = [failure.value]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__)
    [cause] = [error for error in causes if isinstance(error, NoHostAvailableError)]
    assert isinstance(cause.tried["host1"], HostDrainedError)


# --- health ---------------------------------------------------------------------------------------------------------------------------


async def test_a_silent_host_gets_no_kernels_until_it_is_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: each launch waits for a host that a connection already knows to be gone."""
    monkeypatch.setenv("GP_KEEPALIVE_INTERVAL", "0.5")
    spec = write_spec(argv=IPYKERNEL, remote_hosts=["host1", "host2"], connect_timeout=8)
    many = AsyncMultiKernelManager()
    host = HostAddress("host1")
    try:
        first = many.get_kernel(await many.start_kernel(kernel_name=spec))
        assert host_of(first) == "host1"
        cluster["host1"].blackhole()
        try:
            await until(lambda: HostPool.current().state(host) is HostState.UNREACHABLE, seconds=4)
            assert "unreachable=1" in repr(HostPool.current())
            begun = time.monotonic()
            for _ in range(2):
                assert host_of(many.get_kernel(await many.start_kernel(kernel_name=spec))) == "host2"
            assert time.monotonic() - begun < 6
        finally:
            cluster["host1"].heal()
        await until(lambda: not HostPool.current().is_unwell(host))
        await until(lambda: provisioner_of(first).kernel.state is KernelState.RUNNING)
        hosts = {host_of(many.get_kernel(await many.start_kernel(kernel_name=spec))) for _ in range(2)}
        assert hosts == {"host1", "host2"}
    finally:
        await many.shutdown_all(now=True)


# --- reading --------------------------------------------------------------------------------------------------------------------------


async def lines_of(process: asyncio.subprocess.Process, last: str) -> list[str]:
    """What it prints up to a line."""
    assert process.stdout is not None
    found: list[str] = []
    while not found or found[-1] != last:
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        assert line, found
        found.append(line.decode().rstrip("\n"))
    return found


@asynccontextmanager
async def following(*argv: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`jupyter ssh-cluster …`, ended by Ctrl-C; nothing is wrong then."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*COMMAND, *argv, stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, err) == (130, b"")


async def test_logs_follow_what_a_program_writes(cluster: Cluster) -> None:
    """If it fails: what a library prints past Jupyter can be seen by nobody while it happens."""
    async with running(write_spec(argv=IPYKERNEL)) as (manager, client):
        await run(client, "import os; os.system('echo begin')")
        async with following("logs", manager.kernel_id[:8], "--follow", "--lines", "1") as process:
            assert await lines_of(process, "begin") == ["begin"]
            await run(client, "for n in range(3):\n    os.system(f'echo from below {n}')")
            assert await lines_of(process, "from below 2") == [f"from below {n}" for n in range(3)]


async def test_output_of_a_kernel_whose_server_was_killed_is_all_there(cluster: Cluster) -> None:
    """If it fails: what a long cell printed during the night is lost with the server."""
    cell = "import sys, time; [(print('print', n, flush=True), time.sleep(0.2)) for n in range(20)]; print('done', flush=True)"
    async with other_server(write_spec(argv=IPYKERNEL)) as (server, kernel_id):
        assert server.stdin is not None
        server.stdin.write(f"{cell}\n".encode())
        await server.stdin.drain()
        await asyncio.sleep(1.5)
        server.send_signal(signal.SIGKILL)
        await server.wait()
        async with following("output", kernel_id[:8], "--follow") as process:
            found = await lines_of(process, "done")
        numbers = [int(line.split()[1]) for line in found[:-1] if line.startswith("print ")]
        assert numbers == list(range(numbers[0], 20))
        assert numbers[0] < 9
        out, _ = await command("output", kernel_id[:8])
        assert out.splitlines() == found
        out, _ = await command("output", kernel_id[:8], "--json")
        messages = [json.loads(line) for line in out.splitlines()]
        assert {
            message["parent_header"]["session"] for message in messages if message["msg_type"] == "stream"
        }
