"""Somebody deletes what a listener keeps: its record in the user's state, or the sockets of kernels whose relays are killed then."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from .driver import Bridge, lives, until
from .relaying import Server
from .test_relays import At, ask, record_of, relays_of, zmq_argv


def test_listener_whose_record_was_deleted_is_found(home: Path, bridge: Bridge) -> None:
    """If it fails: a second listener is started, which knows no kernels, so that the server takes living ones for dead."""
    kernel = bridge.launch(zmq_argv())
    for name in (".local", ".cache"):
        shutil.rmtree(home / name)
    again = Bridge(home)
    assert again.welcome["pid"] == bridge.welcome["pid"]
    assert [each["state"] for each in again.welcome["kernels"]] == ["running"]
    assert lives(kernel["pid"])
    again.close()


def test_listener_of_another_home_is_left_alone(home: Path, bridge: Bridge, tmp_path: Path) -> None:
    """If it fails: two homes of one user, as in tests and in containers, share a listener, and their kernels."""
    other = home / "other"
    other.mkdir()
    own = Bridge(other)
    assert own.welcome["pid"] != bridge.welcome["pid"]
    own.close()
    os.kill(own.welcome["pid"], signal.SIGTERM)
    until(lambda: not lives(own.welcome["pid"]))


def test_new_client_finds_a_kernel_whose_sockets_were_deleted(bridge: Bridge) -> None:
    """If it fails: after a cleaner of /tmp was there, a page that is reloaded waits for its kernel for ever."""
    kernel = bridge.launch(zmq_argv(), relay=True)
    server = Server(At(kernel["relay"])).connect()  # type: ignore[arg-type]
    try:
        ask(server, b"a")
        shutil.rmtree(bridge.welcome["directory"])
        for number, client in enumerate((b"second", b"third"), 2):
            server.send("shell", client, b"b")
            await_replies(server, number)
            assert server.on("shell")[-1][1] == b"%d" % kernel["pid"]
    finally:
        server.close()
    bridge.request("forget", kernel_id="k", generation=1)
    until(lambda: not relays_of(bridge))


def await_replies(server: Server, count: int) -> None:
    server.until(lambda: len(server.on("shell")) == count)


def test_relay_that_dies_at_its_start_has_one_successor(bridge: Bridge) -> None:
    """If it fails: two relays are started for one that ended, then four, and nobody ever ends the others."""
    kernel = bridge.launch(zmq_argv(), relay=True)
    obstacle = Path(kernel["relay"] + "~")  # where a relay makes its socket
    obstacle.mkdir()
    os.kill(record_of(bridge)["relay_pid"], signal.SIGKILL)
    until(lambda: "could not be started" in bridge.event()["text"])
    time.sleep(0.5)
    obstacle.rmdir()
    until(lambda: relays_of(bridge))
    time.sleep(1.5)
    assert relays_of(bridge) == [record_of(bridge)["relay_pid"]]
    bridge.request("forget", kernel_id="k", generation=1)
    until(lambda: not relays_of(bridge))
