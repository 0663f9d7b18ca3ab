"""Name servers and file systems that hang: they stop nothing but what needs them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_provisioner.errors import HostUnreachableError

from .conftest import Get, Run


class HangingNameServer:
    """Answers nothing until it is let go; what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = threading.Event()

    def __call__(self, host: str, *args: object, **kwargs: object) -> list[object]:
        self.asked.append(host)
        self.answer.wait(60)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingNameServer]:
    hanging = HangingNameServer()
    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    yield hanging
    hanging.answer.set()


def test_a_name_server_that_hangs_delays_no_other_host(
    name_server: HangingNameServer, run: Run, get: Get, tmp_path: Path
) -> None:
    """Eight hosts of a dead domain in remote_hosts would stop the launches on all the others."""
    (tmp_path / "file").write_text("x")
    away = [get(f"away{number}.example", connect_timeout=15) for number in range(8)]
    here = get("localhost")

    async def both() -> tuple[float, float]:
        waiting = [asyncio.ensure_future(connection.connect()) for connection in away]
        while len(name_server.asked) < 8:  # noqa: ASYNC110 # threads count them
            await asyncio.sleep(0.02)
        start = time.monotonic()
        await here.connect()
        await here.ship(str(tmp_path))
        took = time.monotonic() - start
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        return took, time.monotonic() - start

    took, cancelled = run(both(), timeout=30)
    assert took < 4
    assert cancelled < 5


def test_what_waits_for_a_name_says_so(name_server: HangingNameServer, run: Run, get: Get) -> None:
    """ "Did not answer at all" sends people to the firewall, where nothing is wrong."""
    with pytest.raises(HostUnreachableError) as told:
        run(get("away.example", connect_timeout=0.5).connect())
    assert str(told.value) == (
        "away.example cannot be reached: its name away.example was not resolved within 0.5 s. "
        "Check the name server (`getent hosts away.example` should answer at once), or raise connect_timeout."
    )


def test_a_name_is_looked_up_once_at_a_time(name_server: HangingNameServer, run: Run, get: Get) -> None:
    """Each attempt of a reconnecting host would leave one more thread behind."""

    async def attempts() -> None:
        for seconds in (0.2, 0.3, 0.4):
            with pytest.raises(HostUnreachableError, match="was not resolved"):
                await connections[seconds].connect()

    connections = {seconds: get("away.example", connect_timeout=seconds) for seconds in (0.2, 0.3, 0.4)}
    run(attempts())
    assert name_server.asked == ["away.example"]


def test_a_command_of_the_configuration_that_hangs_is_told(
    run: Run, get: Get, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`Match exec` may ask a VPN that is down."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text('Match exec "sleep 2"\n Port 23\n')
    with pytest.raises(HostUnreachableError, match=r"ssh's configuration was not read within 0\.5 s"):
        run(get("192.0.2.1", connect_timeout=0.5).connect())


@pytest.mark.parametrize("what", ["getaddrinfo", "find_target", "read_bundle"])
def test_what_hangs_does_not_keep_the_process_from_ending(what: str, isolated: Path) -> None:
    """`jupyter run` would sit there for minutes after it is done."""
    code = f"""
import asyncio, socket, time
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh import Connections, shipping, transport

def hang(*args, **kwargs):
    time.sleep(60)

setattr({{"getaddrinfo": socket, "find_target": transport, "read_bundle": shipping}}["{what}"], "{what}", hang)

async def use():
    name = "localhost" if "{what}" == "read_bundle" else "away.example"
    found = Connections.current().get(HostAddress(name), Login(connect_timeout=0.5))
    try:
        await found.connect()
    except OSError:
        return
    await asyncio.wait([asyncio.ensure_future(found.ship("/tmp"))], timeout=0.5)

asyncio.run(IOThread.current().run(use()))
"""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False, env=os.environ
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 8
