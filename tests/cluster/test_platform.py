"""The traps of jupyter_client and jupyter_server, each with the real ones."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import websocket
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from tests.cluster.real_kernels import (
    host_of,
    kernels_on,
    needs_encryption,
    provisioner_of,
    run,
    running,
    until,
    write_spec,
)

from distributed_provisioner import errors, jupyter_manager

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone")]


# --- managers ---------------------------------------------------------------------------------------------------------------------


async def test_a_failed_start_does_not_stay_pending(cluster: Cluster) -> None:
    """If it fails: a server that had one failed launch never exits on SIGTERM."""
    many = AsyncMultiKernelManager()
    faults: list[dict[str, Any]] = [
        {"argv": ["/no/such"]},
        {"remote_hosts": []},
        {"unauthorized_users": ["bob"]},
        {"remote_hosts": ["x.invalid"]},
    ]
    for changes in faults:
        with pytest.raises(errors.ProvisionerError):
            await many.start_kernel(kernel_name=write_spec(**changes), env={"KERNEL_USERNAME": "bob"})
        assert not many._pending_kernels
    await asyncio.wait_for(many.shutdown_all(), 5)


async def test_a_hostile_kernel_id_goes_nowhere(cluster: Cluster) -> None:
    """If it fails: a REST client writes into commands and paths on a host."""
    many = AsyncMultiKernelManager()
    with pytest.raises(errors.ConfigurationError, match="kernel id"):
        await many.start_kernel(kernel_name=write_spec(), kernel_id="a b;touch x;$(id)")
    assert not many._pending_kernels


async def test_a_failing_autorestart_is_tried_again_and_then_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: the kernel says "restarting" for ever."""
    monkeypatch.setattr(jupyter_manager, "RETRY_PAUSES", (0.3, 0.3))
    marker = cluster["host1"].path("/tmp/only-once")
    code = "import os, sys, time, runpy\n"
    code += (
        "if os.path.exists('/tmp/only-once'): sys.exit('not again')\nopen('/tmp/only-once', 'w').close()\n"
    )
    code += "sys.argv[1:] = ['-f', sys.argv[1]]\nrunpy.run_module('ipykernel_launcher', run_name='__main__')"
    manager = AsyncIOLoopKernelManager(
        kernel_name=write_spec(
            "once", argv=["python3", "-c", code, "{connection_file}"], kernel_transport="ipc"
        )
    )
    manager.config.KernelRestarter.time_to_dead = 0.2
    told: list[str] = []
    try:
        await manager.start_kernel()
        manager.add_restart_callback(lambda: told.append("dead"), "dead")
        process = provisioner_of(manager).kernel.process
        assert process is not None
        cluster["host1"].run("kill", "-9", str(process.pid))
        await until(lambda: told == ["dead"])
        assert not await manager.is_alive()
        await asyncio.sleep(0.5)
        assert told == ["dead"]
    finally:
        marker.unlink(missing_ok=True)
        await manager.shutdown_kernel(now=True)


async def test_an_autorestart_survives_a_failure_that_passes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: a kernel that dies while its host is busy is lost, though the next attempt would do."""
    monkeypatch.setattr(jupyter_manager, "RETRY_PAUSES", (0.5, 0.5, 0.5, 0.5))
    code = "import os, sys, runpy\nif os.path.exists('/tmp/not-now'): sys.exit('not now')\n"
    code += "sys.argv[1:] = ['-f', sys.argv[1]]\nrunpy.run_module('ipykernel_launcher', run_name='__main__')"
    manager = AsyncIOLoopKernelManager(
        kernel_name=write_spec(
            "late", argv=["python3", "-c", code, "{connection_file}"], kernel_transport="ipc"
        )
    )
    manager.config.KernelRestarter.time_to_dead = 0.2
    await manager.start_kernel()
    marker = cluster["host1"].path("/tmp/not-now")
    try:
        marker.touch()
        process = provisioner_of(manager).kernel.process
        assert process is not None
        cluster["host1"].run("kill", "-9", str(process.pid))
        await until(lambda: provisioner_of(manager).kernel.poll() is not None)
        await asyncio.sleep(0.8)
        marker.unlink()
        await until(
            lambda: provisioner_of(manager).has_process and provisioner_of(manager).kernel.poll() is None
        )
        await asyncio.wait_for(
            asyncio.wrap_future(manager.ready) if not asyncio.isfuture(manager.ready) else manager.ready, 5
        )
    finally:
        marker.unlink(missing_ok=True)
        await manager.shutdown_kernel(now=True)


async def test_a_kernel_that_is_given_up_by_jupyter_is_forgotten_on_its_host(cluster: Cluster) -> None:
    """If it fails: hosts keep records, logs and a listener for kernels that nobody can reach any more."""
    manager = AsyncIOLoopKernelManager(kernel_name=write_spec())
    manager.config.KernelRestarter.update(time_to_dead=0.2, restart_limit=0)
    await manager.start_kernel()
    process = provisioner_of(manager).kernel.process
    assert process is not None
    cluster["host1"].run("kill", "-9", str(process.pid))
    await until(lambda: provisioner_of(manager).kernel.poll() == -9)
    await until(lambda: not [file for file in cluster["host1"].files() if manager.kernel_id in file])
    await manager.shutdown_kernel(now=True)


@needs_encryption
async def test_required_encryption_cannot_be_kept(cluster: Cluster) -> None:
    """If it fails: an administrator's requirement is ignored in silence."""
    with pytest.raises(RuntimeError, match="required"):
        await AsyncKernelManager(kernel_name=write_spec(), transport_encryption="required").start_kernel()


