"""Launching on real hosts: who can, where it goes, what arrives, and what is left when it fails."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbclient
import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from tests.cluster.real_kernels import (
    STAND_IN,
    host_of,
    kernels_on,
    needs_encryption,
    provisioner_of,
    run,
    running,
    until,
    write_spec,
)

from distributed_provisioner import errors
from distributed_provisioner.hosts import HostPool
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.local_endpoints import private_directory
from distributed_provisioner.models import HostAddress

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone")]
ALL = ["host1", "host2", "host3"]


def loads() -> dict[str, int]:
    pool = HostPool.current()
    return {host: pool.load(HostAddress(host)) for host in ALL if pool.load(HostAddress(host))}


# --- every kind of caller -------------------------------------------------------------------------------------------------------


async def test_a_kernel_runs_on_its_host_and_leaves_nothing(cluster: Cluster) -> None:
    """If it fails: nothing works."""
    spec = write_spec()
    async with running(spec) as (manager, client):
        assert await run(client, "import socket; print(socket.gethostname())") == "host1"
        provisioner = provisioner_of(manager)
        assert set(provisioner.launch_phases) == {"reserve", "connect", "ship", "start", "forward", "ready"}
        assert "running pid=" in repr(provisioner.kernel)
        assert loads() == {"host1": 1}
        await run(client, "import os; os.write(2, b'to the log')")
        assert "to the log" in await provisioner.kernel_log()
    assert loads() == {}
    assert not kernels_on(cluster["host1"])
    assert not list(private_directory().iterdir())


def test_a_synchronous_manager_whose_loop_stands_still(cluster: Cluster) -> None:
    """If it fails: jupyter console, jupyter run and scripts wait for 60 seconds and give up."""
    manager = KernelManager(kernel_name=write_spec())
    manager.start_kernel()
    try:
        client = manager.client()
        assert isinstance(client, BlockingKernelClient)
        client.start_channels()
        client.wait_for_ready(timeout=20)
        reply = client.execute_interactive("6 * 7", timeout=20, output_hook=lambda message: None)
        assert reply["content"]["status"] == "ok"
        assert manager.is_alive()
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=20)
        manager.interrupt_kernel()
        client.stop_channels()
    finally:
        manager.shutdown_kernel(now=True)
    assert not manager.is_alive()
    assert not kernels_on(cluster["host1"])


def test_nbclient_runs_a_notebook(cluster: Cluster) -> None:
    """If it fails: papermill, nbconvert and voila do not work."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import socket; socket.gethostname()")]
    )
    client: Any = nbclient.NotebookClient(notebook, kernel_name=write_spec(), timeout=30)
    client.execute(env={**os.environ, "MINE": "x"})
    assert notebook.cells[0].outputs[0]["data"]["text/plain"] == "'host1'"


async def test_a_multi_kernel_manager_goes_round(cluster: Cluster) -> None:
    """If it fails: Jupyter Server puts all kernels on one host."""
    spec, pinned = write_spec(remote_hosts=ALL), write_spec("pinned", remote_hosts=ALL)
    many = AsyncMultiKernelManager()
    try:
        ids = [await many.start_kernel(kernel_name=spec) for _ in range(2)]
        ids += [await many.start_kernel(kernel_name=pinned, env={"KERNEL_REMOTE_HOST": "host1"})]
        ids += [await many.start_kernel(kernel_name=spec) for _ in range(2)]
        kernels = [many.get_kernel(kernel_id) for kernel_id in ids]
        assert [host_of(kernel) for kernel in kernels] == ["host1", "host2", "host1", "host3", "host1"]
        assert loads() == {"host1": 3, "host2": 1, "host3": 1}
        infos = [kernel.get_connection_info() for kernel in kernels]
        assert len({info["key"] for info in infos}) == len({info["ip"] for info in infos}) == 5
        assert len({id(provisioner_of(kernel).connection_info) for kernel in kernels}) == 5
    finally:
        await many.shutdown_all(now=True)
    assert loads() == {}


