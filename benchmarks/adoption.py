"""How long a Jupyter Server takes to go on with the kernels of an earlier run that was killed, beyond a start without any."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks._command import Scale, main
from benchmarks._numbers import Spread
from benchmarks._report import Report, Row
from benchmarks._world import HOSTS, MUTE, World

TITLE = "a Jupyter Server that is started again after kill -9"
AT_ONCE = 10


async def measure(world: World, scale: Scale, report: Report) -> None:
    count, rounds = int(scale.pick(100, 12)), scale.rounds(7, 2)
    name = world.stub("mute_remote", HOSTS, MUTE)
    root = world.directory / "root"
    root.mkdir()
    await asyncio.to_thread(_measure, name, count, rounds, root, report)


def _measure(name: str, count: int, rounds: int, root: Path, report: Report) -> None:
    bare, full = [], []
    with server(root) as (start, process):
        bare.append(start.seconds)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda _: start.request("POST", "/api/kernels", {"name": name}), range(count)))
        kill(process)
    for turn in range(rounds):
        with server(root, "--DistributedProvisioner.adopt_kernels=False") as (start, process):
            bare.append(start.seconds)
            kill(process)
        with server(root) as (start, process):
            full.append(start.seconds)
            found = len(start.request("GET", "/api/kernels"))
            if found != count:
                raise RuntimeError(f"{found} of {count} kernels were found again")
            if turn == rounds - 1:
                process.send_signal(signal.SIGTERM)
                process.wait(120)
            kill(process)
    without = Spread.of(bare)
    more = Spread.of([seconds - without.median for seconds in full])
    detail = (
        f"a start has {Spread.of(full).median:.2f} s with them, {without.median:.2f} s without; n = {rounds}"
    )
    report.rows.append(
        Row.spread(f"{count} kernels on {len(HOSTS)} hosts, beyond a start without", more, "s", 3.0, detail)
    )
    report.notes.append(
        "Until the first HTTP answer, in which all kernels have to be. The kernels bind ZMQ sockets and sleep."
    )


class Start:
    """A server from its process's start to its first answer."""

    def __init__(self, process: subprocess.Popen[bytes], token: str, log: Path) -> None:
        self._token = token
        began = time.perf_counter()
        info = Path(os.environ["JUPYTER_RUNTIME_DIR"], f"jpserver-{process.pid}.json")
        while True:
            with contextlib.suppress(OSError, ValueError, urllib.error.URLError):
                self.url = str(json.loads(info.read_text())["url"]).rstrip("/")
                self.request("GET", "/api/kernels")
                break
            if process.poll() is not None or time.perf_counter() - began > 60:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.01)
        self.seconds = time.perf_counter() - began

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Authorization", f"token {self._token}")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or b"null")


@contextmanager
def server(root: Path, *options: str) -> Iterator[tuple[Start, subprocess.Popen[bytes]]]:
    token, log = secrets.token_hex(16), root / "server.log"
    fixed = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={root}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyter_core", "server", *fixed, *options],
            env={**os.environ, "JUPYTER_TOKEN": token}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield Start(process, token, log), process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


if __name__ == "__main__":
    sys.exit(main(only=Path(__file__).stem))
