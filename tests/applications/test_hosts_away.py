"""A host is away when Jupyter Server starts: its kernels are in the lists all the same, and go on when it is back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.applications.desk import Desk
from tests.applications.restarting import START, kernels, kill, open_notebook, running
from tests.conftest import wait_until

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster
    from tests.applications.server import Channels, JupyterServer

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("no_kernels_left")]

IMPATIENT = {"GP_CONNECT_TIMEOUT": "5", "GP_KEEPALIVE_INTERVAL": "1"}
ON_HOST2 = {"KERNEL_REMOTE_HOST": "host2"}
BACK = 40
"""Seconds within which a kernel goes on when its host is back: an attempt to connect may just have begun in vain."""


@pytest.fixture
def start_server(start_server: START) -> START:
    """Servers that soon notice that a host is away, and that it is back."""

    def start(*options: str, extra: Mapping[str, str] | None = None) -> JupyterServer:
        return start_server(*options, extra={**IMPATIENT, **(extra or {})})

    return start


@contextlib.contextmanager
def away(host: Host) -> Iterator[None]:
    host.blackhole()
    try:
        yield
    finally:
        host.heal()


def sessions(server: JupyterServer) -> dict[str, str]:
    """The paths of the server's sessions by their kernels."""
    return {each["kernel"]["id"]: each["path"] for each in server.request("GET", "/api/sessions")[1]}


def written_down(desk: Desk, kernel_id: str) -> Path:
    """The file with the server's kernels, when that kernel is in it."""
    directory = desk.directory / "data" / "distributed-provisioner"
    assert wait_until(lambda: any(kernel_id in each.read_text() for each in directory.glob("kernels-*.json")))
    (known,) = directory.glob("kernels-*.json")
    return known


def interrupt(server: JupyterServer, kernel_id: str) -> tuple[int, Any]:
    return server.request("POST", f"/api/kernels/{kernel_id}/interrupt")


def is_back(server: JupyterServer, kernel_id: str) -> bool:
    return interrupt(server, kernel_id)[0] == 204


def until_heard(channels: Channels) -> None:
    """Wait until the kernel is back, and what it publishes reaches this client."""
    until = time.monotonic() + BACK
    while time.monotonic() < until:
        channels.send("kernel_info_request", {})
        with contextlib.suppress(TimeoutError):
            while channels.receive(time.monotonic() + 1)["channel"] != "iopub":
                pass
            return
    raise AssertionError("the kernel is not back")


def notebook_with_x(server: JupyterServer, path: str, value: int) -> tuple[dict[str, Any], str]:
    """A session whose kernel has a variable, when all has been written down; the kernel's id."""
    session = open_notebook(server, path)
    kernel_id = session["kernel"]["id"]
    with server.channels(kernel_id) as channels:
        channels.run(f"x = {value}")
    return session, kernel_id


def left_behind(start_server: START, value: int) -> tuple[dict[str, Any], str]:
    """The same on host2, of a server that has been killed since."""
    server = start_server(extra=ON_HOST2)
    found = notebook_with_x(server, "far.ipynb", value)
    kill(server)
    return found


def test_kernels_of_a_host_that_is_away_are_there_at_the_first_answer(
    cluster: Cluster, start_server: START
) -> None:
    """If it fails: open pages call living kernels dead for good, and pages that are opened meanwhile start others."""
    session, kernel_id = left_behind(start_server, 7)
    begun = time.monotonic()
    kill(start_server("--DistributedProvisioner.adopt_kernels=False"))
    usual = time.monotonic() - begun
    with away(cluster["host2"]):
        begun = time.monotonic()
        again = start_server()
        assert time.monotonic() - begun < usual + 5
        assert list(kernels(again)) == [kernel_id]
        assert sessions(again) == {kernel_id: "far.ipynb"}
        assert open_notebook(again, "far.ipynb")["kernel"]["id"] == kernel_id
        status, body = interrupt(again, kernel_id)
        assert status == 503
        assert "host2 cannot be reached" in body["message"]
        with again.channels(kernel_id) as channels:  # as a page does that was left open
            renamed = {"path": "renamed.ipynb", "name": "renamed.ipynb"}
            assert again.request("PATCH", f"/api/sessions/{session['id']}", renamed)[0] == 200
            cluster["host2"].heal()
            until_heard(channels)
            assert channels.run("print(x)") == "7"
    assert wait_until(lambda: kernels(again)[kernel_id]["execution_state"] == "idle")
    assert is_back(again, kernel_id)
    assert sessions(again) == {kernel_id: "renamed.ipynb"}
    time.sleep(1)  # the host is told of the name when it is back, not some time later
    kill(again)
    assert sessions(third := start_server()) == {kernel_id: "renamed.ipynb"}
    assert third.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204
    assert wait_until(lambda: not running(cluster, kernel_id))


