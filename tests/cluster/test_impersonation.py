"""Kernels of the notebooks' users: by sudo as whom KERNEL_USERNAME names, or by logging in as that user."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from tests.cluster.accounts import (
    ALICE,
    BOB,
    BRIDGE,
    PEOPLE,
    SUDOERS,
    allow,
    kernels_of,
    listeners_of,
    people,
    write_rule,
)
from tests.cluster.real_kernels import needs_encryption, provisioner_of, run, running, until, write_spec
from tests.cluster.test_other_users import TRY

from distributed_provisioner.errors import ConfigurationError, NotAuthorizedError, ProvisionerError
from distributed_provisioner.hosts import HostPool
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import HostAddress, KernelState
from distributed_provisioner.operating.output import RelayStream
from distributed_provisioner.provisioner import DistributedProvisioner
from distributed_provisioner.ssh import Connections
from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone", "allowed")]

ROOT = str(Path(__file__).parents[2])
HOSTS = ["host1", "host2", "host3"]
WHO = "import getpass, os; print(getpass.getuser(), os.path.expanduser('~'), os.getuid())"


@pytest.fixture(scope="module")
def accounts(cluster: Cluster) -> Iterator[None]:
    with people(cluster):
        yield


@pytest.fixture
def allowed(accounts: None, cluster: Cluster) -> Iterator[None]:
    """The documented rule holds at first; afterwards nothing of a kernel of these people is on any host."""
    allow(cluster, ALICE, BOB)

    def files() -> set[tuple[str, str]]:
        return {
            (host.name, path)
            for host in cluster.hosts
            for path in host.files("/tmp")
            if re.search(r"/dp-\w+/\d+/", path)
        }

    before = files()  # of kernels whose servers other tests have killed: kept until one comes for them
    yield
    IOThread.current().submit(Connections.current().close()).result(10)

    def left() -> list[str]:
        return [
            f"{host.name}: {process.user} {process.command[:200]}"
            for host in cluster.hosts
            for person in PEOPLE
            for process in kernels_of(host, person.name)
        ] + [f"{name}: {path}" for name, path in files() - before]

    for _ in range(100):
        if not left():
            return
        asyncio.run(asyncio.sleep(0.05))
    pytest.fail(f"left behind: {left()}")


def spec(name: str = "impersonated", **changes: Any) -> str:
    return write_spec(name, **{"impersonation_enabled": True, **changes})


def as_user(user: str, **more: str) -> dict[str, Any]:
    return {"env": {"KERNEL_USERNAME": user, **more}}


@asynccontextmanager
async def running_as(
    user: str, name: str | None = None, **more: str
) -> AsyncIterator[tuple[AsyncKernelManager, AsyncKernelClient]]:
    async with running(name or spec(), **as_user(user, **more)) as pair:
        yield pair


async def refused(name: str, *, env: dict[str, str]) -> ProvisionerError:
    """The error of a launch that fails."""
    manager = AsyncKernelManager(kernel_name=name)
    with pytest.raises(ProvisionerError) as caught:
        await manager.start_kernel(env=env)
    return caught.value


# --- a kernel is its user's ------------------------------------------------------------------------------------------------------------


async def test_a_kernel_is_the_users_own(cluster: Cluster) -> None:
    """If it fails: a notebook's files, processes and log are the service account's, or somebody else's."""
    host = cluster["host1"]
    closed = as_user(ALICE, KERNEL_WORKING_DIR="/home/dp-bob")
    async with running(spec(), **closed, cwd="/home/dp-bob") as (manager, client):
        assert await run(client, WHO) == f"{ALICE} /home/dp-alice 7811"
        assert await run(client, "print(os.getcwd(), os.environ['USER'], os.environ['KERNEL_USERNAME'])") == (
            f"/home/dp-alice {ALICE} {ALICE}"
        )
        assert await run(client, "print([n for n in os.environ if n.startswith(('SUDO_', 'SSH_'))])") == "[]"
        await run(client, "open('mine', 'w').close()")
        process = provisioner_of(manager).kernel.process
        assert process is not None
        log = str(process.details["log"])
        assert log.startswith("/home/dp-alice/")
        for path in ("/home/dp-alice/mine", log):
            assert host.path(path).stat().st_uid == 7811
        assert host.path(log).stat().st_mode & 0o777 == 0o600
        assert len(listeners_of(host, ALICE)) == 1
        assert not [p for p in kernels_of(host, cluster.user) if "launch_ipykernel" in p.command]
    await until(lambda: not kernels_of(host, ALICE))
    assert not host.path(log).exists()


