"""The server goes, the kernel stays: what a killed, stopped or doubled Jupyter Server finds of its kernels when it starts again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.applications.desk import Desk
from tests.applications.restarting import COUNT, START, kernels, kill, open_notebook, running
from tests.conftest import wait_until

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("no_kernels_left")]


def left_behind(start_server: START, **arguments: Any) -> str:
    """A kernel whose server has been killed since."""
    server = start_server(**arguments)
    kernel_id = server.start_kernel()
    kill(server)
    return kernel_id


def test_a_killed_server_finds_its_kernel_and_notebook_again(
    cluster: Cluster, desk: Desk, start_server: START
) -> None:
    """If it fails: a crash of the server costs the work of hours."""
    server = start_server()
    session = open_notebook(server, "a.ipynb")
    kernel_id = session["kernel"]["id"]
    with server.channels(kernel_id) as channels:
        assert channels.run("import os; x = 42; print(os.getpid())")
        pid = channels.run("print(os.getpid())")
        channels.execute(COUNT)
        channels.until_state("busy")
    kill(server)
    shutil.rmtree(desk.directory / "runtime")
    again = start_server()
    assert kernels(again)[kernel_id]["execution_state"] == "busy"
    (found,) = again.request("GET", "/api/sessions")[1]
    assert {name: found[name] for name in ("id", "path", "name", "type")} == {
        name: session[name] for name in ("id", "path", "name", "type")
    }
    assert found["kernel"]["id"] == kernel_id
    assert found["kernel"]["name"] == "ssh_python"
    with again.channels(kernel_id) as channels:
        assert again.request("POST", f"/api/kernels/{kernel_id}/interrupt")[0] == 204
        channels.until_state("idle")
        assert channels.run("print(os.getpid(), x > 1)") == f"{pid} True"
        assert again.request("POST", f"/api/kernels/{kernel_id}/restart")[0] == 200
        assert channels.run("x") == "NameError"
        assert channels.run("import os; print(os.environ['JPY_SESSION_NAME'])").endswith("a.ipynb")
    assert again.request("DELETE", f"/api/sessions/{session['id']}")[0] == 204
    assert kernels(again) == {}
    assert wait_until(lambda: not running(cluster, kernel_id))


def test_output_goes_on_at_once_where_a_cell_runs(desk: Desk, start_server: START) -> None:
    """If it fails: the page of a notebook whose cell runs waits for a minute, or for the cell's end."""
    server = start_server()
    kernel_id = server.start_kernel()
    with server.channels(kernel_id) as channels:
        channels.execute("import time\nwhile True: print('tick', flush=True); time.sleep(0.2)")
        channels.until_printed("tick")
    kill(server)
    again = start_server()
    begun = time.monotonic()
    with again.channels(kernel_id) as channels:
        channels.until_printed("tick")
    assert time.monotonic() - begun < 5
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_sessions_come_back_as_they_were_last(start_server: START) -> None:
    """If it fails: a notebook that was renamed, or a second page on a kernel, loses its kernel."""
    server = start_server()
    session = open_notebook(server, "old.ipynb")
    kernel_id = session["kernel"]["id"]
    renamed = {"path": "new.ipynb", "name": "new.ipynb"}
    assert server.request("PATCH", f"/api/sessions/{session['id']}", renamed)[0] == 200
    console = {"kernel": {"id": kernel_id}, "name": "", "path": "console-1", "type": "console"}
    second = server.request("POST", "/api/sessions", console)[1]
    closed = open_notebook(server, "closed.ipynb")
    assert server.request("DELETE", f"/api/sessions/{closed['id']}")[0] == 204
    time.sleep(0.5)  # the hosts are told beside
    kill(server)
    again = start_server()
    found = {each["id"]: each for each in again.request("GET", "/api/sessions")[1]}
    assert {key: (each["path"], each["type"]) for key, each in found.items()} == {
        session["id"]: ("new.ipynb", "notebook"),
        second["id"]: ("console-1", "console"),
    }
    assert {each["kernel"]["id"] for each in found.values()} == {kernel_id}
    assert again.request("POST", f"/api/kernels/{kernel_id}/restart")[0] == 200
    with again.channels(kernel_id) as channels:
        assert channels.run("import os; print(os.environ['JPY_SESSION_NAME'])").endswith("new.ipynb")
    kill(again)  # also what came back, was restarted and is told of once more
    third = start_server()
    assert {each["id"] for each in third.request("GET", "/api/sessions")[1]} == set(found)
    assert third.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_a_session_is_there_though_the_server_died_at_once(start_server: START) -> None:
    """If it fails: the kernel of a notebook that was just opened belongs to no notebook."""
    server = start_server()
    session = open_notebook(server, "quick.ipynb")
    kill(server)
    again = start_server()
    assert [each["id"] for each in again.request("GET", "/api/sessions")[1]] == [session["id"]]
    assert again.request("DELETE", f"/api/sessions/{session['id']}")[0] == 204


