"""A host is connected to once, shared by all, and kernels on it are reached through that one connection."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from distributed_provisioner.errors import (
    HostUnreachableError,
    InterpreterNotFoundError,
    LaunchError,
    ProtocolError,
    TooLargeError,
)
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh import Attachment, Connections, HostConnection, KernelEvent, Welcome

from .conftest import Get, Run
from .kernels import client_of, closing, forget, launch_params, process_of, value_of

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster, Host


@pytest.fixture
def prefix() -> Iterator[str]:
    """A short private place for near ends."""
    with tempfile.TemporaryDirectory(prefix="dp-") as directory:
        yield f"{directory}/k"


@pytest.mark.cluster
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_kernel_is_launched_and_executes_through_forwards(
    transport: str, cluster: Cluster, run: Run, get: Get, prefix: str
) -> None:
    """The first thing that a user does."""
    connection = get("host1")
    params = launch_params(transport=transport)
    events: list[KernelEvent] = []

    async def launch() -> tuple[Welcome, object]:
        welcome = await connection.connect()
        connection.watch(params["kernel_id"], 1, events.append)
        reply = await connection.request("launch", timeout=50, **params)
        return welcome, await connection.attach(process_of(connection.address, params, reply), prefix)

    welcome, attachment = run(launch())
    assert (welcome.user, welcome.hostname) == (cluster.user, "host1")
    assert {"ipc", "tcp", "direct"} == connection.supports
    assert oct(os.stat(f"{prefix}-1").st_mode & 0o777) == "0o600"
    try:
        with closing(client_of(attachment, params["key"])) as client:  # type: ignore[arg-type]
            client.wait_for_ready(30)
            assert value_of(client, "6 * 7") == "42"
            assert value_of(client, "__import__('socket').gethostname()") == "'host1'"
            big = value_of(client, "len('x' * 20_000_000)")
            assert big == "20000000"
            run(
                connection.request(
                    "signal", timeout=5, kernel_id=params["kernel_id"], generation=1, signal=9, target="tree"
                )
            )
            assert _soon(lambda: [event.kind for event in events] == ["exited"])
            assert events[0].reason is not None
            assert events[0].reason.code == -9
    finally:
        run(forget(connection, params))
        run(attachment.close())  # type: ignore[attr-defined]
    assert not list(Path(prefix).parent.iterdir())


def test_this_machine_needs_no_sshd_and_its_kernels_sockets_are_used_as_they_are(run: Run, get: Get) -> None:
    """The default remote_hosts is localhost: it must just work."""
    connection = get("localhost")
    params = launch_params()

    async def launch() -> object:
        await connection.connect()
        reply = await connection.request("launch", timeout=50, **params)
        return await connection.attach(process_of(connection.address, params, reply), "/not/used")

    attachment = run(launch())
    try:
        assert connection.is_local
        assert (attachment.transport, Path(f"{attachment.ip}-1").exists()) == ("ipc", True)  # type: ignore[attr-defined]
        with closing(client_of(attachment, params["key"])) as client:  # type: ignore[arg-type]
            client.wait_for_ready(30)
            assert value_of(client, "1 + 1") == "2"
    finally:
        run(forget(connection, params))


def test_the_same_host_user_and_login_share_one_connection_and_one_attempt(run: Run, get: Get) -> None:
    """A burst of launches must not be a burst of logins."""

    async def many() -> set[int]:
        found = [Connections.current().get(HostAddress.parse("localhost"), Login()) for _ in range(5)]
        welcomes = await asyncio.gather(*(connection.connect() for connection in found))
        assert len({welcome.pid for welcome in welcomes}) == 1
        return {id(connection) for connection in found}

    assert len(run(many())) == 1
    assert get("localhost") is not get("localhost", connect_timeout=3)


@pytest.mark.cluster
def test_one_ssh_connection_serves_many_at_once(cluster: Cluster, run: Run, get: Get) -> None:
    """sshd allows ten sessions a connection and drops bursts of connections: one of each is used, whatever happens."""
    connection = get("host2")
    before = cluster["host2"].sshd_log().count("Accepted publickey")

    async def many() -> None:
        await asyncio.gather(*(connection.connect() for _ in range(30)))
        await asyncio.gather(*(connection.request("ping", timeout=10) for _ in range(200)))

    run(many())
    assert cluster["host2"].sshd_log().count("Accepted publickey") == before + 1


@pytest.mark.cluster
def test_neither_the_key_nor_the_environment_of_a_kernel_is_logged(
    cluster: Cluster, run: Run, get: Get, caplog: pytest.LogCaptureFixture
) -> None:
    """Who reads the log must not be able to talk to kernels, or find a password that came with a request."""
    caplog.set_level("DEBUG")
    connection = get("host1")
    params = launch_params(request_env={"KERNEL_PASSWORD": "secret-4711"}, spec_env={"TOKEN": "secret-0815"})

    async def launch() -> None:
        await connection.connect()
        await connection.request("launch", timeout=50, **params)
        with pytest.raises(LaunchError) as refused:
            await connection.request("launch", timeout=50, **{**params, "generation": 0})
        caplog.handler.stream.write(str(refused.value) + repr(refused.value))

    run(launch())
    run(forget(connection, params))
    assert "[host=host1] connected as" in caplog.text
    for secret in (params["key"], "secret-4711", "secret-0815"):
        assert secret not in caplog.text


def test_the_io_loop_is_never_blocked(blockbuster: object, run: Run, get: Get, tmp_path: Path) -> None:
    """A slow disk must not stop the messages of all kernels."""
    (tmp_path / "spec").mkdir()
    (tmp_path / "spec" / "file").write_text("x" * 100_000)
    connection = get("localhost")

    async def use() -> None:
        await connection.connect()
        await connection.ship(str(tmp_path / "spec"))

    run(use())


@pytest.mark.cluster
def test_the_io_loop_is_never_blocked_by_ssh(
    cluster: Cluster, blockbuster: object, run: Run, get: Get, tmp_path: Path, prefix: str
) -> None:
    """Reading keys and configuration, names, shipping, sockets: all of it."""
    (tmp_path / "spec").mkdir()
    (tmp_path / "spec" / "file").write_text("x" * 400_000)
    connection = get("host1")
    params = launch_params()

    async def use() -> Attachment:
        await connection.connect()
        await connection.ship(str(tmp_path / "spec"))
        reply = await connection.request("launch", timeout=50, **params)
        return await connection.attach(process_of(connection.address, params, reply), prefix)

    attachment = run(use())
    run(attachment.close())
    run(forget(connection, params))


def test_cancelling_one_of_two_who_wait_does_not_disturb_the_other(run: Run, get: Get) -> None:
    """A user who cancels one start must not break the start of another kernel."""
    connection = get("localhost")

    async def two() -> None:
        first, second = (
            asyncio.ensure_future(connection.connect()),
            asyncio.ensure_future(connection.connect()),
        )
        await asyncio.sleep(0)
        first.cancel()
        await second

    run(two())
    assert connection.state == "connected"


def test_cancelling_the_only_one_who_waits_ends_the_attempt(run: Run, get: Get) -> None:
    """A launch that is cancelled leaves nothing, not even a login under way."""
    connection = get("localhost")

    async def one() -> None:
        task = asyncio.ensure_future(connection.connect())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.1)

    run(one())
    assert (connection.state, connection.error) == ("idle", None)
    run(connection.connect())


def test_a_process_that_ends_says_nothing_about_its_connections(isolated: Path) -> None:
    """`jupyter run` and consoles must not end with a warning of asyncio's."""
    code = """
import asyncio
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh import Connections

async def connect():
    await Connections.current().get(HostAddress("localhost"), Login()).connect()

asyncio.run(IOThread.current().run(connect()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="other platform: no fork")
def test_a_forked_child_has_connections_of_its_own_and_the_parents_goes_on(isolated: Path) -> None:
    """Two processes that write to one SSH connection would break it for both."""
    code = """
