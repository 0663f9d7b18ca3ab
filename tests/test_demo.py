"""The first ten minutes: the demo runs real work on all hosts, and leaves nothing, also when it is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_provisioner.testing import marked

ROOT = Path(__file__).parents[1]
DEMO = [sys.executable, str(ROOT / "examples" / "demo.py")]


@pytest.fixture(autouse=True)
def own_temporary_directory(monkeypatch: pytest.MonkeyPatch, isolated: Path) -> Path:
    """Where the demo's files are, to see that none stays; short, since sockets lie in it."""
    directory = Path(os.environ["JUPYTER_DATA_DIR"]).parent / "t"
    directory.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setenv("COLUMNS", "200")
    return directory


def hosts_processes() -> list[str]:
    """Processes that an embedded cluster of another process has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if marked.VARIABLE.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.fixture(autouse=True)
def no_socket_directory_left() -> Iterator[None]:
    """The hosts' listeners keep their sockets in /tmp, whatever TMPDIR says: their paths must be short."""
    before = set(Path("/tmp").glob("dp-*"))
    yield
    assert set(Path("/tmp").glob("dp-*")) <= before


def nothing_left(directory: Path) -> bool:
    until = time.monotonic() + 5
    while hosts_processes() and time.monotonic() < until:
        time.sleep(0.1)
    assert not hosts_processes()
    assert not list(directory.iterdir())
    return True


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_demo_runs_a_notebook_on_each_host_twice_in_a_row(own_temporary_directory: Path) -> None:
    """`./run demo` is the first thing that anybody sees: it works, and works again."""
    for _ in range(2):
        done = subprocess.run([*DEMO, "notebook"], capture_output=True, text=True, check=False, timeout=140)
        assert done.returncode == 0, done.stdout + done.stderr
        for word in ("host1", "host2", "host3", "connect", "ready", "best of"):
            assert word in done.stdout
        assert "Traceback" not in done.stderr
        assert nothing_left(own_temporary_directory)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2.0, 2.5, 3.0, 6.0])
def test_demo_ends_clean_when_it_is_interrupted(own_temporary_directory: Path, seconds: float) -> None:
    """Somebody who presses Ctrl-C, while hosts start, kernels start, or cells run, finds nothing left."""
    with subprocess.Popen(
        [*DEMO, "notebook"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as demo:
        time.sleep(seconds)
        os.killpg(demo.pid, signal.SIGINT)
        said, complained = demo.communicate(timeout=40)
    assert demo.returncode == 130, said + complained
    assert "Traceback" not in complained
    assert nothing_left(own_temporary_directory)


@pytest.mark.slow
def test_lab_answers_and_ends_clean(own_temporary_directory: Path) -> None:
    """`./run lab` prints a URL that works, offers the kernel, and leaves nothing after Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*DEMO, "lab", f"--ServerApp.port={port}", "--IdentityProvider.token=secret"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as demo:
        try:
            kernelspecs = get(f"http://127.0.0.1:{port}/api/kernelspecs?token=secret")
        finally:
            os.killpg(demo.pid, signal.SIGINT)
            said = demo.communicate(timeout=40)[0]
    assert f"http://127.0.0.1:{port}/lab/tree/digits.ipynb?token=" in said
    assert '"ssh_python"' in kernelspecs
    assert '"python3"' not in kernelspecs
    assert demo.returncode == 130, said
    assert "Traceback" not in said
    assert nothing_left(own_temporary_directory)


def get(url: str) -> str:
    """What the server answers, once it does."""
    until = time.monotonic() + 40
    while True:
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