def test_several_loops_and_threads_share_one_connection(cluster: Cluster) -> None:
    """If it fails: applications with a thread for each notebook break, or open a connection for each."""
    spec = write_spec()
    names: list[str] = []
    failures: list[BaseException] = []

    def work() -> None:
        async def once() -> str:
            async with running(spec) as (_, client):
                return await run(client, "import socket; print(socket.gethostname())")

        try:
            names.extend(asyncio.run(once()) for _ in range(2))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert names == ["host1"] * 6


def test_a_forked_child_launches_and_its_parent_goes_on(cluster: Cluster) -> None:
    """If it fails: multiprocessing and pre-forking servers break their parent's kernels."""
    spec = write_spec()

    async def launched() -> str:
        async with running(spec) as (_, client):
            return await run(client, "import socket; print(socket.gethostname())")

    manager = KernelManager(kernel_name=spec)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=20)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if asyncio.run(launched()) == "host1" and loads() == {} else 2
            IOThread.current().close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.execute_interactive("1", timeout=10, output_hook=print)["content"]["status"] == "ok"
    client.stop_channels()
    manager.shutdown_kernel(now=True)


async def test_thirty_at_once(cluster: Cluster) -> None:
    """If it fails: a class that opens its notebooks at nine o'clock gets errors."""
    spec = write_spec("quick", argv=[sys.executable, "-c", STAND_IN, "{connection_file}"], remote_hosts=ALL)
    many = AsyncMultiKernelManager()
    try:
        ids = await asyncio.gather(*(many.start_kernel(kernel_name=spec) for _ in range(30)))
        hosts = [host_of(many.get_kernel(kernel_id)) for kernel_id in ids]
        assert {host: hosts.count(host) for host in ALL} == {"host1": 10, "host2": 10, "host3": 10}
    finally:
        await many.shutdown_all(now=True)
    assert loads() == {}


# --- where it goes -----------------------------------------------------------------------------------------------------------------


async def test_least_connection_follows_deaths_and_failures(cluster: Cluster) -> None:
    """If it fails: hosts whose kernels died are avoided for ever, or failed launches count."""
    spec = write_spec(
        "quick", argv=[sys.executable, "-c", STAND_IN, "{connection_file}"], remote_hosts=ALL[:2]
    )
    broken = write_spec("broken", argv=["/does/not/exist"], remote_hosts=ALL[:2])
    many = AsyncMultiKernelManager()
    many.config.DistributedProvisioner.load_balancing_algorithm = "least-connection"
    try:
        first, second, third = [await many.start_kernel(kernel_name=spec) for _ in range(3)]
        assert [host_of(many.get_kernel(i)) for i in (first, second, third)] == ["host1", "host2", "host1"]
        with pytest.raises(errors.InterpreterNotFoundError):
            await many.start_kernel(kernel_name=broken)
        assert loads() == {"host1": 2, "host2": 1}
        many.get_kernel(first).stop_restarter()
        provisioner = provisioner_of(many.get_kernel(first))
        assert provisioner.kernel.process is not None
        cluster["host1"].run("kill", "-9", str(provisioner.kernel.process.pid))
        await until(lambda: loads() == {"host1": 1, "host2": 1})
        await many.restart_kernel(third)
        assert loads() == {"host1": 1, "host2": 1}
    finally:
        await many.shutdown_all(now=True)
    assert loads() == {}


async def test_an_unreachable_host_is_passed_over_and_used_again(cluster: Cluster) -> None:
    """If it fails: one host that is down breaks every n-th launch, or is lost for ever."""
    spec = write_spec(
        "quick", argv=[sys.executable, "-c", STAND_IN, "{connection_file}"], remote_hosts=["host2", "host3"]
    )
    cluster["host2"].kill_sshd()
    many = AsyncMultiKernelManager()
    try:
        first = await many.start_kernel(kernel_name=spec)
        assert host_of(many.get_kernel(first)) == "host3"
        assert HostPool.current().is_unwell(HostAddress("host2"))
        cluster["host2"].start_sshd()
        await until(lambda: not HostPool.current().is_unwell(HostAddress("host2")))
        second = await many.start_kernel(kernel_name=spec)
        assert host_of(many.get_kernel(second)) == "host2"
    finally:
        cluster["host2"].start_sshd()
        await many.shutdown_all(now=True)