import asyncio, os, signal, sys
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh import Connections

async def connect(state):
    connection = Connections.current().get(HostAddress("localhost"), Login())
    assert connection.state == state, connection.state
    await connection.connect()
    await connection.request("ping", timeout=5)

asyncio.run(IOThread.current().run(connect("idle")))
child = os.fork()
signal.alarm(30)
asyncio.run(IOThread.current().run(connect("connected" if child else "idle")))
if child:
    assert os.waitpid(child, 0)[1] == 0
    asyncio.run(IOThread.current().run(connect("connected")))
"""
    # Python 3.12 and newer warn of any fork beside threads; whoever forks is told, and it is not we.
    argv = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_request_on_a_host_that_is_not_connected_fails_at_once(run: Run, get: Get) -> None:
    """Nothing of a kernel may block on a host that is away."""
    with pytest.raises(HostUnreachableError, match="localhost is not connected now"):
        run(get("localhost").request("ping"), timeout=1)


def test_what_the_listener_refuses_arrives_as_the_right_class(run: Run, get: Get) -> None:
    """The classes decide whether another host is tried."""
    connection = get("localhost")
    run(connection.connect())
    with pytest.raises(InterpreterNotFoundError) as missing:
        run(
            connection.request(
                "launch", timeout=20, **launch_params(argv=["/no/such/kernel", "{connection_file}"])
            )
        )
    assert "/no/such/kernel" in str(missing.value)
    with pytest.raises(LaunchError, match="there is no kernel"):
        run(connection.request("signal", kernel_id="nobody", generation=1, signal=2))
    with pytest.raises(ProtocolError):
        run(connection.request("no-such-op"))


def test_a_request_that_is_too_large_is_refused_before_it_is_sent(run: Run, get: Get) -> None:
    """The listener would drop the connection, and with it the launches of others."""
    just_below: dict[str, Any] = {"BIG": "x" * ((8 << 20) - 10_000)}
    connection = get("localhost")
    run(connection.connect())
    with pytest.raises(TooLargeError) as refused:
        run(
            connection.request(
                "launch", **launch_params(request_env={"BIG": "hush" * (9 << 18), "SMALL": "x"})
            )
        )
    assert str(refused.value) == (
        "the request 'launch' has 9 MB, at most 8 are taken; the environment variable BIG has 9 MB of it"
    )
    with pytest.raises(TooLargeError, match="argument 1 has 8 MB"):
        run(connection.request("launch", **launch_params(argv=["x", "y" * (8 << 20)])))
    with pytest.raises(LaunchError, match="there is no kernel"):
        run(connection.request("signal", kernel_id="x", generation=1, signal=2, **just_below))
    assert run(connection.request("ping", timeout=5)) == {}


def test_a_large_request_and_a_large_reply_pass_quickly(run: Run, get: Get) -> None:
    """Environments and logs may be large; cutting lines must not take quadratic time."""
    connection = get("localhost")

    async def ask() -> float:
        await connection.connect()
        start = asyncio.get_running_loop().time()
        with pytest.raises(LaunchError):
            await connection.request("signal", kernel_id="x" * (7 << 20), generation=1, signal=2, timeout=30)
        return asyncio.get_running_loop().time() - start

    assert run(ask()) < 8


def test_a_bridge_that_is_killed_is_started_again_and_watchers_are_told(run: Run, get: Get) -> None:
    """The child process on this machine may be killed by hand; kernels go on."""
    connection = get("localhost")
    params = launch_params()
    events: list[str] = []

    async def launch() -> None:
        await connection.connect()
        connection.watch(params["kernel_id"], 1, lambda event: events.append(event.kind))
        await connection.request("launch", timeout=50, **params)
        connection._lines.control._wire._transport.kill()  # type: ignore[union-attr]

    run(launch())
    assert _soon(lambda: events == ["lost", "regained"])
    assert connection.state == "connected"
    run(forget(connection, params))


@pytest.mark.cluster
def test_kernels_that_the_host_does_not_know_are_told_as_unknown(
    cluster: Cluster, run: Run, get: Get
) -> None:
    """After the listener's state was wiped, a kernel must not stay `busy` for ever."""
    connection = get("host2")
    events: list[str] = []

    async def lose() -> None:
        await connection.connect()
        connection.watch("never-launched", 1, lambda event: events.append(event.kind))
        connection._lines.transport.abort()  # type: ignore[union-attr]

    run(lose())
    assert _soon(lambda: events == ["lost", "unknown"])