async def test_every_spec_can_come_here_by_default(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: the provisioner cannot be used without editing kernelspecs."""
    monkeypatch.setenv("JUPYTER_DEFAULT_PROVISIONER_NAME", "distributed-provisioner")
    monkeypatch.setenv("GP_REMOTE_HOSTS", "host2")
    monkeypatch.setenv("GP_REMOTE_PYTHON", sys.executable)
    from jupyter_client.provisioning.factory import KernelProvisionerFactory

    KernelProvisionerFactory.clear_instance()
    name = write_spec("plain", argv=["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    without_stanza(name)
    try:
        async with running(name) as (manager, client):
            assert host_of(manager) == "host2"
            assert await run(client, "print(1)") == "1"
    finally:
        KernelProvisionerFactory.clear_instance()


def without_stanza(name: str) -> None:
    path = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name, "kernel.json")
    spec = json.loads(path.read_text())
    del spec["metadata"]["kernel_provisioner"]
    path.write_text(json.dumps(spec))


async def test_a_slow_host_blocks_nobodys_loop(cluster: Cluster) -> None:
    """If it fails: one host that hangs freezes the whole server."""
    spec = write_spec(remote_hosts=["jovyan@host3"], connect_timeout=2)
    cluster["host3"].pause_sshd()
    longest, last = 0.0, time.perf_counter()
    task = asyncio.ensure_future(AsyncKernelManager(kernel_name=spec).start_kernel())
    try:
        while not task.done():
            await asyncio.sleep(0.01)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
    finally:
        cluster["host3"].resume_sshd()
    with pytest.raises(errors.NoHostAvailableError):
        await task
    assert longest < 0.5


async def test_polls_are_quick_while_a_kernel_runs_and_while_its_host_is_away(cluster: Cluster) -> None:
    """If it fails: a restarter that waits for an answer restarts kernels that were just shut down."""
    async with running(write_spec()) as (manager, _):
        provisioner = provisioner_of(manager)

        async def best() -> float:
            times = []
            for _ in range(300):
                start = time.perf_counter()
                assert await provisioner.poll() is None
                times.append(time.perf_counter() - start)
            return sorted(times)[150]

        assert await best() < 50e-6
        cluster["host1"].kill_sshd()
        try:
            assert await best() < 50e-6
        finally:
            cluster["host1"].start_sshd()


# --- Jupyter Server -----------------------------------------------------------------------------------------------------------------


class Server:
    """A real Jupyter Server, in a process of its own."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.log = directory / "server.log"
        self.token = uuid.uuid4().hex
        argv = [
            sys.executable,
            "-m",
            "jupyter_server",
            "--port=0",
            "--no-browser",
            f"--IdentityProvider.token={self.token}",
        ]
        argv += ["--allow-root", f"--ServerApp.root_dir={directory}", "--ServerApp.jpserver_extensions={}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv, stdout=log, stderr=log, env={**os.environ, **environment}, cwd=directory
            )
        self.url = self._wait_for_url()

    def _wait_for_url(self) -> str:
        pattern = Path(os.environ["JUPYTER_RUNTIME_DIR"])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            for file in pattern.glob(f"jpserver-{self.process.pid}.json"):
                # It is being written, or the server listens a moment later.
                with suppress(ValueError, urllib.error.URLError):
                    url = str(json.loads(file.read_text())["url"])
                    urllib.request.urlopen(url + "api", timeout=10).close()
                    return url
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"token {self.token}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def run(self, kernel_id: str, code: str) -> str:
        """Run code as a browser does; what it printed."""
        url = f"{self.url.replace('http', 'ws', 1)}api/kernels/{kernel_id}/channels?token={self.token}"
        connection = websocket.create_connection(url, timeout=30)
        try:
            header = {
                "msg_id": uuid.uuid4().hex,
                "msg_type": "execute_request",
                "username": "",
                "session": "s",
                "version": "5.3",
            }
            content = {
                "code": code,
                "silent": False,
                "store_history": False,
                "allow_stdin": False,
                "stop_on_error": True,
                "user_expressions": {},
            }
            message = {
                "header": header,
                "parent_header": {},
                "metadata": {},
                "content": content,
                "channel": "shell",
                "buffers": [],
            }
            connection.send(json.dumps(message))
            printed, awaited = "", {"execute_reply", "idle"}
            while awaited:
                got = json.loads(connection.recv())
                if got["parent_header"].get("msg_id") != header["msg_id"]:
                    continue
                if got["msg_type"] == "stream":
                    printed += got["content"]["text"]
                awaited -= {got["msg_type"], got["content"].get("execution_state", "")}
            return printed.strip()
        finally:
            connection.close()

    def terminate(self, seconds: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@pytest.fixture
def server(tmp_path: Path, alone: None) -> Iterator[Server]:
    running_server = Server(tmp_path)
    yield running_server
    if running_server.process.poll() is None:
        running_server.process.kill()
        running_server.process.wait()


def test_jupyter_server_runs_a_kernel_restarts_it_and_ends_clean(cluster: Cluster, server: Server) -> None:
    """If it fails: JupyterLab does not work, or the server's end leaves kernels behind."""
    body = {"path": "x.ipynb", "type": "notebook", "name": "x.ipynb", "kernel": {"name": write_spec()}}
    status, session = server.ask("POST", "api/sessions", body)
    assert status == 201, session
    kernel_id = session["kernel"]["id"]
    show = "import os, socket; print(socket.gethostname(), os.environ.get('JPY_SESSION_NAME', '').endswith('x.ipynb'))"
    assert server.run(kernel_id, show) == "host1 True"
    assert server.ask("POST", f"api/kernels/{kernel_id}/restart")[0] == 200
    assert server.run(kernel_id, "print(6 * 7)") == "42"
    assert server.ask("POST", f"api/kernels/{kernel_id}/interrupt")[0] == 204
    assert server.terminate() == 0
    assert not kernels_on(cluster["host1"])


def test_browsers_are_told_why_and_the_server_exits_after_failures(cluster: Cluster, server: Server) -> None:
    """If it fails: users see "Unhandled error", and administrators a server that never exits."""
    cases = [
        (
            write_spec("forbidden", authorized_users=["100%ann"], argv=["x"]),
            403,
            "User 'root' is not authorized to start this kernel",
        ),
        (
            write_spec("away", remote_hosts=["no-such-host.invalid"]),
            503,
            "no-such-host.invalid cannot be reached",
        ),
        (
            write_spec("missing", argv=["/no/100%such/program"]),
            500,
            "The kernel's program is not on host1: /no/100%such/program",
        ),
        (write_spec("wrong", remote_hosts=[]), 500, "remote_hosts is empty in kernel.json"),
    ]
    user = cases[0][2].replace("root", os.environ.get("USER") or "root") if os.getuid() else cases[0][2]
    for name, status, words in cases:
        expected = user if name == "forbidden" else words
        got, answer = server.ask("POST", "api/kernels", {"name": name})
        assert (got, answer["message"][: len(expected)]) == (status, expected)
        assert "%%" not in answer["message"]
        body = {"path": f"{name}.ipynb", "type": "notebook", "name": "", "kernel": {"name": name}}
        got, answer = server.ask("POST", "api/sessions", body)
        assert (got, answer["message"][: len(expected)]) == (500, expected)
        assert "%%" not in answer["message"]
    assert server.terminate(10) == 0


def test_a_hostile_kernel_id_by_rest_goes_nowhere(cluster: Cluster, server: Server) -> None:
    """If it fails: whoever may start a kernel may run commands as the server's user on hosts."""
    body = {
        "path": "x.ipynb",
        "type": "notebook",
        "name": "",
        "kernel": {"name": write_spec(), "id": "a b;touch /tmp/x;$(id)"},
    }
    status, answer = server.ask("POST", "api/sessions", body)
    assert status >= 400, answer
    assert not kernels_on(cluster["host1"])
    assert not cluster["host1"].path("/tmp/x").exists()