async def test_it_is_interrupted_restarted_and_shut_down(cluster: Cluster) -> None:
    """If it fails: signals do not reach the other user's process, or a restart is another user's kernel."""
    host = cluster["host1"]
    async with running_as(ALICE) as (manager, client):
        message = client.execute("import time\nx = 1\ntime.sleep(60)")
        await asyncio.sleep(0.5)
        await manager.interrupt_kernel()
        reply = await _reply(client, message)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        message = client.execute("while True: pass")
        await asyncio.sleep(0.5)
        await manager.interrupt_kernel()
        assert (await _reply(client, message))["content"]["ename"] == "KeyboardInterrupt"
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=30)
        assert (await run(client, f"{WHO}; print('x' in globals())")).split("\n")[:2] == [
            f"{ALICE} /home/dp-alice 7811",
            "False",
        ]
        assert len(listeners_of(host, ALICE)) == 1
        await manager.shutdown_kernel()
        await until(lambda: not kernels_of(host, ALICE))


async def _reply(client: AsyncKernelClient, message: str) -> dict[str, Any]:
    while True:
        reply: dict[str, Any] = await client.get_shell_msg(timeout=20)
        if reply["parent_header"].get("msg_id") == message:
            return reply


async def test_its_death_is_told(cluster: Cluster) -> None:
    """If it fails: the notebook of a killed kernel waits for ever."""
    async with running_as(ALICE) as (manager, client):
        pid = int(await run(client, "import os; print(os.getpid())"))
        cluster["host1"].run("kill", "-KILL", str(pid), user=ALICE)
        kernel = provisioner_of(manager).kernel
        await until(lambda: kernel.state is KernelState.EXITED, 5)
        assert str(kernel.exit_reason) == "killed by SIGKILL"


async def test_a_cut_line_costs_nothing(cluster: Cluster) -> None:
    """If it fails: with impersonation a kernel ends with its line, or loses what it prints meanwhile."""
    host = cluster["host1"]
    async with running_as(ALICE) as (manager, client):
        pid = await run(client, "import os, time; print(os.getpid())")
        running_cell = asyncio.ensure_future(run(client, "for i in range(40): print(i); time.sleep(0.1)", 60))
        await asyncio.sleep(0.5)
        host.cut()
        try:
            await asyncio.sleep(2)
            for process in host._all_processes():  # the line is gone for good, not only silent
                if process.is_sshd and not process.is_sshd_listener:
                    os.kill(process.outer_pid, signal.SIGKILL)
        finally:
            host.heal()
        assert (await running_cell).split() == [str(i) for i in range(40)]
        assert await run(client, "print(os.getpid())") == pid
        assert provisioner_of(manager).kernel.state is KernelState.RUNNING


async def test_a_flood_gets_through(cluster: Cluster) -> None:
    """If it fails: large outputs, which share the control channel, are cut or hold up an interrupt."""
    async with running_as(ALICE) as (manager, client):
        text = await run(client, "for i in range(200): print(str(i) * 50000)", 60)
        assert len(text) == sum(len(str(i)) * 50000 + 1 for i in range(200)) - 1
        message = client.execute("while True: print('x' * 10000)")
        await asyncio.sleep(1)
        await manager.interrupt_kernel()
        assert (await _reply(client, message))["content"]["ename"] == "KeyboardInterrupt"


