"""What becomes of kernels that run: interrupts, restarts, shutdowns, deaths, and hosts that cannot be reached for a while."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from tests.cluster.real_kernels import (
    host_of,
    kernels_on,
    provisioner_of,
    run,
    running,
    until,
    warm,
    write_spec,
)

from distributed_provisioner import errors
from distributed_provisioner.hosts import HostPool
from distributed_provisioner.local_endpoints import private_directory
from distributed_provisioner.models import HostAddress, KernelState
from distributed_provisioner.ssh import Connections

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone")]


def pid_of(manager: Any) -> int:
    process = provisioner_of(manager).kernel.process
    assert process is not None
    return process.kernel_pid


def files_of(kernel_id: str, host: Host) -> list[str]:
    return [name for name in host.files() if kernel_id in name]


def state_of(manager: Any) -> KernelState:
    return provisioner_of(manager).kernel.state


# --- interrupts -------------------------------------------------------------------------------------------------------------------


async def test_an_interrupt_ends_a_running_cell(cluster: Cluster) -> None:
    """If it fails: the stop button does nothing."""
    async with running(write_spec()) as (manager, client):
        cell = asyncio.ensure_future(run(client, "import time\nprint('go', flush=True)\ntime.sleep(60)"))
        await asyncio.sleep(0.3)
        await manager.interrupt_kernel()
        with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
            await asyncio.wait_for(cell, 5)
        assert await run(client, "print('still here')") == "still here"


@pytest.mark.parametrize("target", ["group", "kernel"])
async def test_an_interrupt_reaches_children_where_it_shall(cluster: Cluster, target: str) -> None:
    """If it fails: `!sleep 60` or a worker pool goes on after the stop button, or Spark's JVM is hit as well."""
    code = """
import subprocess
child = subprocess.Popen(["sleep", "61"])
try:
    child.wait()
except KeyboardInterrupt:
    import time; time.sleep(0.3)
    print("child ended:", child.poll() is not None)
"""
    async with running(write_spec(interrupt_target=target)) as (manager, client):
        cell = asyncio.ensure_future(run(client, code))
        await until(lambda: [p for p in cluster["host1"].processes() if p.command == "sleep 61"])
        await manager.interrupt_kernel()
        assert await asyncio.wait_for(cell, 5) == f"child ended: {target == 'group'}"


# --- restarts and shutdowns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("now", [True, False])
async def test_a_restart_keeps_host_and_endpoints_and_connected_clients_go_on(
    cluster: Cluster, now: bool
) -> None:
    """If it fails: after a restart the browser's tab says nothing any more, or the kernel is where its files are not."""
    async with running(write_spec(remote_hosts=["host1", "host2"])) as (manager, client):
        before, old_pid, host = manager.get_connection_info(), pid_of(manager), host_of(manager)
        generation = provisioner_of(manager).kernel.generation
        await run(client, "x = 1")
        await manager.restart_kernel(now=now)
        await client.wait_for_ready(timeout=20)
        assert await run(client, "print('x' in globals())") == "False"
        assert manager.get_connection_info() == before
        assert host_of(manager) == host
        assert pid_of(manager) != old_pid
        assert provisioner_of(manager).kernel.generation > generation
        assert len(kernels_on(cluster[host])) == 1
        assert HostPool.current().load(HostAddress(host)) == 1


