"""Host applications that people start from a terminal or from a program of theirs: each runs its kernel on a host."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import TYPE_CHECKING, Any

import nbclient
import nbformat
import papermill
import pytest

from tests.applications.desk import JUPYTER, Desk
from tests.applications.server import JupyterServer
from tests.cluster.real_kernels import kernels_on
from tests.conftest import wait_until

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

HOSTS = ("host1", "host2", "host3")
WHERE = "import socket; print(socket.gethostname())"


@pytest.fixture(autouse=True)
def _no_kernel_stays(cluster: Cluster) -> Iterator[None]:
    """These applications end by themselves, and nobody else ends their kernels."""
    yield
    assert wait_until(lambda: not [command for host in cluster.hosts for command in kernels_on(host)])


def notebook(*cells: str) -> Any:
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "ssh_python", "display_name": "Python SSH", "language": "python"}},
    )


def printed(cell: Any) -> str:
    return "".join(output["text"] for output in cell.outputs if output["output_type"] == "stream").strip()


# --- JupyterLab ---------------------------------------------------------------------------------------------------------------


def test_jupyterlab_shows_the_kernelspec_and_opens_a_notebook(
    desk: Desk, start_server: Callable[..., JupyterServer]
) -> None:
    """If it fails: the launcher of JupyterLab has no tile, or the tile does not work."""
    lab = start_server(application="lab")
    spec = lab.request("GET", "/api/kernelspecs")[1]["kernelspecs"]["ssh_python"]
    assert spec["spec"]["display_name"] == "Python SSH"
    assert spec["spec"]["metadata"]["debugger"] is True
    logo = lab.get(spec["resources"]["logo-64x64"])
    assert logo == (desk.kernels / "ssh_python" / "logo-64x64.png").read_bytes()
    assert b"JupyterLab" in lab.get("/lab")
    body = {"kernel": {"name": "ssh_python"}, "name": "", "path": "n.ipynb", "type": "notebook"}
    status, session = lab.request("POST", "/api/sessions", body)
    assert status == 201, session
    with lab.channels(session["kernel"]["id"]) as channels:
        assert channels.run(WHERE) in HOSTS
    assert lab.stop() < 10


# --- jupyter console, run, execute ---------------------------------------------------------------------------------------------


TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Without a controlling terminal Ctrl-C is a character like others."""


class Terminal:
    """A program in a terminal, and what is on its screen."""

    def __init__(self, desk: Desk, *command: str) -> None:
        self._fd, inner = pty.openpty()
        ioctl(self._fd, TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            env=desk.environment({"TERM": "xterm"}),
            cwd=desk.directory,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)
        self._shown = ""

    def expect(self, pattern: str, seconds: float = 30) -> re.Match[str]:
        """Wait until the pattern shows up; what was before it is gone."""
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, self._shown)):
            ready, _, _ = select.select([self._fd], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise AssertionError(f"{pattern!r} is not in {self._shown!r}")
            text = os.read(self._fd, 65536).decode(errors="replace")
            self._shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        self._shown = self._shown[found.end() :]
        return found

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def terminal(desk: Desk, *command: str) -> Iterator[Terminal]:
    running = Terminal(desk, *command)
    try:
        yield running
    finally:
        running.close()
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGKILL)
            running.process.wait()


def test_jupyter_console_runs_cells_and_leaves_no_kernel(desk: Desk) -> None:
    """If it fails: `jupyter console --kernel ssh_python` hangs, cannot be interrupted, or leaves its kernel on the host."""
    with terminal(desk, *JUPYTER, "console", "--kernel", "ssh_python", "--simple-prompt") as console:
        console.expect(r"In \[1\]:")
        console.type("40 + 2\n")
        console.expect(r"Out\[1\]: *42")
        console.expect(r"In \[2\]:")
        time.sleep(1)  # nobody turns the console's loop meanwhile
        console.type("import time; print('be' + 'gun'); time.sleep(60)\n")
        console.expect("begun")
        console.type("\x03")
        console.expect("KeyboardInterrupt")
        console.expect(r"In \[3\]:")
        console.type("exit\n")
        assert console.process.wait(20) == 0


def test_jupyter_run_prints_what_a_script_prints(desk: Desk) -> None:
    """If it fails: `jupyter run script.py --kernel ssh_python` does not work, or takes a minute."""
    (desk.directory / "script.py").write_text(WHERE)
    begun = time.monotonic()
    done = desk.jupyter("run", "script.py", "--kernel", "ssh_python")
    assert done.stdout.strip() in HOSTS
    assert time.monotonic() - begun < 20


def test_jupyter_execute_runs_a_notebook_file(desk: Desk) -> None:
    """If it fails: notebooks cannot be run from cron or a Makefile."""
    path = desk.directory / "executed.ipynb"
    nbformat.write(notebook("kept = 20", f"{WHERE}; print(kept + 1)"), path)
    desk.jupyter("execute", "--inplace", path.name, "--kernel_name=ssh_python")
    host, number = printed(nbformat.read(path, 4).cells[1]).split()
    assert host in HOSTS
    assert number == "21"


# --- nbclient and papermill ------------------------------------------------------------------------------------------------------


def test_nbclient_runs_notebooks_and_tells_their_errors() -> None:
    """If it fails: nbconvert --execute, voila and book builders do not work."""
    good = notebook("kept = 20", f"{WHERE}; print(kept + 1)")
    nbclient.NotebookClient(good, timeout=30).execute()
    assert printed(good.cells[1]).split()[1] == "21"
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="ZeroDivisionError"):
        nbclient.NotebookClient(notebook("1 / 0"), timeout=30).execute()


def test_papermill_hands_parameters_over(desk: Desk) -> None:
    """If it fails: scheduled notebooks run with the wrong parameters, or not at all."""
    template = notebook("text = 'default'", f"{WHERE}; print(text)")
    template.cells[0].metadata["tags"] = ["parameters"]
    source, target = desk.directory / "template.ipynb", desk.directory / "result.ipynb"
    nbformat.write(template, source)
    hostile = "a'b\"c $(touch /tmp/hacked) % \\ ünï"
    papermill.execute_notebook(str(source), str(target), {"text": hostile}, progress_bar=False)
    host, text = printed(nbformat.read(target, 4).cells[2]).split(maxsplit=1)
    assert host in HOSTS
    assert text == hostile


def test_papermill_runs_from_a_terminal(desk: Desk) -> None:
    """If it fails: `papermill in.ipynb out.ipynb -k ssh_python` does not work."""
    nbformat.write(notebook("number = 1", "print(number + 1)"), desk.directory / "in.ipynb")
    python = JUPYTER[0]
    subprocess.run(
        [python, "-m", "papermill", "in.ipynb", "out.ipynb", "-k", "ssh_python", "-p", "number", "4", "--no-progress-bar"],
        env=desk.environment(), cwd=desk.directory, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert Path(desk.directory, "out.ipynb").exists()
