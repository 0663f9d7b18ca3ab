"""Messages of kernels on real hosts, over cut lines, restarts, killed relays and listeners, and where sshd forwards nothing."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from tests.cluster.real_kernels import needs_encryption, provisioner_of, run, running, until, write_spec

from distributed_provisioner.models import KernelState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone")]


@pytest.fixture
def host(cluster: Cluster) -> Iterator[Host]:
    yield cluster["host1"]
    cluster["host1"].heal()


@pytest.fixture(params=["AllowTcpForwarding no", "DisableForwarding yes", ""])
def forwarding(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[str]:
    """What sshd on host2 forbids; an entry of remote_hosts that no other test has a connection for."""
    closed: dict[str, str | None] = {}
    if request.param:
        name, value = request.param.split()
        closed = {name: value, "AllowStreamLocalForwarding": "no"}
    cluster["host2"].configure_sshd(**closed)
    yield f"{request.param or 'none'}"
    cluster["host2"].configure_sshd(**dict.fromkeys(closed))


def entry(forwarding: str) -> str:
    """Each with a connection of its own."""
    return {"AllowTcpForwarding no": "jovyan@host2:22", "DisableForwarding yes": "jovyan@host2"}.get(
        forwarding, "host2"
    )


def relay_of(manager: Any) -> str:
    process = provisioner_of(manager).kernel.process
    assert process is not None
    return process.relay


def pids(host: Host, name: str) -> list[int]:
    """Processes that have this name, or whose command line has it."""
    found = host.run("sh", "-c", "grep -al '' /proc/[0-9]*/comm | xargs grep -H . 2>/dev/null", check=False)
    return [
        int(match[1])
        for line in str(getattr(found, "stdout", found)).splitlines()
        if (match := re.match(r"/proc/(\d+)/comm:(.*)", line)) and name in match[2]
    ]


async def gather(client: AsyncKernelClient, message_id: str, timeout: float = 30) -> list[dict[str, Any]]:
    """iopub messages of a request, up to idle; an error for a message that came twice."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + timeout
    while True:
        message = await client.get_iopub_msg(timeout=deadline - time.monotonic())
        if message["parent_header"].get("msg_id") == message_id:
            found.append(message)
            if message["content"].get("execution_state") == "idle":
                return found


def text(messages: list[dict[str, Any]], name: str = "stdout") -> str:
    return "".join(
        m["content"]["text"] for m in messages if m["msg_type"] == "stream" and m["content"]["name"] == name
    )


PRINTS = "import time\nfor i in range(12):\n    print(i, flush=True)\n    time.sleep({})"
ALL = "".join(f"{number}\n" for number in range(12))