@needs_encryption
async def test_encrypted_and_direct_kernels_work_too(cluster: Cluster) -> None:
    """If it fails: a kernel whose messages no relay can carry is out of reach once it is another user's."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    curve = {"supported_encryption": ["curve"]}
    ranges = {"port_range": "40000..41500"}
    ways: tuple[dict[str, Any], ...] = (
        {"metadata": curve, "kernel_transport": "tcp"},
        {"metadata": curve},
        {"kernel_transport": "tcp"},
        {"metadata": curve, "transport": "direct", **ranges},
        {"transport": "direct", "allow_plain_text": True, **ranges},
    )
    for number, changes in enumerate(ways):
        async with running_as(ALICE, spec(f"way{number}", argv=argv, **changes)) as (manager, client):
            assert await run(client, WHO) == f"{ALICE} /home/dp-alice 7811", changes
            await manager.restart_kernel()
            await client.wait_for_ready(timeout=30)
            assert await run(client, "print(1)") == "1"


@needs_encryption
async def test_required_encryption_finds_a_way_or_says_which(cluster: Cluster) -> None:
    """If it fails: a kernel that must encrypt hangs, since its Unix sockets are another user's."""
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    name = spec("required", argv=argv, metadata={"supported_encryption": ["curve"]})
    manager = AsyncKernelManager(kernel_name=name, transport_encryption="required")
    await manager.start_kernel(**as_user(ALICE))
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=30)
    assert await run(client, WHO) == f"{ALICE} /home/dp-alice 7811"
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    host = cluster["host1"]
    host.configure_sshd(AllowTcpForwarding="no")
    try:
        IOThread.current().submit(Connections.current().close()).result(10)
        manager = AsyncKernelManager(kernel_name=name, transport_encryption="required")
        with pytest.raises(ProvisionerError, match=r"host1 forbids the forwarding.*AllowTcpForwarding"):
            await manager.start_kernel(**as_user(ALICE))
        async with running_as(ALICE) as (_, client):  # the relay needs no forwarding
            assert await run(client, "print(1)") == "1"
    finally:
        host.configure_sshd(AllowTcpForwarding=None)


# --- and nobody else's -----------------------------------------------------------------------------------------------------------------


async def test_two_users_have_a_listener_each_and_do_not_reach_each_other(cluster: Cluster) -> None:
    """If it fails: a gateway's users share processes, or one of them is let into another's kernel."""
    host = cluster["host1"]
    async with running_as(ALICE) as (hers, at_hers), running_as(BOB) as (his, at_his):
        assert await run(at_hers, WHO) == f"{ALICE} /home/dp-alice 7811"
        assert await run(at_his, WHO) == f"{BOB} /home/dp-bob 7812"
        assert [len(listeners_of(host, name)) for name in (ALICE, BOB)] == [1, 1]
        process = provisioner_of(hers).kernel.process
        assert process is not None
        login = provisioner_of(his).kernel.login
        assert login.run_as == BOB
        connection = Connections.current().get(HostAddress("host1"), login)
        names: dict[str, Any] = {"kernel_id": hers.kernel_id, "generation": process.generation}

        async def ask(work: Any) -> None:
            with pytest.raises(ProvisionerError):
                await IOThread.current().run(work)

        await ask(connection.open_relay(hers.kernel_id, process.generation, RelayStream()))
        await ask(connection.request("signal", timeout=5, signal=9, target="group", **names))
        await ask(connection.request("end", timeout=5, grace=0, **names))
        await ask(connection.request("log", timeout=5, limit=100, **names))
        reply = await IOThread.current().run(connection.request("list", timeout=5))
        assert [status["kernel_id"] for status in reply["kernels"]] == [his.kernel_id]
        assert await run(at_hers, "print('alive')") == "alive"


@pytest.mark.parametrize("intruder", ["jovyan", "mallory", BOB])
async def test_who_logs_in_and_other_users_cannot_enter_a_kernel(cluster: Cluster, intruder: str) -> None:
    """If it fails: a kernel's sockets, keys or log are open to the service account, or to another user of the host."""
    async with running_as(ALICE) as (manager, client):
        process = provisioner_of(manager).kernel.process
        assert process is not None
        directory, log = process.ip.rpartition("/")[0], str(process.details["log"])
        arguments = (sys.executable, "-c", TRY, str(process.pid), directory, log)
        assert cluster["host1"].run(*arguments, user=intruder).stdout.strip() == "[]"
        assert await run(client, "print('alive')") == "alive"


async def test_sshd_forwards_nobody_into_a_kernel(cluster: Cluster) -> None:
    """If it fails: whoever has the service account's key connects to a kernel by `ssh -L`."""
    async with running_as(ALICE) as (manager, _), running(write_spec("own")) as (own, _):
        options: dict[str, Any] = {"config": [str(cluster.home / ".ssh/config")]}
        options["known_hosts"] = str(cluster.home / ".ssh/known_hosts")
        reached = []
        async with asyncssh.connect("host1", **options) as connection:
            for kernel in (manager, own):
                process = provisioner_of(kernel).kernel.process
                assert process is not None
                for path in (f"{process.ip}-1", process.relay):
                    try:
                        _, writer = await connection.open_unix_connection(path)
                    except asyncssh.ChannelOpenError:
                        reached.append(False)
                    else:
                        reached.append(True)
                        writer.close()
        assert reached == [False, False, True, True], "the last two show that the question is a real one"


