"""Jupyter Server: what a browser does with kernels on hosts, and what becomes of them and of the server."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.applications.desk import Desk
from tests.applications.server import Channels, JupyterServer

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

WHERE = "import socket; print(socket.gethostname())"
LOOP = "import time\nprint('go', flush=True)\nwhile True: time.sleep(0.05)"


def kernel_processes(host: Host, kernel_id: str) -> list[str]:
    return [process.command for process in host.processes() if kernel_id in process.command]


def kernel_pid(host: Host, channels: Channels) -> int:
    """The pid of a kernel, as this machine counts."""
    pid = int(channels.run("import os; print(os.getpid())"))
    return next(process.outer_pid for process in host.processes() if process.pid == pid)


# --- what browsers do ---------------------------------------------------------------------------------------------------------


def test_a_cell_runs_on_a_host_and_its_output_comes_back(cluster: Cluster, server: JupyterServer) -> None:
    """If it fails: notebooks do not work."""
    with server.kernel() as (kernel_id, channels):
        host = channels.run(WHERE)
        assert host in ("host1", "host2", "host3")
        assert kernel_processes(cluster[host], kernel_id)
        assert server.request("GET", f"/api/kernels/{kernel_id}")[1]["name"] == "ssh_python"
    assert not kernel_processes(cluster[host], kernel_id)
    assert server.request("GET", f"/api/kernels/{kernel_id}")[0] == 404


def test_a_notebook_opens_a_session_and_knows_its_name(server: JupyterServer) -> None:
    """If it fails: JupyterLab cannot open a notebook, or extensions that ask for its path find none."""
    body = {"kernel": {"name": "ssh_python"}, "name": "a.ipynb", "path": "a.ipynb", "type": "notebook"}
    status, session = server.request("POST", "/api/sessions", body)
    assert status == 201, session
    try:
        with server.channels(session["kernel"]["id"]) as channels:
            name = channels.run("import os; print(os.environ['JPY_SESSION_NAME'])")
            assert os.path.basename(name) == "a.ipynb"
    finally:
        assert server.request("DELETE", f"/api/sessions/{session['id']}")[0] == 204
    assert session["kernel"]["id"] not in [
        kernel["id"] for kernel in server.request("GET", "/api/kernels")[1]
    ]


def test_the_stop_button_ends_a_running_cell(server: JupyterServer) -> None:
    """If it fails: a loop without end can only be killed, with all that the kernel holds."""
    with server.kernel() as (kernel_id, channels):
        channels.run("kept = 5")
        cell = channels.execute(LOOP)
        channels.until_printed("go")
        begun = time.monotonic()
        assert server.request("POST", f"/api/kernels/{kernel_id}/interrupt")[0] == 204
        assert channels.finish(cell) == "KeyboardInterrupt"
        assert time.monotonic() - begun < 3
        assert channels.run("print(kept)") == "5"


def test_the_restart_button_begins_anew_on_the_same_host(server: JupyterServer) -> None:
    """If it fails: a restart keeps old variables, moves away from the data, or cuts off tabs that are open."""
    with server.kernel() as (kernel_id, channels):
        host = channels.run(f"kept = 5; {WHERE}")
        assert server.request("POST", f"/api/kernels/{kernel_id}/restart")[0] == 200
        assert channels.run("print('kept' in globals())") == "False"
        with server.channels(kernel_id) as again:  # as JupyterLab does, which connects anew
            assert again.run(WHERE) == host


# --- a server serves many -------------------------------------------------------------------------------------------------------


def test_a_host_that_hangs_does_not_hang_the_server(
    cluster: Cluster, desk: Desk, server: JupyterServer
) -> None:
    """If it fails: one sick host freezes the server for all its users."""
    desk.install("ssh_host2", "--remote-hosts", "host2")
    desk.install("ssh_host3", "--remote-hosts", "host3")
    started: list[str] = []
    with server.kernel("ssh_host3") as (_, channels):
        cluster["host2"].pause_sshd()
        try:
            thread = threading.Thread(target=lambda: started.append(server.start_kernel("ssh_host2")))
            thread.start()
            for _ in range(20):
                begun = time.monotonic()
                assert server.request("GET", "/api/kernels")[0] == 200
                assert channels.run("print('alive')") == "alive"
                assert time.monotonic() - begun < 1
                time.sleep(0.1)
            assert not started
        finally:
            cluster["host2"].resume_sshd()
            thread.join(30)
    (kernel_id,) = started  # and when the host goes on, so does the launch
    assert server.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204


# --- deaths -------------------------------------------------------------------------------------------------------------------------


def test_a_killed_kernel_is_started_again_and_the_log_says_what_killed_it(
    cluster: Cluster, desk: Desk, server: JupyterServer
) -> None:
    """If it fails: after the OOM killer came, the notebook hangs, or nobody learns what happened."""
    desk.install("ssh_host1", "--remote-hosts", "host1")
    with server.kernel("ssh_host1") as (kernel_id, channels):
        pid = kernel_pid(cluster["host1"], channels)
        os.kill(pid, signal.SIGKILL)
        channels.until_state("restarting")
        with server.channels(kernel_id) as again:
            assert again.run(WHERE) == "host1"
            assert kernel_pid(cluster["host1"], again) != pid
    (line,) = [x for x in server.log().splitlines() if f"kernel={kernel_id[:4]}" in x and "SIGKILL" in x]
    assert "host=host1" in line


def test_a_kernel_that_cannot_be_started_again_is_dead(
    cluster: Cluster, desk: Desk, server: JupyterServer
) -> None:
    """If it fails: the notebook says "restarting" for ever."""
    home = f"/home/{cluster.user}"
    interpreter = cluster["host1"].path(f"{home}/own-python")
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    desk.install("ssh_fragile", "--remote-hosts", "host1")
    desk.change("ssh_fragile", remote_python=f"{home}/own-python")
    kernel_id = server.start_kernel("ssh_fragile")
    with server.channels(kernel_id) as channels:
        pid = kernel_pid(cluster["host1"], channels)
        interpreter.unlink()
        os.kill(pid, signal.SIGKILL)
        channels.until_state("dead", 40)
    assert server.request("GET", f"/api/kernels/{kernel_id}")[0] == 404  # Jupyter Server lets dead kernels go
    assert "own-python: No such file or directory" in server.log()


# --- ends -----------------------------------------------------------------------------------------------------------------------------


def files(cluster: Cluster) -> set[str]:
    """All files of the hosts, but for the listener's own."""
    own = ("/bundles/", "listener", "/cache", ".local/state/distributed")
    return {
        f"{host.name}:{n}" for host in cluster.hosts for n in host.files() if not any(x in n for x in own)
    }


