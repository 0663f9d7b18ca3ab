"""A Jupyter Server as a process of its own, and what browsers do with it: REST and websockets."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import websocket

from tests.applications.desk import JUPYTER, Desk

UNUSED_EXTENSIONS = ("jupyter_lsp", "jupyterlab", "notebook_shim")
"""Each costs time at every start; that nothing is amiss beside them is for the tests with a browser."""


class JupyterServer:
    """Runs from construction to `stop()`. `options` are those of its command line.

    Args:
        application: the command: `server` or `lab`.
        extra: added to its environment.
        root_dir: where its notebooks are; the desk if not given.
    """

    def __init__(
        self,
        desk: Desk,
        *options: str,
        application: str = "server",
        extra: Mapping[str, str] | None = None,
        root_dir: Path | None = None,
    ) -> None:
        self._token = secrets.token_hex(16)
        self._log_path = desk.directory / f"{application}-{uuid.uuid4().hex[:8]}.log"
        fixed = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={free_port()}"]
        fixed += ["--log-level=DEBUG"]
        if application == "server":
            fixed += [f"--ServerApp.jpserver_extensions={dict.fromkeys(UNUSED_EXTENSIONS, False)}"]
        fixed += [f"--ServerApp.root_dir={root_dir or desk.directory}", "--KernelRestarter.time_to_dead=0.5"]
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*JUPYTER, application, *fixed, *options],
                env=desk.environment({"JUPYTER_TOKEN": self._token, **(extra or {})}),
                cwd=desk.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._desk = desk
        self.url = self._wait_for_url()

    def _wait_for_url(self, seconds: float = 40) -> str:
        info = self._desk.directory / "runtime" / f"jpserver-{self.process.pid}.json"
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError, urllib.error.URLError):
                self.url = str(json.loads(info.read_text())["url"]).rstrip("/")
                if self.request("GET", "/api/status")[0] == 200:
                    return self.url
            time.sleep(0.05)
        raise AssertionError(f"the server did not start:\n{self.log()}")

    def log(self) -> str:
        """All that it wrote."""
        return self._log_path.read_text(errors="replace")

    def stop(self, seconds: float = 15) -> float:
        """SIGTERM; how long its orderly exit took. It is killed, and the test fails, when that is more than `seconds`."""
        begun = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(
                    f"no exit within {seconds:g} s of SIGTERM:\n{self.log()[-3000:]}"
                ) from None
        return time.monotonic() - begun

    # --- REST -----------------------------------------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: float = 60
    ) -> tuple[int, Any]:
        """Status and JSON body of the answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Authorization", f"token {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, _json(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json(error.read())

    def get(self, path: str) -> bytes:
        """What a browser gets to see at a path."""
        request = urllib.request.Request(self.url + path)
        request.add_header("Authorization", f"token {self._token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def start_kernel(self, name: str = "ssh_python") -> str:
        """`POST /api/kernels`; the kernel's id."""
        status, body = self.request("POST", "/api/kernels", {"name": name})
        assert status == 201, body
        return str(body["id"])

    @contextlib.contextmanager
    def kernel(self, name: str = "ssh_python") -> Iterator[tuple[str, Channels]]:
        """A kernel of its own and a websocket to it; deleted afterwards."""
        kernel_id = self.start_kernel(name)
        try:
            with self.channels(kernel_id) as channels:
                yield kernel_id, channels
        finally:
            assert self.request("DELETE", f"/api/kernels/{kernel_id}")[0] == 204

    @contextlib.contextmanager
    def channels(self, kernel_id: str) -> Iterator[Channels]:
        """A websocket to a kernel, as a browser opens one."""
        url = f"{self.url.replace('http', 'ws', 1)}/api/kernels/{kernel_id}/channels"
        connection = websocket.create_connection(
            url, header=[f"Authorization: token {self._token}"], timeout=30
        )
        try:
            yield Channels(connection)
        finally:
            connection.close()


class Channels:
    """The messages of one websocket."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._session = uuid.uuid4().hex

    def send(self, kind: str, content: Mapping[str, Any], channel: str = "shell") -> str:
        """Send a request; its id."""
        header = {
            "msg_id": uuid.uuid4().hex, "msg_type": kind, "session": self._session,
            "username": "", "date": "", "version": "5.3",
        }  # fmt: skip
        message = {
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
            "channel": channel,
        }
        self._connection.send(json.dumps({**message, "buffers": []}))
        return header["msg_id"]

    def execute(self, code: str) -> str:
        """Ask for a cell to be run; the id of the request."""
        return self.send(
            "execute_request",
            {
                "code": code,
                "silent": False,
                "store_history": True,
                "allow_stdin": False,
                "stop_on_error": True,
            },
        )

    def receive(self, until: float | None = None) -> dict[str, Any]:
        """The next message, which has to come before `time.monotonic()` is `until`, else within 30 seconds."""
        until = until or time.monotonic() + 30
        self._connection.settimeout(0.5)  # of silence; the server's pings are none
        while time.monotonic() < until:
            with contextlib.suppress(websocket.WebSocketTimeoutException):
                message: dict[str, Any] = json.loads(self._connection.recv())
                return message
        raise TimeoutError("what was waited for did not come")

    def finish(self, request: str, seconds: float = 30) -> str:
        """What a cell printed, or the name of the error that it ended with."""
        printed, replied, idle = "", "", False
        until = time.monotonic() + seconds
        while not (replied and idle):
            message = self.receive(until)
            kind, content = message["header"]["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != request:
                continue
            if kind == "stream":
                printed += content["text"]
            elif kind == "execute_reply":
                replied = content.get("ename") or content["status"]
            elif kind == "status":
                idle = content["execution_state"] == "idle"
        return printed.strip() if replied == "ok" else replied

    def run(self, code: str, seconds: float = 30) -> str:
        """Run a cell to its end."""
        return self.finish(self.execute(code), seconds)

    def until_printed(self, text: str) -> None:
        """Wait until a cell has printed the text."""
        while text not in str(self.receive()["content"].get("text", "")):
            pass

    def until_state(self, state: str, seconds: float = 30) -> None:
        """Wait until the kernel is said to be in a state."""
        until = time.monotonic() + seconds
        while self.receive(until)["content"].get("execution_state") != state:
            pass


def free_port() -> int:
    """A port for a server that would tell 0 if asked for any (jupyter_server 2.14 does); if it is taken meanwhile, the next one does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _json(body: bytes) -> Any:
    return json.loads(body) if body else None