# --- what is refused -------------------------------------------------------------------------------------------------------------------


def the_rule(message: str) -> str:
    """What the message says is to be added: its last line, after `: `."""
    match = re.search(rf"Add this line to {SUDOERS} there \(visudo -f {SUDOERS}\): (.+)$", message)
    assert match, message
    return match[1]


async def test_a_missing_rule_is_told_and_suffices(cluster: Cluster) -> None:
    """If it fails: an administrator has to find out by trial what sudo has to be told, and tells it too much."""
    host = cluster["host1"]
    for user in (ALICE, BOB):
        write_rule(host, "")
        error = await refused(spec(), **as_user(user))
        assert (
            f"host1 runs no kernels as {user}: sudo does not let jovyan start /usr/bin/python3 as {user}"
            in str(error)
        )
        assert "sudo: a password is required" in str(error)
        assert str(error).count(".") < 12
        rule = the_rule(str(error))
        assert rule == f"jovyan ALL=({user}) NOPASSWD: /usr/bin/python3"
        write_rule(host, rule)
        async with running_as(user) as (_, client):
            assert (await run(client, WHO)).startswith(f"{user} ")
        IOThread.current().submit(Connections.current().close()).result(10)
    # It is the least: neither another user nor another program.
    for program, user in (("/bin/true", BOB), ("/usr/bin/python3", ALICE), ("/usr/bin/python3", "root")):
        assert host.run("sudo", "-n", "-u", user, "--", program, "-V", check=False).returncode


async def test_one_users_missing_rule_is_not_the_hosts_fault(cluster: Cluster) -> None:
    """If it fails: a user without a rule takes hosts out of the others' rotation."""
    allow(cluster, ALICE)
    name = spec(remote_hosts=HOSTS)
    for _ in range(4):
        error = await refused(name, **as_user(BOB))
    assert all(f"runs no kernels as {BOB}" in str(error) and host in str(error) for host in HOSTS)
    assert not any(HostPool.current().is_unwell(HostAddress(host)) for host in HOSTS)
    async with running_as(ALICE, name) as (_, client):
        assert await run(client, "print(1)") == "1"


async def test_a_group_of_users_is_one_rule(cluster: Cluster) -> None:
    """If it fails: what the documentation says of groups does not work."""
    host = cluster["host1"]
    group = host.path("/etc/group")
    before = group.read_text()
    group.write_text(f"{before}notebook-users:x:7899:{ALICE}\n")
    try:
        write_rule(host, "jovyan ALL=(%notebook-users) NOPASSWD: /usr/bin/python3")
        async with running_as(ALICE) as (_, client):
            assert (await run(client, WHO)).startswith(f"{ALICE} ")
        assert f"runs no kernels as {BOB}" in str(await refused(spec(), **as_user(BOB)))
    finally:
        group.write_text(before)


async def test_sudo_that_wants_a_terminal(cluster: Cluster) -> None:
    """If it fails: `requiretty`, as some systems have it, ends in a puzzle; or `use_pty` mangles what passes."""
    host = cluster["host1"]
    rule = "jovyan ALL=(alice) NOPASSWD: /usr/bin/python3"
    write_rule(host, f"Defaults requiretty\n{rule}")
    error = await refused(spec(), **as_user(ALICE))
    assert "its sudo wants a terminal" in str(error)
    assert the_rule(str(error)) == "Defaults:jovyan !requiretty"
    write_rule(
        host, f"Defaults requiretty\n{rule}\n{the_rule(str(error))}\nDefaults use_pty, log_output, !env_reset"
    )
    async with running_as(ALICE) as (_, client):
        assert await run(client, WHO) == f"{ALICE} /home/dp-alice 7811"
        assert await run(client, "print([n for n in os.environ if n.startswith(('SUDO_', 'SSH_'))])") == "[]"