async def test_a_restart_goes_elsewhere_when_its_host_is_gone(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """If it fails: a kernel cannot be had again for as long as its host is down, or two of it run once the host is back."""
    async with running(write_spec(remote_hosts=["host1", "host2"], connect_timeout=2)) as (manager, client):
        before = manager.get_connection_info()
        assert host_of(manager) == "host1"
        cluster["host1"].kill_sshd()
        try:
            await until(lambda: state_of(manager) is KernelState.UNREACHABLE)
            await asyncio.wait_for(manager.restart_kernel(now=True), 20)
            assert host_of(manager) == "host2"
            await client.wait_for_ready(timeout=20)
            assert manager.get_connection_info() == before
            assert "started on host2" in caplog.text
            assert kernels_on(cluster["host1"])
        finally:
            cluster["host1"].start_sshd()
        await until(lambda: not kernels_on(cluster["host1"]))
        assert kernels_on(cluster["host2"])


async def test_what_a_dead_kernel_left_is_removed_when_its_host_is_back_after_a_restart_elsewhere(
    cluster: Cluster,
) -> None:
    """If it fails: logs and directories of kernels that moved pile up on hosts that were away."""
    async with running(write_spec(remote_hosts=["host1", "host2"], connect_timeout=2)) as (manager, client):
        host, kernel_id = cluster["host1"], manager.kernel_id
        host.run("kill", "-9", str(pid_of(manager)))
        await until(lambda: state_of(manager) is KernelState.EXITED)
        assert files_of(kernel_id, host)
        host.kill_sshd()
        try:
            await asyncio.wait_for(manager.restart_kernel(now=True), 20)
            assert host_of(manager) == "host2"
        finally:
            host.start_sshd()
        await until(lambda: not files_of(kernel_id, host))
        assert await run(client, "print(1)") == "1"


@pytest.mark.parametrize("now", [True, False])
async def test_a_shutdown_leaves_nothing(cluster: Cluster, now: bool) -> None:
    """If it fails: hosts fill with what kernels have started."""
    manager = AsyncKernelManager(kernel_name=write_spec())
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=20)
    await run(
        client, "import subprocess; subprocess.Popen(['sleep', '62'], start_new_session=True)" if now else "1"
    )
    client.stop_channels()
    await manager.shutdown_kernel(now=now)
    assert not manager.has_kernel
    assert not kernels_on(cluster["host1"])
    assert not [p for p in cluster["host1"].processes() if p.command == "sleep 62"]
    assert not [f for f in cluster["host1"].files() if manager.kernel_id in f]
    assert not list(private_directory().iterdir())
    assert provisioner_of(manager).connection_info == {}


async def test_a_kernel_that_ignores_everything_is_killed_with_its_children(cluster: Cluster) -> None:
    """If it fails: a stuck kernel cannot be ended."""
    code = "import signal, subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code += "subprocess.Popen(['sh', '-c', 'trap \"\" TERM INT; sleep 63'])"
    manager = AsyncKernelManager(kernel_name=write_spec(), shutdown_wait_time=1)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=20)
    await run(client, code)
    process = next(p for p in cluster["host1"].processes() if "launch_ipykernel" in p.command)
    cluster["host1"].run("kill", "-STOP", str(process.pid))
    client.stop_channels()
    begun = time.monotonic()
    await asyncio.wait_for(manager.shutdown_kernel(), 15)
    assert time.monotonic() - begun < 3, "shutdown_wait_time is a second"
    assert not [
        p for p in cluster["host1"].processes() if "sleep 63" in p.command or "launch_ipykernel" in p.command
    ]


LAST_WORDS = """
import atexit
atexit.register(lambda: print("last words", "." * 3_000_000, "really", flush=True))
"""


@pytest.mark.parametrize("restart", [True, False])
async def test_what_a_kernel_says_at_its_end_reaches_who_still_listens(
    cluster: Cluster, restart: bool
) -> None:
    """If it fails: what an exit handler reports is cut off, where its host is far away and the end is seen before the words."""
    async with running(write_spec()) as (manager, client):
        await run(client, LAST_WORDS)
        cluster["host1"].delay(20)
        try:
            await (manager.restart_kernel() if restart else manager.shutdown_kernel())
            said = ""
            while not said.endswith("really\n"):
                message = await client.get_iopub_msg(timeout=10)
                said += message["content"].get("text", "")
        finally:
            cluster["host1"].delay(0)
        assert said.startswith("last words")


async def test_what_exit_handlers_do_is_done_before_the_next_kernel_starts(cluster: Cluster) -> None:
    """If it fails: a notebook that writes its state at exit, and reads it at its start, finds half of it."""
    code = """
import atexit, time
def end():
    time.sleep(0.7)
    open("/tmp/state", "w").write("complete")
atexit.register(end)
"""
    async with running(write_spec()) as (manager, client):
        await run(client, code)
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=20)
        assert await run(client, "print(open('/tmp/state').read())") == "complete"