def test_without_the_file_kernels_appear_when_their_host_is_back(
    cluster: Cluster, desk: Desk, start_server: START
) -> None:
    """If it fails: a file that is only a comfort has become what kernels hang on."""
    _, kernel_id = left_behind(start_server, 8)
    written_down(desk, kernel_id).unlink()
    with away(cluster["host2"]):
        again = start_server()
        assert kernels(again) == {}
    assert wait_until(lambda: list(kernels(again)) == [kernel_id], BACK)
    assert sessions(again) == {kernel_id: "far.ipynb"}
    with again.channels(kernel_id) as channels:
        assert channels.run("print(x)") == "8"
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_the_file_is_the_users_alone_and_has_no_password(desk: Desk, start_server: START) -> None:
    """If it fails: other users of the machine may use the kernels, or a password lies on a disk."""
    secrets = {"GP_REMOTE_PWD": "hunter2", "KERNEL_COLOR": "green", "JUPYTERHUB_API_TOKEN": "sesame"}
    server = start_server(extra=secrets)
    kernel_id = server.start_kernel()
    known = written_down(desk, kernel_id)
    text = known.read_text()
    assert (known.stat().st_mode & 0o777, known.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "green" in text
    assert not [secret for secret in ("hunter2", "sesame", server._token) if secret in text]
    assert server.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204
    assert wait_until(lambda: kernel_id not in known.read_text())


def test_a_kernel_that_is_shut_down_while_its_host_is_away_does_not_come_back(
    cluster: Cluster, start_server: START
) -> None:
    """If it fails: who shuts a kernel down has it again some minutes later, or it computes for nobody."""
    session, kernel_id = left_behind(start_server, 1)
    with away(cluster["host2"]):
        again = start_server()
        assert again.request("DELETE", f"/api/sessions/{session['id']}")[0] == 204
        assert kernels(again) == {}
    assert wait_until(lambda: not running(cluster, kernel_id), BACK)
    time.sleep(3)
    assert kernels(again) == {}


def test_a_kernel_whose_host_is_away_can_be_restarted_elsewhere(
    cluster: Cluster, start_server: START
) -> None:
    """If it fails: who needs a kernel now has to wait for a host that may never be back."""
    server = start_server()
    _, kernel_id = notebook_with_x(server, "far.ipynb", 1)
    with server.channels(kernel_id) as channels:
        host = channels.run("import socket; print(socket.gethostname())")
    kill(server)
    with away(cluster[host]):
        again = start_server()
        assert again.request("POST", f"/api/kernels/{kernel_id}/restart", timeout=100)[0] == 200
        with again.channels(kernel_id) as channels:
            assert channels.run("import socket; print(socket.gethostname())") != host
            assert channels.run("x") == "NameError"
            channels.run("y = 5")
    assert wait_until(lambda: len(running(cluster, kernel_id)) == 1, BACK)
    time.sleep(3)
    with again.channels(kernel_id) as channels:
        assert channels.run("print(y)") == "5"
    assert sessions(again) == {kernel_id: "far.ipynb"}
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_a_kernel_that_did_not_outlive_its_hosts_absence_is_told_of(
    cluster: Cluster, start_server: START
) -> None:
    """If it fails: after a power failure notebooks show kernels that do not exist, and nobody says why."""
    _, kernel_id = left_behind(start_server, 1)
    cluster["host2"].power_off()
    try:
        again = start_server(extra=ON_HOST2)
        assert list(kernels(again)) == [kernel_id]
        with again.channels(kernel_id) as channels:
            cluster["host2"].boot()
            channels.until_state("restarting", BACK)
    finally:
        if not cluster["host2"].is_on:
            cluster["host2"].boot()
    assert "host2 has ended: its host was restarted" in kernels(again)[kernel_id]["reason"]
    assert "the kernel has ended: its host was restarted" in again.log()
    with again.channels(kernel_id) as channels:
        assert channels.run("x") == "NameError"
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_a_kernel_that_died_while_its_host_was_away_is_told_of(cluster: Cluster, start_server: START) -> None:
    """If it fails: nobody learns what became of the kernel."""
    server = start_server(extra=ON_HOST2)
    kernel_id = server.start_kernel()
    kill(server)
    with away(cluster["host2"]):
        again = start_server(extra=ON_HOST2)
        for process in running(cluster, kernel_id):
            os.kill(process, signal.SIGKILL)
        with again.channels(kernel_id) as channels:
            cluster["host2"].heal()
            channels.until_state("restarting", BACK)
    assert "SIGKILL" in kernels(again)[kernel_id]["reason"]
    with again.channels(kernel_id) as channels:
        assert channels.run("print(1)") == "1"
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_what_the_host_says_wins_over_an_old_file(cluster: Cluster, desk: Desk, start_server: START) -> None:
    """If it fails: a file that could not be written for a while costs the kernel that was started since."""
    server = start_server(extra=ON_HOST2)
    _, kernel_id = notebook_with_x(server, "far.ipynb", 1)
    known = written_down(desk, kernel_id)
    before = known.read_text()
    assert server.request("POST", f"/api/kernels/{kernel_id}/restart")[0] == 200
    with server.channels(kernel_id) as channels:
        pid = channels.run("import os; x = 2; print(os.getpid())")
    assert wait_until(lambda: known.read_text() != before)
    kill(server)
    generation = json.loads(known.read_text())["kernels"][0]["process"]["generation"]
    known.write_text(before)
    assert json.loads(before)["kernels"][0]["process"]["generation"] < generation
    with away(cluster["host2"]):
        again = start_server()
        assert list(kernels(again)) == [kernel_id]
        with again.channels(kernel_id) as channels:
            cluster["host2"].heal()
            until_heard(channels)
            assert channels.run("print(x, os.getpid())") == f"2 {pid}"
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_a_kernel_in_the_file_that_a_host_does_not_know_is_not_there(
    cluster: Cluster, desk: Desk, start_server: START
) -> None:
    """If it fails: an old file shows kernels that do not exist, though their host could be asked."""
    server = start_server(extra=ON_HOST2)
    kernel_id = server.start_kernel()
    known = written_down(desk, kernel_id)
    before = known.read_text()
    assert server.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204
    kill(server)
    known.write_text(before)
    again = start_server()
    assert kernels(again) == {}
    assert wait_until(lambda: kernel_id not in known.read_text())
    assert "its host does not know it any more" in again.log()


def test_a_second_server_has_no_kernels_of_a_living_one_though_its_host_is_away(
    cluster: Cluster, desk: Desk, start_server: START
) -> None:
    """If it fails: a server that is started twice by mistake takes kernels from under open notebooks."""
    server = start_server(extra=ON_HOST2)
    _, kernel_id = notebook_with_x(server, "far.ipynb", 3)
    with away(cluster["host2"]):
        second = start_server()
        assert kernels(second) == {}
        own = second.start_kernel()
        assert kernel_id in written_down(desk, own).read_text()
        assert second.request("DELETE", f"/api/kernels/{own}")[0] == 204
    assert second.stop() < 10
    assert wait_until(lambda: is_back(server, kernel_id), BACK)
    with server.channels(kernel_id) as channels:
        assert channels.run("print(x)") == "3"
    assert server.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204