async def test_when_no_host_is_left_the_error_lists_each_with_its_reason(cluster: Cluster) -> None:
    """If it fails: users see that it does not work, and not why."""
    spec = write_spec(remote_hosts=["host2", "no-such-host.invalid"])
    cluster["host2"].kill_sshd()
    try:
        manager = AsyncKernelManager(kernel_name=spec)
        with pytest.raises(errors.NoHostAvailableError) as caught:
            await manager.start_kernel()
    finally:
        cluster["host2"].start_sshd()
    assert set(caught.value.tried) == {"host2", "no-such-host.invalid"}
    lines = str(caught.value).splitlines()
    assert lines[0] == "None of the 2 hosts could take the kernel. Mend one of them and try again:"
    assert lines[1].startswith("  host2 cannot be reached: ")
    assert lines[2].startswith("  no-such-host.invalid cannot be reached: ")
    assert loads() == {}


async def test_a_line_that_broke_unnoticed_costs_no_launch(cluster: Cluster) -> None:
    """If it fails: after a night, the first launch on the only host fails, though the host is well."""
    spec = write_spec("quick", argv=[sys.executable, "-c", STAND_IN, "{connection_file}"])
    async with running_stand_in(spec):
        pass
    loop = IOThread.current().loop
    loop.call_soon_threadsafe(time.sleep, 1.5)  # what happens meanwhile is noticed late
    cluster["host1"].kill_sshd()
    cluster["host1"].start_sshd()
    async with running_stand_in(spec) as manager:
        assert host_of(manager) == "host1"


async def test_a_pinned_kernel_goes_nowhere_else(cluster: Cluster) -> None:
    """If it fails: a kernel that needs its host's data runs on another one."""
    spec = write_spec(remote_hosts=ALL)
    cluster["host2"].kill_sshd()
    try:
        with pytest.raises(errors.NoHostAvailableError) as caught:
            await AsyncKernelManager(kernel_name=spec).start_kernel(env={"KERNEL_REMOTE_HOST": "host2"})
    finally:
        cluster["host2"].start_sshd()
    assert list(caught.value.tried) == ["host2"]
    assert str(caught.value) == str(caught.value.tried["host2"])


# --- what arrives ------------------------------------------------------------------------------------------------------------------


HOSTILE = {
    "KERNEL_QUOTES": "'\"\\'\\\"",
    "KERNEL_SHELL": "; touch /tmp/hacked; $(touch /tmp/hacked) `touch /tmp/hacked` & | > <",
    "KERNEL_LINES": "one\ntwo\r\n\ttab\n",
    "KERNEL_UNICODE": "ünïcödé ☃ 🐍",
    "KERNEL_DOLLARS": "$5 $HOME ${HOME} %s {kernel_id}",
    "KERNEL_BYTES": os.fsdecode(b"\xff\xfe latin"),
    "KERNEL_EMPTY": "",
    "KERNEL_NO_TEMPLATE": "{connection_file}",
}
STANZA = {
    "STANZA_SHELL": "a'b\"c $(touch /tmp/hacked) `touch /tmp/hacked` $5 $PATH",
    "STANZA_LINES": "x\ny",
    "STANZA_EXPANDED": "${HOME}/x:${KERNEL_UNICODE}:${NOT_SET:-plan b}",
}