async def test_who_is_not_there(cluster: Cluster) -> None:
    """If it fails: a user without an account, or a host without sudo, is told to write a rule."""
    error = await refused(spec(), **as_user("carol"))
    assert "host1 runs no kernels as carol: it has no such user. Create the account there" in str(error)
    sudo = cluster["host1"].path("/usr/bin/sudo")
    sudo.rename(sudo.with_name("sudo.away"))
    try:
        error = await refused(spec(), **as_user(ALICE))
        assert "host1 runs no kernels as alice: it has no sudo for jovyan. Install sudo there" in str(error)
    finally:
        sudo.with_name("sudo.away").rename(sudo)


async def test_another_name_of_an_account_is_refused(cluster: Cluster) -> None:
    """If it fails: who is in unauthorized_users gets in by another name of the same account (a second one for its uid, other capitals)."""
    host = cluster["host1"]
    passwd = host.path("/etc/passwd")
    before = passwd.read_text()
    passwd.write_text(f"{before}alias:x:7811:7811::/home/dp-alice:/bin/bash\ntoor:x:0:0::/root:/bin/sh\n")
    try:
        write_rule(host, "jovyan ALL=(ALL) NOPASSWD: /usr/bin/python3")
        for name, account in (("alias", ALICE), ("toor", "root")):
            error = await refused(spec(), **as_user(name))
            assert f"runs no kernels as {name}: the account is called {account} there." in str(error)
    finally:
        passwd.write_text(before)


async def test_accounts_without_a_home_or_a_shell(cluster: Cluster) -> None:
    """If it fails: a user whose home is missing, or who has no login shell, gets an error that nobody understands."""
    host = cluster["host1"]
    passwd = host.path("/etc/passwd")
    before = passwd.read_text()
    own = f"{ALICE}:x:7811:7811::/home/dp-alice:/bin/bash\n"
    assert own in before
    passwd.write_text(before.replace(own, f"{ALICE}:x:7811:7811::/nonexistent:/usr/sbin/nologin\n"))
    try:
        async with running_as(ALICE) as (_, client):
            assert await run(client, "import getpass; print(getpass.getuser())") == ALICE
    finally:
        passwd.write_text(before)


async def test_a_sudo_that_hangs_is_told_in_time(cluster: Cluster) -> None:
    """If it fails: where sudo waits for a directory service that is away, a launch hangs, or start-up files are blamed."""
    host = cluster["host1"]
    sudo = host.path("/usr/bin/sudo")
    away = sudo.with_name("sudo.away")
    sudo.rename(away)
    try:
        sudo.write_text("#!/bin/sh\nexec sleep 61\n")
        sudo.chmod(0o755)
        error = await refused(spec(connect_timeout=2), **as_user(ALICE))
        assert (
            "host1 runs no kernels as alice: it lets jovyan log in, but sudo has not started Python within 2 s"
            in str(error)
        )
    finally:
        sudo.unlink()
        away.rename(sudo)
        for process in host.processes(user=cluster.user):
            if "sleep 61" in process.command:
                os.kill(process.outer_pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "user", ["-u root", "-", "a;touch /tmp/pwned", "$(id)", "`id`", "a b", "a\nb", "#0", "0", "alice@x", "a/b", "..", "ä", "alice'"]
)  # fmt: skip
async def test_hostile_names_are_sent_nowhere(cluster: Cluster, user: str) -> None:
    """If it fails: a start request writes a command line on a host."""
    before = cluster["host1"].sshd_log()
    for name in (spec(), write_spec("named", remote_hosts=["{username}@host1"])):
        error = await refused(name, **as_user(user))
        assert isinstance(error, ConfigurationError)
        assert str(error).startswith("KERNEL_USERNAME is ")
        assert "cannot be a user's name on a host" in str(error)
    assert cluster["host1"].sshd_log() == before


