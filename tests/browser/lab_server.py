"""JupyterLab at a fixed port, which can be killed and started again with the same configuration."""

from __future__ import annotations

import contextlib
import json
import random
import secrets
import signal
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Any

from tests.applications.desk import JUPYTER, Desk
from tests.applications.server import JupyterServer

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class LabServer(JupyterServer):
    """`start()`, `kill()`, `start()` …; pages that stay open find the same URL and token again."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._token = secrets.token_hex(16)
        self._log_path = desk.directory / f"lab-{uuid.uuid4().hex[:8]}.log"
        self._port = _free_port()
        self.start()

    def start(self) -> None:
        """Start it, unless it runs; returns when it answers."""
        if self.is_running:
            return
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": self._port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": self._desk.directory,
            "LabApp.expose_app_in_browser": True,
            "KernelRestarter.time_to_dead": 0.5,
            "LanguageServerManager.autodetect": False,  # it takes a second of every start
        }
        flags = ["--no-browser", "--allow-root", "--log-level=DEBUG"]
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*JUPYTER, "lab", *flags, *(f"--{name}={value}" for name, value in options.items())],
                env=self._desk.environment({"JUPYTER_TOKEN": self._token}),
                cwd=self._desk.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.url = self._wait_for_url()

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return "process" in self.__dict__ and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL: no kernel is told, no file is removed."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def address(self, path: str) -> str:
        """The URL of a page, for a browser that was never here."""
        return f"{self.url}{path}?token={self._token}"

    def write_notebook(self, name: str, kernel: str, *cells: str) -> None:
        """Write a notebook that has never been run."""
        body = {
            "cells": [
                {
                    "cell_type": "code", "id": uuid.uuid4().hex[:8], "metadata": {}, "source": source,
                    "outputs": [], "execution_count": None,
                }
                for source in cells
            ],
            "metadata": {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }  # fmt: skip
        (self._desk.directory / name).write_text(json.dumps(body))

    def sessions(self) -> list[dict[str, Any]]:
        """What Jupyter Server knows of open notebooks."""
        status, body = self.request("GET", "/api/sessions")
        assert status == 200, body
        return list(body)

    def end_kernels(self) -> None:
        """Shut down everything that runs."""
        for session in self.sessions():
            self.request("DELETE", f"/api/sessions/{session['id']}")
        for kernel in self.request("GET", "/api/kernels")[1]:
            self.request("DELETE", f"/api/kernels/{kernel['id']}")


def _free_port() -> int:
    """A port on loopback that nobody takes while the server is down: outgoing connections get others."""
    low = 32768
    with contextlib.suppress(OSError):
        low = int(EPHEMERAL.read_text().split()[0])
    for port in random.sample(range(max(1024, low - 12000), low), 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port on loopback")