async def test_the_end_that_was_asked_for_is_seen_when_it_comes(cluster: Cluster) -> None:
    """If it fails: each orderly restart takes a tenth of a second longer, until Jupyter asks again."""
    async with running(write_spec()) as (manager, _):
        await manager.request_shutdown()
        await asyncio.wait_for(manager.finish_shutdown(waittime=60, pollinterval=60), 10)
        assert not manager.has_kernel


def test_the_end_is_seen_in_synchronous_programs_too(cluster: Cluster) -> None:
    """If it fails: as above, for programs whose loop runs during calls only."""
    manager = KernelManager(kernel_name=write_spec())
    manager.start_kernel()
    manager.request_shutdown()
    begun = time.monotonic()
    manager.finish_shutdown(waittime=30, pollinterval=60)
    assert time.monotonic() - begun < 10
    assert not manager.has_kernel
    manager.cleanup_resources()


async def test_pending_kernels_restart_after_their_end(cluster: Cluster) -> None:
    """If it fails: a server that does not wait for its kernels cannot restart them, or has two of one id."""
    many = AsyncMultiKernelManager(use_pending_kernels=True)
    kernel_id = await many.start_kernel(kernel_name=write_spec())
    manager: Any = many.get_kernel(kernel_id)
    await manager.ready
    before = pid_of(manager)
    await many.restart_kernel(kernel_id)
    await manager.ready
    assert pid_of(manager) != before
    assert len(kernels_on(cluster["host1"])) == 1
    await many.shutdown_kernel(kernel_id)
    await manager.ready
    await many.shutdown_all()
    assert not kernels_on(cluster["host1"])


# --- deaths --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (
            "import os, time; os.write(2, b'last words'); time.sleep(0.3); os._exit(3)",
            3,
            "exited with status 3",
        ),
        ("import os; os.kill(os.getpid(), 9)", -9, "SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", -11, "SIGSEGV"),
    ],
)
async def test_a_death_is_told_at_once_with_its_reason(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, code: str, status: int, words: str
) -> None:
    """If it fails: a kernel that died is "busy", or nobody knows why it died."""
    async with running(write_spec()) as (manager, client):
        start = time.monotonic()
        client.execute(code)
        await until(lambda: state_of(manager) is KernelState.EXITED, 5)
        assert time.monotonic() - start < 2
        provisioner = provisioner_of(manager)
        assert await provisioner.poll() == status
        assert not await manager.is_alive()
        assert provisioner.exit_reason is not None
        assert words in str(provisioner.exit_reason)
        warnings = [
            r.getMessage()
            for r in caplog.records
            if r.levelname == "WARNING" and "host=host1] the kernel has ended" in r.getMessage()
        ]
        assert len(warnings) == 1
        assert words in warnings[0]
        assert f"[kernel={manager.kernel_id[:8]} host=host1]" in warnings[0]
        if status == 3:
            assert warnings[0].endswith("last words")
        assert HostPool.current().load(HostAddress("host1")) == 0


async def test_who_waits_for_a_kernel_learns_of_its_end(cluster: Cluster) -> None:
    """If it fails: `wait()` of a provisioner hangs, or answers while the kernel lives."""
    async with running(write_spec()) as (manager, client):
        waiting = asyncio.ensure_future(provisioner_of(manager).wait())
        given_up = asyncio.ensure_future(asyncio.wait_for(provisioner_of(manager).kernel.wait(), 0.1))
        with pytest.raises(asyncio.TimeoutError):
            await given_up
        assert not waiting.done()
        client.execute("import os; os._exit(5)")
        assert await asyncio.wait_for(waiting, 5) == 5