async def test_hostile_values_arrive_byte_for_byte_and_run_nothing(cluster: Cluster) -> None:
    """If it fails: a user's value runs commands on the host, or is garbled."""
    spec = write_spec(env=STANZA)
    show = "import os, json; print(json.dumps({k: os.fsencode(v).hex() for k, v in os.environ.items()}))"
    secret = {"JPY_PARENT_PID": "1", "GP_REMOTE_PWD": "hunter2"}
    async with running(spec, env={**os.environ, **HOSTILE, **secret, "OTHER": "yes"}) as (manager, client):
        got = {name: bytes.fromhex(value) for name, value in json.loads(await run(client, show)).items()}
        kernel_id = manager.kernel_id
    home = os.fsdecode(got["HOME"])
    expected = {
        **HOSTILE, "OTHER": "yes", "KERNEL_ID": kernel_id, "KERNEL_LANGUAGE": "python",
        **{name: STANZA[name] for name in ("STANZA_SHELL", "STANZA_LINES")},
        "STANZA_EXPANDED": f"{home}/x:{HOSTILE['KERNEL_UNICODE']}:plan b",
    }  # fmt: skip
    assert {name: got.get(name) for name in expected} == {n: os.fsencode(v) for n, v in expected.items()}
    assert not {"JPY_PARENT_PID", "GP_REMOTE_PWD", "PYTEST_CURRENT_TEST"} & set(got)
    assert not cluster["host1"].path("/tmp/hacked").exists()


async def test_hostile_argv_items_arrive_byte_for_byte(cluster: Cluster) -> None:
    """If it fails: an argv item is taken for a shell's."""
    items = ["a b", "'", '"', "$(touch /tmp/hacked)", "`id`", "x\ny", "☃", "", "--", "{unknown}", "\\"]
    argv = [sys.executable, "-c", "import sys; " + STAND_IN + "\n", "{connection_file}"]
    spec = write_spec("argv", argv=[*argv, *items])
    manager = AsyncKernelManager(kernel_name=spec)
    await manager.start_kernel(extra_arguments=["--extra"])
    try:
        (process,) = [p for p in cluster["host1"].processes() if "create_server" in p.command]
        assert process.args[-len(items) - 1 :] == [*items, "--extra"]
    finally:
        await manager.shutdown_kernel(now=True)
    assert not cluster["host1"].path("/tmp/hacked").exists()