def test_a_restart_after_it_has_the_environment_and_directory_of_the_start(
    cluster: Cluster, desk: Desk, start_server: START
) -> None:
    """If it fails: a kernel that is restarted after the server's crash is another one than before."""
    server = start_server(extra={"KERNEL_COLOR": "green", "KERNEL_REMOTE_HOST": "host2"})
    kernel_id = server.start_kernel()
    show = "import os, socket; print(os.environ['KERNEL_COLOR'], socket.gethostname(), os.getcwd())"
    with server.channels(kernel_id) as channels:
        before = channels.run(show)
    kill(server)
    again = start_server()
    assert again.request("POST", f"/api/kernels/{kernel_id}/restart")[0] == 200
    with again.channels(kernel_id) as channels:
        assert channels.run(show) == before
        assert before.startswith("green host2")
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_a_kernel_that_dies_after_it_is_started_again(cluster: Cluster, start_server: START) -> None:
    """If it fails: nobody watches kernels that were found again."""
    kernel_id = left_behind(start_server, extra={"KERNEL_REMOTE_HOST": "host1"})
    again = start_server()
    with again.channels(kernel_id) as channels:
        inner = int(channels.run("import os; print(os.getpid())"))
        pid = next(process.outer_pid for process in cluster["host1"].processes() if process.pid == inner)
        os.kill(pid, signal.SIGKILL)
        channels.until_state("restarting")
        with again.channels(kernel_id) as later:
            assert later.run("import os; print(os.getpid())") != str(inner)
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_idle_kernels_are_culled_after_it(start_server: START) -> None:
    """If it fails: kernels that were found again fill the hosts for ever."""
    server = start_server()
    kernel_id = server.start_kernel()
    with server.channels(kernel_id) as channels:
        channels.run("1")
    kill(server)
    again = start_server(
        "--MappingKernelManager.cull_idle_timeout=2", "--MappingKernelManager.cull_interval=1"
    )
    assert list(kernels(again)) == [kernel_id]
    assert wait_until(lambda: kernels(again) == {}, 15)


def test_a_persisted_session_database_keeps_its_rows(desk: Desk, start_server: START) -> None:
    """If it fails: a server that keeps its sessions on disk has them twice, or loses them at the first look."""
    database = f"--SessionManager.database_filepath={desk.directory}/sessions.db"
    server = start_server(database)
    session = open_notebook(server, "kept.ipynb")
    kill(server)
    again = start_server(database)
    assert [each["id"] for each in again.request("GET", "/api/sessions")[1]] == [session["id"]]
    assert again.request("DELETE", f"/api/sessions/{session['id']}")[0] == 204
    assert again.request("GET", "/api/sessions")[1] == []