async def test_a_launch_has_to_say_whom_it_is_for(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: a kernel whose request names nobody runs as the service account, who may become anybody."""
    for name, why in (
        (spec(), "impersonation_enabled is true"),
        (write_spec("entry", remote_hosts=["{username}@host1"]), "remote_hosts has {username}@host1"),
        (write_spec("login", remote_user="{username}"), "remote_user is {username}"),
    ):
        for said in ({}, {"KERNEL_USERNAME": ""}):
            error = await refused(name, env=dict(said))
            assert isinstance(error, ConfigurationError)
            assert str(error).startswith(
                f"{why}, and the start request does not say whom the kernel is for: set"
            )
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "root")
    assert isinstance(await refused(spec(), **as_user("root")), NotAuthorizedError)
    assert isinstance(
        await refused(spec("only", authorized_users=[ALICE]), **as_user(BOB)), NotAuthorizedError
    )


async def test_whoever_logs_in_needs_no_sudo(cluster: Cluster) -> None:
    """If it fails: a server's own user needs a rule for becoming itself."""
    write_rule(cluster["host1"], "")
    async with running_as(cluster.user) as (_, client):
        assert (await run(client, WHO)).startswith(f"{cluster.user} ")


# --- logging in as the user ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(cluster: Cluster) -> None:
    """The server may log in as Alice and Bob."""
    public = (cluster.home / ".ssh/id_ed25519.pub").read_text()
    for host in cluster.hosts:
        for person in PEOPLE:
            script = "mkdir -p -m 700 .ssh && cat > .ssh/authorized_keys && chmod 600 .ssh/authorized_keys"
            host.run("sh", "-c", script, user=person.name, input=public.encode())
        write_rule(host, "")


async def test_the_entry_names_the_user(cluster: Cluster, keys: None) -> None:
    """If it fails: {username}@host in remote_hosts is one user's, or nobody's."""
    name = write_spec("entry", remote_hosts=["{username}@host1", "{username}@host2"])
    async with (
        running(name, **as_user(ALICE)) as (hers, at_hers),
        running(name, **as_user(BOB)) as (his, at_his),
    ):
        assert await run(at_hers, WHO) == f"{ALICE} /home/dp-alice 7811"
        assert await run(at_his, WHO) == f"{BOB} /home/dp-bob 7812"
        hosts = [
            str(process.host) for kernel in (hers, his) if (process := provisioner_of(kernel).kernel.process)
        ]
        assert hosts == [f"{ALICE}@host1", f"{BOB}@host2"], "users take turns in one rotation"
        await hers.restart_kernel()
        await at_hers.wait_for_ready(timeout=30)
        assert await run(at_hers, WHO) == f"{ALICE} /home/dp-alice 7811"


@pytest.mark.parametrize("pin", ["host2", "{username}@host2", f"{ALICE}@host2", "HOST2"])
async def test_such_an_entry_can_be_pinned(cluster: Cluster, keys: None, pin: str) -> None:
    """If it fails: a pin needs to be spelled for each user."""
    name = write_spec("entry", remote_hosts=["{username}@host1", "{username}@host2"])
    async with running(name, **as_user(ALICE, KERNEL_REMOTE_HOST=pin)) as (_, client):
        assert await run(client, f"{WHO}; import socket; print(socket.gethostname())") == (
            f"{ALICE} /home/dp-alice 7811\nhost2"
        )
    error = await refused(name, **as_user(ALICE, KERNEL_REMOTE_HOST=f"{BOB}@host2"))
    assert "is not among the configured hosts" in str(error)


async def test_the_remote_user_names_the_user(
    cluster: Cluster, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: GP_REMOTE_USER works for one user, and not for whom the kernel is for."""
    for user in (ALICE, "{username}"):
        monkeypatch.setenv("GP_REMOTE_USER", user)
        async with running(write_spec("login"), **as_user(ALICE)) as (_, client):
            assert await run(client, WHO) == f"{ALICE} /home/dp-alice 7811"


# --- this machine, other processes, operators ------------------------------------------------------------------------------------------

HERE = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
os.environ.update(GP_UNAUTHORIZED_USERS="", JUPYTER_PLATFORM_DIRS="1", JUPYTER_DATA_DIR=os.environ["HOME"] + "/data")
os.environ["JUPYTER_RUNTIME_DIR"] = os.environ["HOME"] + "/run"
from tests.cluster.real_kernels import provisioner_of, run, running, write_spec
async def main():
    for user in sys.argv[2:]:
        spec = write_spec(impersonation_enabled=True, remote_hosts=["localhost"])
        async with running(spec, env={"KERNEL_USERNAME": user}) as (manager, client):
            await manager.interrupt_kernel()
            await manager.restart_kernel()
            await client.wait_for_ready(timeout=30)
            print(await run(client, "import getpass, os; print(getpass.getuser(), os.path.expanduser('~'))"))
asyncio.run(main())
"""


@pytest.mark.parametrize("server", ["jovyan", "root"])
async def test_localhost_takes_sudo_as_well(cluster: Cluster, server: str) -> None:
    """If it fails: on the server's own machine kernels are the server's, or are killed by nobody."""
    host = cluster["host1"]
    arguments = (sys.executable, "-W", "error", "-c", HERE, ROOT, ALICE, BOB, server)
    done = await asyncio.to_thread(host.run, *arguments, user=server, timeout=90, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.split("\n")
    assert lines[:2] == [f"{ALICE} /home/dp-alice", f"{BOB} /home/dp-bob"]
    assert lines[2].startswith(f"{server} ")
    await until(lambda: not [p for p in host.processes() if BRIDGE in p.command], 5)


async def test_another_process_goes_on_with_it(cluster: Cluster) -> None:
    """If it fails: what a gateway keeps of an impersonated kernel leads to the service account's listener."""
    manager = AsyncKernelManager(kernel_name=spec())
    await manager.start_kernel(**as_user(ALICE))
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=20)
    await run(client, "x = 42")
    client.stop_channels()
    info = json.loads(json.dumps(await provisioner_of(manager).get_provisioner_info()))
    assert info["login"]["run_as"] == ALICE
    other = AsyncKernelManager(kernel_name=manager.kernel_name)
    assert other.kernel_spec is not None
    config = other.kernel_spec.metadata["kernel_provisioner"]["config"]
    provisioner = DistributedProvisioner(
        kernel_id=manager.kernel_id, kernel_spec=other.kernel_spec, parent=other, **config
    )
    hostile = {**info, "login": {**info["login"], "run_as": "-u root"}}
    with pytest.raises(ConfigurationError, match="which is no user's name"):
        await provisioner.load_provisioner_info(hostile)
    await provisioner.load_provisioner_info(info)
    other.provisioner = provisioner
    other.load_connection_info(provisioner.connection_info)
    client = other.client()
    client.start_channels()
    await client.wait_for_ready(timeout=20)
    assert await run(client, "print(x)") == "42"
    client.stop_channels()
    await provisioner.kill()
    assert await provisioner.wait() is not None
    await provisioner.cleanup()
    await manager.shutdown_kernel(now=True)


async def test_operators_see_a_users_kernels(cluster: Cluster) -> None:
    """If it fails: nobody but the user finds, reads or ends a kernel that runs as the user."""
    command = [sys.executable, "-m", "distributed_provisioner.cli.ssh_cluster"]

    async def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run, [*command, *arguments], capture_output=True, text=True, timeout=60
        )

    hosts = ("--remote-hosts", "host1")
    async with running_as(ALICE) as (manager, client):
        await run(client, "import os; os.write(1, b'past Jupyter\\n')")
        done = await ask("kernels", "--as", ALICE, "--json", *hosts)
        assert [kernel["kernel_id"] for kernel in json.loads(done.stdout)["kernels"]] == [manager.kernel_id]
        for other in ((), ("--as", BOB)):
            done = await ask("kernels", "--json", *other, *hosts)
            assert manager.kernel_id not in [each["kernel_id"] for each in json.loads(done.stdout)["kernels"]]
        done = await ask("logs", manager.kernel_id[:8], "--as", ALICE, *hosts)
        assert "past Jupyter" in done.stdout
        done = await ask("kernels", "--as=-u root", *hosts)
        assert (done.returncode, done.stdout) == (2, "")
        done = await ask("kernels", "--remote-hosts", "{username}@host1")
        assert done.returncode == 2
        assert "--as USER" in done.stderr
        done = await ask("stop", manager.kernel_id, "--yes", "--as", ALICE, *hosts)
        assert done.returncode == 0, done.stderr
        kernel = provisioner_of(manager).kernel
        await until(lambda: kernel.state is KernelState.EXITED)


async def test_kernels_of_all_users_count_for_the_balancing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: each user's first kernel goes to the same host."""
    monkeypatch.setenv("GP_LOAD_BALANCING_ALGORITHM", "least-connection")
    name = spec(remote_hosts=["host1", "host2"])
    async with running_as(ALICE, name) as (hers, _), running_as(BOB, name) as (his, _):
        hosts = [
            process.host.host for kernel in (hers, his) if (process := provisioner_of(kernel).kernel.process)
        ]
        assert hosts == ["host1", "host2"]