@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("seconds", [0.5, 0.1])
async def test_a_cell_that_runs_while_the_line_is_cut_loses_nothing(
    seconds: float, noticed: bool, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it 7 of 12 prints are lost, and a cell that ends meanwhile keeps the notebook busy for ever."""
    if noticed:
        monkeypatch.setenv("GP_KEEPALIVE_INTERVAL", "1")
    async with running(write_spec()) as (manager, client):
        assert relay_of(manager)
        request = client.execute(PRINTS.format(seconds))
        await asyncio.sleep(0.7)
        host.cut()
        await asyncio.sleep(4)
        host.heal()
        messages = await gather(client, request)
        assert text(messages) == ALL
        reply = await client.get_shell_msg(timeout=5)
        assert reply["parent_header"]["msg_id"] == request
        assert reply["content"]["status"] == "ok"
        assert await run(client, "print('goes on')") == "goes on"


async def test_a_request_that_is_made_while_the_host_is_away_runs_once_when_it_is_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever works on a train presses shift-enter and waits."""
    monkeypatch.setenv("GP_KEEPALIVE_INTERVAL", "1")
    async with running(write_spec()) as (manager, client):
        await run(client, "n = 0")
        host.cut()
        await until(lambda: provisioner_of(manager).kernel.state is KernelState.UNREACHABLE)
        request = client.execute("n += 1; print(n)")
        await asyncio.sleep(0.5)
        host.heal()
        assert text(await gather(client, request)) == "1\n"
        assert await run(client, "print(n)") == "1"


async def test_everything_works_whatever_sshd_forwards(cluster: Cluster, forwarding: str) -> None:
    """Sites that forbid forwarding altogether: requests, input, large buffers both ways, restarts, shutdowns."""
    async with running(write_spec(remote_hosts=[entry(forwarding)])) as (manager, client):
        assert await run(client, "print(1)") == "1"
        printed: list[str] = []

        def output(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        await client.execute_interactive(
            "print(input())", timeout=20, output_hook=output, stdin_hook=lambda _: client.input("Ada")
        )
        assert "".join(printed) == "Ada\n"
        await check_buffers(client)
        await manager.restart_kernel(now=True)
        await client.wait_for_ready(timeout=30)
        assert await run(client, "print(2)") == "2"


async def check_buffers(client: AsyncKernelClient) -> None:
    """20 MB to the kernel and back, in a comm's buffers."""
    await run(
        client,
        "def opened(comm, message):\n"
        "    comm.on_msg(lambda message: comm.send({}, buffers=[bytes(b) for b in message['buffers']]))\n"
        "get_ipython().kernel.comm_manager.register_target('echo', opened)",
    )
    data = bytes(range(256)) * (20 * 4096)
    session, shell = client.session, client.shell_channel
    shell.send(session.msg("comm_open", {"comm_id": "c", "target_name": "echo", "data": {}}))
    message = session.msg("comm_msg", {"comm_id": "c", "data": {}})
    session.send(shell.socket, message, buffers=[data])
    deadline = time.monotonic() + 60
    while True:
        answer = await client.get_iopub_msg(timeout=deadline - time.monotonic())
        if answer["msg_type"] == "comm_msg":
            assert bytes(answer["buffers"][0]) == data
            return


async def test_a_killed_relay_is_replaced_and_the_cell_is_answered(host: Host) -> None:
    """If it fails: one process that is killed for memory takes the notebook with it."""
    async with running(write_spec()) as (_, client):
        await run(client, "n = 0")
        request = client.execute("import time\nn += 1\ntime.sleep(3)\nprint('end')")
        await asyncio.sleep(0.5)
        (pid,) = pids(host, "dp-relay")
        host.run("kill", "-9", str(pid))
        messages = await gather(client, request)
        assert "end" in text(messages)
        assert "relay on host1" in text(messages, "stderr")
        assert (await client.get_shell_msg(timeout=5))["content"]["status"] == "ok"
        assert await run(client, "print(n)") == "1"
        assert pids(host, "dp-relay") not in ([], [pid])


async def test_a_killed_listener_costs_no_message(host: Host) -> None:
    """The relays are processes of their own; the next listener finds them."""
    async with running(write_spec()) as (manager, client):
        request = client.execute(PRINTS.format(0.3))
        await asyncio.sleep(0.5)
        relays, user = pids(host, "dp-relay"), host.run("id", "-un").stdout.strip()
        listeners = [
            process.pid
            for process in host.processes()
            if re.search("server_listener.* serve", process.command)
            and process.pid not in relays
            and process.user == user  # other tests leave listeners of others
        ]
        assert listeners
        host.run("kill", "-9", *map(str, listeners))
        assert text(await gather(client, request)) == ALL
        await until(lambda: provisioner_of(manager).kernel.state is KernelState.RUNNING)
        assert await run(client, "print('goes on')") == "goes on"
        await manager.restart_kernel(now=True)
        await client.wait_for_ready(timeout=30)
        assert await run(client, "print('again')") == "again"


async def test_a_kernel_that_is_killed_says_why_in_the_running_cell(host: Host) -> None:
    """If it fails: the user sees "kernel died" and no reason."""
    async with running(write_spec()) as (_, client):
        request = client.execute(
            "import os, time\nprint('last words', flush=True)\ntime.sleep(0.3)\nos.kill(os.getpid(), 9)"
        )
        told, deadline = "", time.monotonic() + 10
        said = ""
        while "has ended" not in told:
            message = await client.get_iopub_msg(timeout=deadline - time.monotonic())
            if message["parent_header"].get("msg_id") == request and message["msg_type"] == "stream":
                if message["content"]["name"] == "stderr":
                    told += message["content"]["text"]
                else:
                    said += message["content"]["text"]
        assert said == "last words\n"
        assert "SIGKILL" in told
        assert "host1" in told


async def test_a_connected_client_loses_nothing_at_a_restart(cluster: Cluster) -> None:
    """Jupyter removes the sockets of a kernel that it restarts; who is connected stays so, who comes later finds them."""
    async with running(write_spec()) as (manager, client):
        for number in range(3):
            await manager.restart_kernel(now=number % 2 == 0)
            request = client.execute(f"print('first of {number}')")
            assert text(await gather(client, request)) == f"first of {number}\n"
            another = manager.client()
            another.session.session = f"another-{number}"
            another.start_channels()
            await another.wait_for_ready(timeout=20)
            another.stop_channels()


@needs_encryption
async def test_an_encrypted_kernel_takes_the_forwards(cluster: Cluster) -> None:
    """Nobody on the way can read it, so nobody can keep it."""
    spec = write_spec(metadata={"supported_encryption": ["curve"]}, kernel_transport="tcp")
    async with running(spec, encryption="required") as (manager, client):
        assert relay_of(manager) == ""
        assert await run(client, "print(1)") == "1"


async def test_a_loop_that_prints_faster_than_the_relay_reads_loses_no_line(cluster: Cluster) -> None:
    """If it fails: ZMQ's high-water mark in the kernel drops lines before anybody could keep them, and nobody is told."""
    async with running(write_spec()) as (manager, client):
        host, home = cluster["host1"], relay_of(manager).rpartition("/")[0]
        relay = str(json.loads(host.run("cat", f"{home}/record").stdout)["relay_pid"])
        code = f"for number in range(20_000): print(number, flush=True)\nopen(f'{home}/printed', 'w').close()"
        cell = asyncio.ensure_future(run(client, code, timeout=60))
        await asyncio.sleep(0.2)
        host.run("kill", "-STOP", relay)
        try:
            await asyncio.to_thread(until_file, host, f"{home}/printed")
        finally:
            host.run("kill", "-CONT", relay)
        assert [int(line) for line in (await cell).split()] == list(range(20_000))


def until_file(host: Host, name: str) -> None:
    host.run(
        "sh", "-c", f"for _ in $(seq 200); do test -e {name} && rm {name} && exit; sleep 0.1; done; exit 1"
    )