@pytest.mark.parametrize("kind", ["localhost", "tcp", "curve"])
def test_kernels_of_every_kind_are_found_again(kind: str, desk: Desk, start_server: START) -> None:
    """If it fails: what holds for Python kernels on Unix sockets does not hold for the others."""
    name = f"restart_{kind}"
    host = "localhost" if kind == "localhost" else "host3"
    desk.install(name, "--remote-hosts", host, kernel_transport="ipc" if kind == "localhost" else "tcp")
    if kind == "curve":
        path = desk.kernels / name / "kernel.json"
        spec = json.loads(path.read_text())
        spec["metadata"]["supported_encryption"] = ["curve"]
        path.write_text(json.dumps(spec))
    server = start_server()
    kernel_id = server.start_kernel(name)
    with server.channels(kernel_id) as channels:
        channels.run("x = 5")
    kill(server)
    again = start_server()
    try:
        assert list(kernels(again)) == [kernel_id], again.log()
        with again.channels(kernel_id) as channels:
            assert channels.run("print(x)") == "5"
            assert wait_until(lambda: kernels(again)[kernel_id]["execution_state"] == "idle")
        assert again.request("POST", f"/api/kernels/{kernel_id}/restart")[0] == 200
        assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204
    finally:
        shutil.rmtree(desk.kernels / name)


# --- whose kernels they are -----------------------------------------------------------------------------------------------------


def test_servers_of_two_directories_keep_to_their_own(desk: Desk, start_server: START) -> None:
    """If it fails: one project's server takes the kernels of another, or shuts them down."""
    other = desk.directory / "other-root"
    other.mkdir()
    first, second = start_server(), start_server(root_dir=other)
    own, others = first.start_kernel(), second.start_kernel()
    kill(first)
    kill(second)
    first, second = start_server(), start_server(root_dir=other)
    assert (list(kernels(first)), list(kernels(second))) == ([own], [others])
    assert first.stop() < 10
    with second.channels(others) as channels:
        assert channels.run("print(1)") == "1"
    assert second.request("DELETE", f"/api/kernels/{others}")[0] == 204


def test_a_second_server_leaves_a_living_one_its_kernels(start_server: START) -> None:
    """If it fails: a server that is started twice by mistake takes kernels from under open notebooks."""
    server = start_server()
    kernel_id = server.start_kernel()
    second = start_server()
    assert kernels(second) == {}
    assert second.stop() < 10
    with server.channels(kernel_id) as channels:
        assert channels.run("print(1)") == "1"
    assert server.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_adoption_can_be_turned_off(cluster: Cluster, start_server: START) -> None:
    """If it fails: who does not want kernels of an earlier run has them."""
    kernel_id = left_behind(start_server)
    assert kernels(start_server(extra={"GP_ADOPT_KERNELS": "false"})) == {}
    assert running(cluster, kernel_id)  # its lease runs
    again = start_server()
    assert list(kernels(again)) == [kernel_id]
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


# --- orderly ends ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["SIGTERM", "/api/shutdown"])
def test_an_orderly_stop_keeps_kernels_where_that_is_wanted(
    how: str, cluster: Cluster, desk: Desk, start_server: START
) -> None:
    """If it fails: an upgrade of the server, by its own means, costs the kernels."""
    keep = {"GP_ON_SERVER_STOP": "keep"}
    server = start_server(extra=keep)
    session = open_notebook(server, "kept.ipynb")
    kernel_id = session["kernel"]["id"]
    with server.channels(kernel_id) as channels:
        channels.run("x = 3")
    desk.copy("ssh_python", "ssh_mortal", on_server_stop="end")
    mortal = server.start_kernel("ssh_mortal")
    if how == "SIGTERM":
        assert server.stop() < 10
    else:
        assert server.request("POST", how)[0] == 200
        server.process.wait(10)
    shutil.rmtree(desk.kernels / "ssh_mortal")
    assert running(cluster, kernel_id)
    assert not running(cluster, mortal)
    assert not list((desk.directory / "runtime").glob("kernel-*"))
    again = start_server()  # this one does not keep it
    assert [each["id"] for each in again.request("GET", "/api/sessions")[1]] == [session["id"]]
    with again.channels(kernel_id) as channels:
        assert channels.run("print(x)") == "3"
    assert again.stop() < 10
    assert not running(cluster, kernel_id)


# --- kernels that did not last -----------------------------------------------------------------------------------------------------