async def test_autorestart_works_and_keeps_working(cluster: Cluster) -> None:
    """If it fails: a kernel that ran out of memory is dead until somebody restarts it by hand."""
    manager = ioloop_manager(write_spec())
    await manager.start_kernel()
    restarts: list[float] = []
    manager.add_restart_callback(lambda: restarts.append(time.monotonic()), "restart")
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=20)
        before = manager.get_connection_info()
        for number in (1, 2):
            pid = pid_of(manager)
            client.execute("import os; os._exit(1)")
            await until(lambda number=number: len(restarts) == number)  # type: ignore[misc]
            await until(lambda pid=pid: state_of(manager) is KernelState.RUNNING and pid_of(manager) != pid)  # type: ignore[misc]
            await client.wait_for_ready(timeout=20)
            assert await run(client, "print(1)") == "1"
        assert manager.get_connection_info() == before
        assert len(kernels_on(cluster["host1"])) == 1
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


def ioloop_manager(spec: str) -> AsyncIOLoopKernelManager:
    manager = AsyncIOLoopKernelManager(kernel_name=spec)
    manager.config.KernelRestarter.time_to_dead = 0.3
    return manager


# --- hosts that cannot be reached -----------------------------------------------------------------------------------------------------


SILENCES: dict[str, tuple[Callable[[Host], None], Callable[[Host], None], float]] = {
    "killed sshd": (lambda host: host.kill_sshd(), lambda host: host.start_sshd(), 3),
    "cut": (lambda host: host.cut(), lambda host: host.heal(), 20),
    "blackhole": (lambda host: host.blackhole(), lambda host: host.heal(), 20),
    "paused sshd": (lambda host: host.pause_sshd(), lambda host: host.resume_sshd(), 20),
}