def test_an_orderly_exit_leaves_nothing_and_no_secret_was_written(
    cluster: Cluster, desk: Desk, start_server: Callable[..., JupyterServer]
) -> None:
    """If it fails: hosts fill up with kernels of servers that are gone, or logs hand out keys and passwords."""
    secrets = {"GP_REMOTE_PWD": "pwd-hunter2", "KERNEL_TOKEN": "kernel-hush-hush"}
    before = files(cluster)
    server = start_server(extra=secrets)
    kernels = [server.start_kernel() for _ in range(3)]
    with server.channels(kernels[0]) as channels:
        shown = channels.run("import os; print(*sorted(os.environ.items()), sep='\\n')")
        channels.run("import os; os.write(2, b'some output')")
    assert "pwd-hunter2" not in shown
    assert "GP_REMOTE_PWD" not in shown
    assert "kernel-hush-hush" in shown
    connection_files = [desk.directory / "runtime" / f"kernel-{kernel_id}.json" for kernel_id in kernels]
    keys = [json.loads(file.read_text())["key"] for file in connection_files]
    assert server.stop() < 10
    assert not [host for host in cluster.hosts if any(kernel_processes(host, k) for k in kernels)]
    assert files(cluster) - before == set()
    assert not [file for file in connection_files if file.exists()]
    log = server.log()
    assert kernels[0] in log
    assert len(set(keys)) == 3
    assert not [secret for secret in [*keys, *secrets.values()] if secret in log]


def test_a_server_whose_launches_failed_still_exits(
    desk: Desk, start_server: Callable[..., JupyterServer]
) -> None:
    """If it fails: the server ignores SIGTERM for ever once a launch has failed."""
    desk.install("ssh_broken", "--remote-hosts", "host1")
    desk.change("ssh_broken", remote_python="/no/such/python")
    server = start_server()
    assert server.request("POST", "/api/kernels", {"name": "ssh_broken"})[0] == 500
    body = {"kernel": {"name": "ssh_broken"}, "name": "", "path": "b.ipynb", "type": "notebook"}
    assert server.request("POST", "/api/sessions", body)[0] == 500
    server.start_kernel()
    assert server.request("GET", "/api/kernels")[1] != []
    assert server.stop() < 10