@pytest.mark.cluster
def test_when_the_bridge_dies_the_ssh_connection_and_its_forwards_go_on(
    cluster: Cluster, run: Run, get: Get, prefix: str
) -> None:
    """A bridge that the host's out-of-memory killer takes must not cost a message of any kernel."""
    connection = get("host1")
    params = launch_params()

    async def launch() -> object:
        await connection.connect()
        connection.watch(params["kernel_id"], 1, lambda event: events.append(event.kind))
        reply = await connection.request("launch", timeout=50, **params)
        return await connection.attach(process_of(connection.address, params, reply), prefix)

    events: list[str] = []
    attachment = run(launch())
    transport = connection._lines.transport
    try:
        with closing(client_of(attachment, params["key"])) as client:  # type: ignore[arg-type]
            client.wait_for_ready(30)
            cluster["host1"].run("pkill", "-9", "-f", "bridge")
            assert _soon(lambda: events == ["lost", "regained"])
            assert connection._lines.transport is transport
            assert value_of(client, "2 + 2") == "4"
    finally:
        run(forget(connection, params))
        run(attachment.close())  # type: ignore[attr-defined]


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("options", "supported"),
    [
        ({"AllowStreamLocalForwarding": "no"}, {"tcp", "direct"}),
        ({"PermitOpen": "127.0.0.1:*"}, {"tcp", "direct"}),
    ],
)
def test_what_sshd_does_not_forward_is_known_after_connecting(
    options: dict[str, str], supported: set[str], host: Host, run: Run, get: Get
) -> None:
    """Where Unix sockets are forbidden, TCP must take over by itself."""
    host.configure_sshd(**options)
    connection = get(host.name)
    run(connection.connect())
    assert connection.supports == supported


@pytest.mark.cluster
@pytest.mark.parametrize(
    "options",
    [{"DisableForwarding": "yes"}, {"AllowTcpForwarding": "no"}, {"PermitOpen": "none"}],
)
def test_a_host_that_forwards_nothing_is_of_use_all_the_same(
    options: dict[str, str], host: Host, run: Run, get: Get
) -> None:
    """Messages of kernels with a relay go through the control channel there."""
    host.configure_sshd(**options)
    connection = get(host.name)
    run(connection.connect())
    assert connection.supports == {"direct"}


@pytest.mark.cluster
@pytest.mark.slow
def test_a_first_connection_is_quick(cluster: Cluster, run: Run, get: Get) -> None:
    """The check of what is forwarded must not cost what a log-in costs."""
    connection: HostConnection = get("host1", connect_timeout=9.5)
    run(connection.connect())
    run(connection.close())

    async def again() -> float:
        second = Connections.current().get(connection.address, Login(connect_timeout=9.0))
        start = asyncio.get_running_loop().time()
        await second.connect()
        return asyncio.get_running_loop().time() - start

    assert run(again()) < 1.5


def _soon(condition: object, seconds: float = 15) -> bool:
    import time

    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
