"""A host whose disk is full: told plainly, nothing left, and kernels that run go on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributed_provisioner.ssh import bootstrap

from .driver import Bridge, ListenerError, changed_listener, listener_home, lives, stub_argv, until
from .test_relays import At, ask, record_of, relays_of, zmq_argv

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="other platform: only root can mount a small disk")


@contextlib.contextmanager
def small_disk(directory: Path, kilobytes: int = 2048) -> Iterator[Path]:
    directory.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=700", "none", directory], check=True
    )
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def fill(directory: Path) -> Path:
    """Leave not one block."""
    path = directory / "fill"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home on a small disk of its own."""
    with small_disk(tmp_path / "home") as directory, listener_home(directory):
        yield directory


def test_first_connection_to_a_full_host_is_told_why(tmp_path: Path) -> None:
    """'The listener did not start' helps nobody; 'no space left' does."""
    with small_disk(tmp_path / "home", 64) as home:
        (home / ".local/state").mkdir(parents=True)
        (home / ".cache").mkdir()
        fill(home)
        marker = bootstrap.new_marker()
        done = subprocess.run(
            [sys.executable, *bootstrap.local_command(marker)[1:]], input=bootstrap.preface(), capture_output=True,
            env={"HOME": str(home), "PATH": os.defpath}, check=False,
        )  # fmt: skip
        told = json.loads(done.stdout.rpartition(marker.encode())[2])
        assert told["error"]["type"] == "setup"
        assert "No space left on device" in told["error"]["message"]


def test_launch_on_a_full_disk_says_so_and_leaves_nothing(home: Path, bridge: Bridge) -> None:
    """Full home or full /tmp: the user is told which, and no half of a kernel stays. With space again it works again."""
    directory = Path(bridge.welcome["directory"])
    with small_disk(directory, 64):
        for place in (home, directory):
            filled = fill(place)
            names = {path.name for path in directory.iterdir()}
            if place is directory:
                with pytest.raises(ListenerError, match="No space left on device") as caught:
                    bridge.launch(stub_argv(), relay=False)
                assert caught.value.kind == "resources"
                assert str(directory) in str(caught.value)
            else:
                kernel = bridge.launch(stub_argv("print('x' * 100000, flush=True)"), "full")
                assert lives(kernel["pid"])
                assert any("No space left on device" in note for note in kernel["notes"])
                bridge.request("forget", kernel_id="full", generation=1)
            assert bridge.request("list")["kernels"] == []
            assert {path.name for path in directory.iterdir()} <= names | {
                "s"
            }  # which the small disk has hidden
            filled.unlink()
        kernel = bridge.launch(stub_argv())
        assert lives(kernel["pid"])
        bridge.request("forget", kernel_id="k", generation=1)


def test_kernel_and_relay_go_on_when_the_disk_fills_up(home: Path, bridge: Bridge) -> None:
    """Hours of computation must not end because somebody else has filled the disk."""
    from .relaying import Server

    kernel = bridge.launch(zmq_argv(), relay=True)
    fill(home)
    server = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
    assert ask(server, b"publish", b"5")[1] == b"%d" % kernel["pid"]
    bridge.request("annotate", kernel_id="k", generation=1, annotations={"a": 1})  # its record lies in /tmp
    os.kill(record_of(bridge)["relay_pid"], 9)
    assert "was started again" in bridge.event()["text"]
    server.close()
    bridge.request("end", kernel_id="k", generation=1, grace=0)
    bridge.request("forget", kernel_id="k", generation=1)
    until(lambda: not relays_of(bridge))


def test_a_drained_state_that_cannot_be_kept_is_told(home: Path, bridge: Bridge) -> None:
    """Who drains a host must know when that will not last."""
    fill(home)
    with pytest.raises(ListenerError, match="No space left on device"):
        bridge.request("drain", on=True, reason="x")
    assert bridge.request("list")["listener"]["drained"] is False


def test_record_that_cannot_be_written_fails_the_launch(tmp_path: Path) -> None:
    """A kernel without a record would be lost with the listener: better none, and the reason."""
    with small_disk(tmp_path / "run", 24) as run, listener_home(tmp_path / "home") as home:
        change = f"import tempfile; listener.short_directory = lambda: tempfile.mkdtemp(dir={str(run)!r})"
        with changed_listener(home, change):
            bridge = Bridge(home)
            fill(run)
            with pytest.raises(ListenerError, match="No space left on device") as caught:
                bridge.launch(["sleep", "60", "{response_address}"])
            assert caught.value.kind == "resources"
            assert bridge.request("list")["kernels"] == []
            bridge.close()