async def test_working_directory(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """If it fails: relative paths of a notebook are wrong, or a directory that only the server has stops the launch."""
    spec = write_spec()
    async with running(spec, cwd="/only/here", env={"KERNEL_WORKING_DIR": "/usr"}) as (_, client):
        assert await run(client, "import os; print(os.getcwd())") == "/usr"
    caplog.set_level("INFO")
    async with running(spec, cwd="/only/here") as (_, client):
        assert await run(client, "import os; print(os.getcwd() == os.environ['HOME'])") == "True"
    assert "/only/here" in caplog.text


async def test_secrets_are_in_no_argv_and_no_log(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """If it fails: another user of a host, or a reader of logs, can run code in the kernel."""
    caplog.set_level("DEBUG")
    spec = write_spec()
    manager = AsyncKernelManager(kernel_name=spec)
    key = manager.session.key.decode()
    seen: list[str] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.02):
            seen.extend(process.command for process in cluster["host1"].processes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        await manager.start_kernel(env={"KERNEL_TOKEN": "hush-hush"})
    finally:
        over.set()
        thread.join()
        await manager.shutdown_kernel(now=True)
    assert seen
    assert not [command for command in seen if key in command or "hush-hush" in command]
    assert key not in caplog.text
    assert "hush-hush" not in caplog.text


# --- failures leave nothing --------------------------------------------------------------------------------------------------------


FAILURES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "interpreter": (
        {"argv": ["/no/such/python", "{connection_file}"]},
        errors.InterpreterNotFoundError,
        "The kernel's program is not on host1: ",
    ),
    "exits": (
        {"argv": [sys.executable, "-c", "import sys; print('boo'); sys.exit(3)", "{connection_file}"]},
        errors.LauncherExitedError,
        "The kernel did not start on host1: ",
    ),
    "slow": (
        {
            "argv": [
                sys.executable,
                "-c",
                "import time; print('zzz', flush=True); time.sleep(60)",
                "{connection_file}",
            ],
            "launch_timeout": 1,
        },
        errors.LaunchTimeoutError,
        "The kernel on host1 was not ready within 1 s and was ended. ",
    ),
}


@pytest.mark.parametrize("fault", FAILURES)
async def test_a_failed_launch_says_why_and_leaves_nothing(cluster: Cluster, fault: str) -> None:
    """If it fails: hosts fill with processes of launches that failed, and nobody knows why."""
    changes, kind, sentence = FAILURES[fault]
    spec = write_spec(fault, remote_hosts=["host1", "host2"], **changes)
    before = files(cluster)
    manager = AsyncKernelManager(kernel_name=spec)
    with pytest.raises(kind) as caught:
        await manager.start_kernel()
    assert str(caught.value).startswith(sentence)
    if fault != "interpreter":
        assert str(caught.value).endswith({"exits": "boo", "slow": "zzz"}[fault])
    assert not manager.has_kernel
    assert loads() == {}
    assert not list(private_directory().iterdir())
    assert not [p for p in cluster["host1"].processes() if "sleep(60)" in p.command]
    started = [p for p in cluster["host2"].processes() if sys.executable in p.command]  # not tried elsewhere
    assert not [p for p in started if "prefork_template" not in p.command]
    assert files(cluster) - before == set()


def files(cluster: Cluster) -> set[str]:
    """Files of kernels on host1, but for the listener's own."""
    return {
        name
        for name in cluster["host1"].files()
        if "/bundles/" not in name and "listener" not in name and "/cache" not in name
        if not name.endswith(("/lock", "/s"))
    }


async def test_a_cancelled_launch_leaves_nothing_at_each_await(cluster: Cluster) -> None:
    """If it fails: an impatient user leaves kernels that nobody knows of."""
    spec = write_spec("quick", argv=[sys.executable, "-c", STAND_IN, "{connection_file}"])
    async with running_stand_in(spec):
        pass  # connection and listener are there: what follows cuts in the launch itself
    before = files(cluster)
    completed = 0
    for step in range(40):
        manager = AsyncKernelManager(kernel_name=spec)
        task = asyncio.ensure_future(manager.start_kernel())
        await asyncio.sleep(0.004 * step)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if manager.has_kernel:  # it was past the launch: in what jupyter_client does after it
            await manager.shutdown_kernel(now=True)
            completed += 1
        if completed > 2:
            break
    await until(lambda: not [p for p in cluster["host1"].processes() if "create_server" in p.command])
    await until(lambda: loads() == {})
    await until(lambda: not list(private_directory().iterdir()))
    await until(lambda: files(cluster) - before == set())


@pytest.mark.slow
async def test_a_burst_has_its_turns_and_none_is_given_up_while_it_waits(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """If it fails: of many kernels at once the last ones time out before they have begun, and the log does not say what they wait for."""
    caplog.set_level("INFO")
    command = ["/bin/sh", "-c", 'sleep 3.5; exec "$@"', "sh"]
    argv = [*command, sys.executable, "-c", STAND_IN, "{connection_file}"]
    spec = write_spec("late", argv=argv, launch_timeout=4)
    cores = len(os.sched_getaffinity(0))
    managers = [AsyncKernelManager(kernel_name=spec) for _ in range(3 * (cores + 1))]
    began = time.monotonic()
    try:
        await asyncio.gather(*(manager.start_kernel() for manager in managers))
        # Longer than an answer is waited for otherwise: the time-out, and 5 s.
        assert time.monotonic() - began > 9
        assert "waits for its turn" in caplog.text
    finally:
        await asyncio.gather(
            *(manager.shutdown_kernel(now=True) for manager in managers if manager.has_kernel)
        )


async def test_a_launch_that_is_cancelled_before_there_is_a_connection_leaves_nothing(
    cluster: Cluster,
) -> None:
    """If it fails: as above, for the first launch on a host that is slow to answer."""
    spec = write_spec(remote_hosts=["host3"])
    cluster["host3"].pause_sshd()
    try:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(AsyncKernelManager(kernel_name=spec).start_kernel(), 0.5)
    finally:
        cluster["host3"].resume_sshd()
    await until(lambda: loads() == {})
    await until(lambda: not kernels_on(cluster["host3"]))


def running_stand_in(spec: str) -> Any:
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def both() -> Any:
        manager = AsyncKernelManager(kernel_name=spec)
        await manager.start_kernel()
        try:
            yield manager
        finally:
            await manager.shutdown_kernel(now=True)

    return both()


# --- transports --------------------------------------------------------------------------------------------------------------------


async def test_any_installed_kernel_runs_without_a_launcher(cluster: Cluster) -> None:
    """If it fails: only our own launchers can be used."""
    spec = write_spec("plain", argv=["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    async with running(spec) as (manager, client):
        assert await run(client, "import socket; print(socket.gethostname())") == "host1"
        assert manager.get_connection_info()["transport"] == "ipc"


async def test_a_tcp_kernel_keeps_to_the_port_range(cluster: Cluster) -> None:
    """If it fails: a site's firewall rules do not fit its kernels."""
    spec = write_spec(kernel_transport="tcp", port_range="40000..41000")
    async with running(spec) as (manager, client):
        assert await run(client, "print(1)") == "1"
        process = provisioner_of(manager).kernel.process
        assert process is not None
        assert process.kernel_transport == "tcp"
        assert all(40000 <= port <= 41000 for port in process.ports.values())


@needs_encryption
@pytest.mark.parametrize("kernel_transport", ["tcp", "ipc"])
async def test_encryption_that_is_asked_for_is_there(cluster: Cluster, kernel_transport: str) -> None:
    """If it fails: another user of the host reads the messages of a kernel on TCP."""
    spec = write_spec(kernel_transport=kernel_transport, metadata={"supported_encryption": ["curve"]})
    manager = AsyncKernelManager(kernel_name=spec, transport_encryption="required")
    await manager.start_kernel()
    try:
        info = manager.get_connection_info()
        assert len(info["curve_publickey"]) == 40
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=20)
        assert await run(client, "print(1)") == "1"
        await manager.restart_kernel(now=True)
        assert manager.get_connection_info() == info
        await client.wait_for_ready(timeout=20)
        client.stop_channels()
    finally:
        await manager.shutdown_kernel(now=True)


@needs_encryption
async def test_the_direct_transport_is_encrypted_and_inside_the_range(cluster: Cluster) -> None:
    """If it fails: clusters that want no forwarding cannot be served, or are served in plain text."""
    spec = write_spec(
        transport="direct",
        port_range="40000..41000",
        metadata={"supported_encryption": ["curve"]},
        remote_hosts=["host1"],
    )
    async with running(spec) as (manager, client):
        info = manager.get_connection_info()
        assert (info["transport"], info["ip"]) == ("tcp", cluster["host1"].address)
        assert 40000 <= info["shell_port"] <= 41000
        assert info["curve_publickey"]
        assert await run(client, "print(1)") == "1"


@needs_encryption
async def test_an_encrypted_kernel_without_unix_sockets_falls_to_tcp(cluster: Cluster) -> None:
    """If it fails: a host whose sshd forbids Unix-socket forwarding cannot be used for kernels that take no relay."""
    # An entry that no other test has a connection for.
    spec = write_spec(remote_hosts=["jovyan@host2:22"], metadata={"supported_encryption": ["curve"]})
    cluster["host2"].configure_sshd(AllowStreamLocalForwarding="no")
    try:
        async with running(spec, encryption="required") as (manager, client):
            assert await run(client, "print(1)") == "1"
            process = provisioner_of(manager).kernel.process
            assert process is not None
            assert process.kernel_transport == "tcp"
    finally:
        cluster["host2"].configure_sshd(AllowStreamLocalForwarding=None)


async def test_localhost_needs_no_sshd(isolated: Path) -> None:
    """If it fails: the default configuration does not work."""
    spec = write_spec(remote_hosts=["localhost"])
    async with running(spec) as (manager, client):
        assert await run(client, "import socket; print(socket.gethostname())") == socket.gethostname()
        before = manager.get_connection_info()
        await manager.restart_kernel(now=True)
        await client.wait_for_ready(timeout=20)
        assert manager.get_connection_info() == before
