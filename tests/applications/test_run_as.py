"""Kernels of another user, under a real Jupyter Server that is killed and started again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh import Connections
from tests.applications.desk import Desk
from tests.applications.restarting import START, kernels, kill, open_notebook, running
from tests.cluster.accounts import ALICE, BOB, allow, kernels_of, people
from tests.conftest import wait_until

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("no_kernels_left", "accounts")]

WHO = "import getpass; print(getpass.getuser())"
NAMES = {"KERNEL_USERNAME": ALICE}


@pytest.fixture(scope="module")
def accounts(cluster: Cluster) -> Iterator[None]:
    with people(cluster):
        allow(cluster, ALICE, BOB)
        yield


@pytest.mark.parametrize("way", ["sudo", "log-in"])
def test_a_killed_server_goes_on_with_another_users_kernel(
    cluster: Cluster, desk: Desk, start_server: START, way: str
) -> None:
    """If it fails: with impersonation a crash of the server costs the work of hours, as it does not know whose listeners to ask."""
    if way == "sudo":
        extra = {**NAMES, "GP_IMPERSONATION_ENABLED": "true"}
    else:
        extra = {**NAMES, "GP_REMOTE_USER": "{username}"}
        public = (cluster.home / ".ssh/id_ed25519.pub").read_text()
        script = "mkdir -p -m 700 .ssh && cat > .ssh/authorized_keys && chmod 600 .ssh/authorized_keys"
        for host in cluster.hosts:
            host.run("sh", "-c", script, user=ALICE, input=public.encode())
    server = start_server(extra=extra)
    session = open_notebook(server, f"{way}.ipynb")
    kernel_id = session["kernel"]["id"]
    with server.channels(kernel_id) as channels:
        assert channels.run(WHO) == ALICE
        channels.execute("import time; x = 42\nwhile True: print('tick', flush=True); time.sleep(0.2)")
        channels.until_printed("tick")
    kill(server)
    again = start_server(extra={} if way == "sudo" else extra)
    assert list(kernels(again)) == [kernel_id]
    with again.channels(kernel_id) as channels:
        channels.until_printed("tick")
        assert again.request("POST", f"/api/kernels/{kernel_id}/interrupt")[0] == 204
        channels.until_state("idle")
        assert channels.run("print(x)") == "42"
        assert channels.run(WHO) == ALICE
    kill(again)
    last = start_server(extra=extra)
    with last.channels(kernel_id) as channels:
        assert channels.run("print(x)") == "42"
        assert last.request("POST", f"/api/kernels/{kernel_id}/restart")[0] == 200
        assert channels.run(WHO) == ALICE
    assert last.request("DELETE", f"/api/sessions/{session['id']}")[0] == 204
    assert wait_until(lambda: not running(cluster, kernel_id))
    assert wait_until(lambda: not any(kernels_of(host, ALICE) for host in cluster.hosts))


def test_a_user_is_nobody_else_after_a_restart(cluster: Cluster, desk: Desk, start_server: START) -> None:
    """If it fails: Alice, whose listener keeps what a restart needs, writes Bob's name there, and her kernel is restarted as his."""
    extra = {**NAMES, "GP_IMPERSONATION_ENABLED": "true"}
    server = start_server(extra=extra)
    _, kernel = server.request("POST", "/api/kernels", {"name": "ssh_python"})
    kernel_id = kernel["id"]  # without a session, which would bring the server's own environment
    with server.channels(kernel_id) as channels:
        assert channels.run(WHO) == ALICE
    kill(server)
    (name,) = [host.name for host in cluster.hosts if kernels_of(host, ALICE)]

    async def forge() -> None:
        connection = Connections.current().get(HostAddress(name), Login(run_as=ALICE))
        await connection.connect()
        (status,) = (await connection.request("list"))["kernels"]
        launch = status["annotations"]["launch"]
        launch["env"]["KERNEL_USERNAME"] = BOB
        names = {"kernel_id": kernel_id, "generation": status["generation"]}
        await connection.request("annotate", annotations={"launch": launch}, **names)
        await Connections.current().close()

    IOThread.current().submit(forge()).result(20)
    again = start_server(extra=extra)
    assert list(kernels(again)) == [kernel_id]
    with again.channels(kernel_id) as channels:
        assert channels.run(WHO) == ALICE
        assert again.request("POST", f"/api/kernels/{kernel_id}/restart")[0] == 200
        assert channels.run(WHO) == ALICE
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204
    assert wait_until(lambda: not running(cluster, kernel_id))


def test_a_kernel_on_a_host_that_is_away_is_awaited_as_its_user(
    cluster: Cluster, desk: Desk, start_server: START
) -> None:
    """If it fails: a server that starts while a host is away asks the service account's listener later, and calls the kernel dead."""
    extra = {**NAMES, "GP_IMPERSONATION_ENABLED": "true"}
    server = start_server(extra=extra)
    session = open_notebook(server, "away.ipynb")
    kernel_id = session["kernel"]["id"]
    with server.channels(kernel_id) as channels:
        assert channels.run("x = 42; print(x)") == "42"
        (name,) = [host.name for host in cluster.hosts if kernels_of(host, ALICE)]
    kill(server)
    cluster[name].cut()
    try:
        again = start_server(extra=extra)
        assert list(kernels(again)) == [kernel_id]
    finally:
        cluster[name].heal()
    until = time.monotonic() + 30
    while True:
        try:
            with again.channels(kernel_id) as channels:
                assert channels.run("print(x)") == "42"
            break
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
    assert again.request("DELETE", f"/api/sessions/{session['id']}")[0] == 204