@pytest.mark.parametrize("silence", SILENCES)
async def test_a_partition_costs_no_kernel_no_variable_and_no_restart(cluster: Cluster, silence: str) -> None:
    """If it fails: a train through a tunnel costs a day's work."""
    away, back, notice = SILENCES[silence]
    host = cluster["host1"]
    manager = ioloop_manager(write_spec())
    await manager.start_kernel()
    restarts: list[str] = []
    for event in ("restart", "dead"):
        manager.add_restart_callback(lambda event=event: restarts.append(event), event)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=20)
        await run(client, "x = 42")
        pid = pid_of(manager)
        away(host)
        try:
            await until(lambda: state_of(manager) is KernelState.UNREACHABLE, notice)
            await asyncio.sleep(1)
            assert await manager.is_alive()
            with pytest.raises(
                errors.HostUnreachableError, match="Host host1 cannot be reached since"
            ) as caught:
                await manager.interrupt_kernel()
            assert caught.value.status_code == 503  # type: ignore[attr-defined]
        finally:
            back(host)
        await until(lambda: state_of(manager) is KernelState.RUNNING, 20)
        assert await run_patiently(client, "print(x)") == "42"
        cell = asyncio.ensure_future(run(client, "import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        await manager.interrupt_kernel()
        with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
            await asyncio.wait_for(cell, 5)
        assert pid_of(manager) == pid
        assert not restarts
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


async def run_patiently(client: AsyncKernelClient, code: str) -> str:
    """ZMQ connects again in its own time, and what was published before that is gone: ask until an answer comes."""
    for _ in range(10):
        with suppress(TimeoutError):
            return await run(client, code, timeout=2)
    raise AssertionError("no answer")


async def test_a_short_silence_is_not_even_noticed(cluster: Cluster) -> None:
    """If it fails: each hiccup of the network is in the log as a drama."""
    async with running(write_spec()) as (manager, client):
        cluster["host1"].blackhole()
        await asyncio.sleep(1)
        cluster["host1"].heal()
        assert await run(client, "print(1)") == "1"
        assert state_of(manager) is KernelState.RUNNING


async def test_a_shutdown_while_the_host_is_away_is_prompt_and_done_later(cluster: Cluster) -> None:
    """If it fails: the server hangs at its end, or a kernel that was shut down lives on."""
    manager = AsyncKernelManager(kernel_name=write_spec())
    await manager.start_kernel()
    cluster["host1"].kill_sshd()
    try:
        await until(lambda: state_of(manager) is KernelState.UNREACHABLE)
        start = time.monotonic()
        await manager.shutdown_kernel()
        assert time.monotonic() - start < 2
        assert kernels_on(cluster["host1"])
    finally:
        cluster["host1"].start_sshd()
    await until(lambda: not kernels_on(cluster["host1"]))
    assert HostPool.current().load(HostAddress("host1")) == 0


async def test_past_unreachable_timeout_the_kernel_is_told_dead_and_nothing_is_restarted(
    cluster: Cluster,
) -> None:
    """If it fails: an administrator's limit does nothing, or the user's state is thrown away for a new kernel."""
    manager = ioloop_manager(write_spec(unreachable_timeout=1.5))
    await manager.start_kernel()
    told: list[str] = []
    for event in ("restart", "dead"):
        manager.add_restart_callback(lambda event=event: told.append(event), event)
    cluster["host1"].kill_sshd()
    try:
        await until(lambda: told == ["dead"], 10)
        await until(lambda: state_of(manager) is KernelState.EXITED)
        assert not await manager.is_alive()
        await asyncio.sleep(1)
        assert told == ["dead"]
    finally:
        cluster["host1"].start_sshd()
    await until(lambda: not kernels_on(cluster["host1"]))
    await manager.shutdown_kernel(now=True)


async def test_a_crashed_host_is_told_as_dead_and_why(cluster: Cluster) -> None:
    """If it fails: a kernel is alive for ever on a host that was restarted."""
    host = cluster["host3"]
    manager = AsyncKernelManager(kernel_name=write_spec(remote_hosts=["host3"]))
    await manager.start_kernel()
    host.power_off()
    host.boot()
    await until(lambda: state_of(manager) is KernelState.EXITED, 40)
    reason = provisioner_of(manager).exit_reason
    assert reason is not None
    assert reason.reason == "host rebooted"
    await manager.shutdown_kernel(now=True)


async def test_a_kernel_is_found_again_by_another_provisioner(cluster: Cluster) -> None:
    """If it fails: nothing can keep kernels over a restart of the server."""
    manager = AsyncKernelManager(kernel_name=write_spec())
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=20)
    await run(client, "x = 43")
    client.stop_channels()
    info = json.loads(json.dumps(await provisioner_of(manager).get_provisioner_info()))
    other = AsyncKernelManager(kernel_name=manager.kernel_name)
    spec = other.kernel_spec
    assert spec is not None
    provisioner = type(provisioner_of(manager))(
        kernel_id=manager.kernel_id,
        kernel_spec=spec,
        parent=other,
        **spec.metadata["kernel_provisioner"]["config"],
    )
    await provisioner.load_provisioner_info(info)
    other.provisioner = provisioner
    other.load_connection_info(provisioner.connection_info)
    assert other.has_kernel
    client = other.client()
    client.start_channels()
    await client.wait_for_ready(timeout=20)
    assert await run(client, "print(x)") == "43"
    await until(lambda: state_of(other) is KernelState.RUNNING)
    client.stop_channels()
    await provisioner.kill()
    assert await provisioner.wait() is not None
    await provisioner.cleanup()
    await until(lambda: state_of(manager) is KernelState.EXITED)
    await manager.shutdown_kernel(now=True)
    assert Connections.current() is not None


async def test_a_shutdown_that_nobody_waits_for_does_not_end_the_next_kernel() -> None:
    """If it fails: a kernel that is started while the last one's words are still heard out disappears a moment later."""
    context = zmq.asyncio.Context()  # else the manager destroys its own when it is given up
    name = write_spec()
    await warm(name)  # the next one is there before all was heard
    manager = AsyncKernelManager(kernel_name=name, context=context)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=30)
    kernel = provisioner_of(manager).kernel
    ending = asyncio.ensure_future(manager.shutdown_kernel())
    await until(lambda: kernel.state is KernelState.EXITED)
    await asyncio.sleep(0.02)
    ending.cancel()
    with suppress(asyncio.CancelledError):
        await ending
    try:
        await manager.start_kernel()
        process = provisioner_of(manager).kernel.process
        await asyncio.sleep(2.5)
        assert await manager.is_alive()
        assert provisioner_of(manager).kernel.process == process
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        context.destroy(linger=0)