def test_a_kernel_that_died_meanwhile_is_told_of_and_not_there(cluster: Cluster, start_server: START) -> None:
    """If it fails: a dead kernel is shown as a living one, or nobody learns what became of it."""
    kernel_id = left_behind(start_server, extra={"KERNEL_REMOTE_HOST": "host1"})
    (process,) = running(cluster, kernel_id)
    os.kill(process, signal.SIGKILL)
    assert wait_until(lambda: not running(cluster, kernel_id))
    again = start_server()
    assert kernels(again) == {}
    (line,) = [line for line in again.log().splitlines() if "has ended while no server was there" in line]
    assert kernel_id[:4] in line
    assert "SIGKILL" in line


def test_a_kernel_goes_on_without_its_kernelspec(desk: Desk, start_server: START) -> None:
    """If it fails: who removes or renames a kernelspec loses the kernels that run."""
    desk.copy("ssh_python", "ssh_gone")
    server = start_server()
    kernel_id = server.start_kernel("ssh_gone")
    with server.channels(kernel_id) as channels:
        channels.run("x = 9")
    kill(server)
    shutil.rmtree(desk.kernels / "ssh_gone")
    again = start_server()
    with again.channels(kernel_id) as channels:
        assert channels.run("print(x)") == "9"
        channels.execute(COUNT)
        channels.until_state("busy")
        assert again.request("POST", f"/api/kernels/{kernel_id}/interrupt")[0] == 204
        channels.until_state("idle")
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


# --- killed in the middle of something ---------------------------------------------------------------------------------------------


def test_a_server_that_is_killed_while_it_launches_leaves_nothing(
    cluster: Cluster, desk: Desk, start_server: START
) -> None:
    """If it fails: half-made kernels stay on the hosts, and turn up in the next server."""
    desk.copy(
        "ssh_python", "ssh_slow", argv=["/bin/sh", "-c", "sleep 300", "{connection_file}", "{kernel_id}"]
    )
    server = start_server()
    with contextlib.suppress(OSError), ThreadPoolExecutor(1) as thread:
        thread.submit(server.request, "POST", "/api/kernels", {"name": "ssh_slow"})
        assert wait_until(lambda: bool(running(cluster, "sleep 300")), 20)
        kill(server)
    again = start_server()
    assert kernels(again) == {}
    assert wait_until(lambda: not running(cluster, "sleep 300"))
    shutil.rmtree(desk.kernels / "ssh_slow")


@pytest.mark.parametrize("pause", [0.0, 0.1, 0.3, 0.6])
def test_a_server_that_is_killed_while_it_restarts_leaves_one_kernel_or_none(
    pause: float, cluster: Cluster, start_server: START
) -> None:
    """If it fails: a notebook has two kernels, or one that the server does not know."""
    server = start_server()
    kernel_id = server.start_kernel()
    with contextlib.suppress(OSError), ThreadPoolExecutor(1) as thread:
        thread.submit(server.request, "POST", f"/api/kernels/{kernel_id}/restart")
        time.sleep(pause)
        kill(server)
    again = start_server()
    known = list(kernels(again))
    assert known in ([], [kernel_id])
    assert wait_until(lambda: len(running(cluster, kernel_id)) == len(known))
    if known:
        with again.channels(kernel_id) as channels:
            assert channels.run("print(1)") == "1"
        assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


def test_a_server_that_is_killed_while_it_interrupts_finds_the_kernel(start_server: START) -> None:
    """If it fails: a kernel is lost by an interrupt whose server died of it."""
    server = start_server()
    kernel_id = server.start_kernel()
    with server.channels(kernel_id) as channels:
        channels.run("y = 1")
        channels.execute(COUNT)
        channels.until_state("busy")
        with contextlib.suppress(OSError), ThreadPoolExecutor(1) as thread:
            thread.submit(server.request, "POST", f"/api/kernels/{kernel_id}/interrupt")
            kill(server)
    again = start_server()
    with again.channels(kernel_id) as channels:
        if kernels(again)[kernel_id]["execution_state"] == "busy":
            assert again.request("POST", f"/api/kernels/{kernel_id}/interrupt")[0] == 204
            assert wait_until(lambda: kernels(again)[kernel_id]["execution_state"] == "idle")
        assert channels.run("print(y)") == "1"
    assert again.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204
