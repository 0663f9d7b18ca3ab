"""How the successor of a server's process gets its kernels, and what it is told of them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from .driver import Bridge, ListenerError, changed_listener, lives, stub_argv, until

K = {"kernel_id": "k", "generation": 1}


def test_status_tells_what_a_successor_must_know_and_no_secret(home: Path, bridge: Bridge) -> None:
    """Whose kernel it is, whether that server is there, and its notes: without these nothing can be adopted, or the wrong ones are."""
    before = bridge.welcome["kernels"]
    bridge.launch(stub_argv(), annotations={"path": "a.ipynb"})
    other = Bridge(home, owner="other")
    [status] = other.request("list")["kernels"]
    assert before == []
    assert (status["owner"], status["client"], status["server_connected"]) == ("me", "c", True)
    assert status["annotations"] == {"path": "a.ipynb"}
    assert (status["relay"], status["execution_state"], status["state"]) == (None, "", "running")
    assert status["started"] > 1e9
    assert "the-signing-key" not in json.dumps(status)
    bridge.close()
    until(lambda: not other.request("list")["kernels"][0]["server_connected"])
    other.close()


def test_successor_adopts_the_kernel_with_its_key_events_and_lease(home: Path, bridge: Bridge) -> None:
    """Without the key nobody can speak with the kernel; without the lease it would be ended under its new server."""
    kernel = bridge.launch(stub_argv(), orphan_timeout=1)
    successor = Bridge(home, client="second")
    [status] = successor.request("adopt", kernels=[K])["kernels"]
    assert (status["key"], status["signature_scheme"]) == ("the-signing-key", "hmac-sha256")
    assert (status["encryption"], status["envelope"]) == (None, None)
    assert (status["ip"], status["ports"], status["client"]) == (kernel["ip"], kernel["ports"], "second")
    assert status["server_connected"]
    bridge.close()
    [again] = until(lambda: successor.request("attach", kernels=[K])["kernels"])
    assert again["state"] == "running"
    os.kill(kernel["pid"], signal.SIGTERM)
    assert successor.event()["event"] == "exited"
    successor.close()


def test_kernel_of_another_server_is_never_adopted(home: Path, bridge: Bridge) -> None:
    """Another server's kernel, its key and its lease are not for the taking; nor is a launch that was superseded."""
    bridge.launch(stub_argv())
    other = Bridge(home, owner="other")
    assert other.request("adopt", kernels=[K])["kernels"] == [{**K, "state": "unknown"}]
    wrong = {"kernel_id": "k", "generation": 7}
    assert bridge.request("adopt", kernels=[wrong])["kernels"] == [{**wrong, "state": "unknown"}]
    assert bridge.request("list")["kernels"][0]["client"] == "c"
    other.close()


def test_of_two_successors_only_the_quicker_one_gets_the_kernel(home: Path, bridge: Bridge) -> None:
    """Both saw that the kernel's server is gone, and asked at the same time: the kernel has one server, not two."""
    bridge.launch(stub_argv())
    wanted = {**K, "client": "c"}  # as both were told by `list`
    quicker, slower = Bridge(home, client="quicker"), Bridge(home, client="slower")
    [status] = quicker.request("adopt", kernels=[wanted])["kernels"]
    assert status["client"] == "quicker"
    assert slower.request("adopt", kernels=[wanted])["kernels"] == [{**wanted, "state": "unknown"}]
    assert slower.request("list")["kernels"][0]["client"] == "quicker"
    quicker.close()
    slower.close()


def test_hello_is_heard_on_this_owners_other_connections(home: Path, bridge: Bridge) -> None:
    """A line whose other end went without a word would count as a living server's until it is written to."""
    other = Bridge(home, owner="other")
    successor = Bridge(home, client="second")
    assert bridge.event() == {"event": "hello"}
    other.request("ping")
    successor.request("ping")
    assert other.events.empty()
    assert successor.events.empty()
    other.close()
    successor.close()


def test_a_new_listener_still_knows_what_the_old_one_was_told(home: Path, bridge: Bridge) -> None:
    """kill -9 of the listener must not make a kernel unadoptable."""
    bridge.launch(stub_argv(), annotations={"path": "a.ipynb", "x": 1})
    bridge.request("annotate", **K, annotations={"x": None, "session": "s"})
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    successor = Bridge(home, client="second")
    [status] = successor.welcome["kernels"]
    assert status["annotations"] == {"path": "a.ipynb", "session": "s"}
    assert (status["client"], status["server_connected"]) == ("c", False)
    [adopted] = successor.request("adopt", kernels=[K])["kernels"]
    assert adopted["key"] == "the-signing-key"
    successor.close()


def test_annotations_are_bounded(bridge: Bridge) -> None:
    """A server's mistake must not fill the host's disk or memory."""
    bridge.launch(stub_argv(), annotations={"kept": 1})
    for value in ("x" * 70_000, {"a": "é" * 20_000}):
        with pytest.raises(ListenerError, match="64 KB"):
            bridge.request("annotate", **K, annotations={"big": value})
    with pytest.raises(ListenerError, match="64 KB"):
        bridge.launch(stub_argv(), "k2", annotations={"big": "x" * 70_000})
    statuses = bridge.request("list")["kernels"]
    assert [status["annotations"] for status in statuses] == [{"kept": 1}]


def test_restart_keeps_the_annotations(bridge: Bridge) -> None:
    """A restarted kernel still belongs to its notebook."""
    bridge.launch(stub_argv(), annotations={"path": "a.ipynb", "x": 1})
    bridge.launch(stub_argv(), generation=2, annotations={"x": 2})
    [status] = bridge.request("list")["kernels"]
    assert status["annotations"] == {"path": "a.ipynb", "x": 2}


def test_how_a_kernel_ended_is_known_after_the_listener_was_killed(home: Path, bridge: Bridge) -> None:
    """The user is told the reason also when listener and kernel end one after the other."""
    kernel = bridge.launch(stub_argv())
    os.kill(kernel["pid"], signal.SIGSEGV)
    assert bridge.event()["detail"] == "killed by SIGSEGV"
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    successor = Bridge(home)
    [status] = successor.request("adopt", kernels=[K])["kernels"]
    assert (status["state"], status["code"], status["detail"]) == ("exited", -11, "killed by SIGSEGV")
    successor.close()


def test_launch_that_its_listener_did_not_live_to_see_leaves_nothing(home: Path, bridge: Bridge) -> None:
    """A process that nobody waits for any more would stay for ever: the next listener ends it."""
    bridge.send(
        "launch",
        **{**K, "argv": ["sleep", "300"], "key": "", "transport": "ipc", "launch_timeout": 60},
    )
    [pid] = until(lambda: [k["pid"] for k in bridge.request("list")["kernels"] if k["pid"]])
    until(lambda: list(Path(bridge.welcome["directory"]).glob("*/record")))
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    successor = Bridge(home)
    until(lambda: not lives(pid))
    until(lambda: not successor.request("list")["kernels"])
    successor.close()


# --- leases -----------------------------------------------------------------------------------------------------------------------


def test_adopted_kernel_lives_as_long_as_its_new_server(home: Path, bridge: Bridge) -> None:
    """The lease of the crashed process must not run on under its successor, nor must the kernel outlive both."""
    first, second = Bridge(home, client="first"), Bridge(home, client="second")
    kernel = first.launch(stub_argv(), orphan_timeout=0.8)
    first.close()
    [status] = second.request("adopt", kernels=[K])["kernels"]
    assert status["orphan_timeout"] == 0.8
    time.sleep(1.5)
    assert lives(kernel["pid"])
    second.close()
    until(lambda: not lives(kernel["pid"]), 5)


def test_kernel_without_a_lease_waits_for_its_server_for_ever(home: Path) -> None:
    """orphan_timeout = 0: who says never means it; a lease that has run out ends the exited kernel's leftovers, too."""
    with changed_listener(home, "housekeeping.IDLE_EXIT = 2"):  # so that it looks each half a second
        watcher, first = Bridge(home, owner="other"), Bridge(home, client="first")
        kernel = first.launch(stub_argv(), orphan_timeout=0)
        gone = first.launch(stub_argv(), "gone", orphan_timeout=0.5)
        os.kill(gone["pid"], signal.SIGKILL)
        first.event()
        first.close()
        until(lambda: [k["kernel_id"] for k in watcher.request("list")["kernels"]] == ["k"])
        time.sleep(1.5)
        assert lives(kernel["pid"])
        watcher.close()


def test_exited_kernel_does_not_stay_for_ever(home: Path) -> None:
    """Without a lease, too: a listener that has nothing but an exited kernel of a server that is gone must leave some day."""
    with changed_listener(home, "housekeeping.IDLE_EXIT = 2; housekeeping.EXITED_KEPT = 0.5"):
        watcher, first = Bridge(home, owner="other"), Bridge(home, client="first")
        kernel = first.launch(stub_argv(), orphan_timeout=0)
        os.kill(kernel["pid"], signal.SIGKILL)
        first.event()
        time.sleep(1.2)
        assert watcher.request("list")["kernels"], "its server is there"
        first.close()
        until(lambda: not watcher.request("list")["kernels"])
        watcher.close()


def test_lease_does_not_go_by_the_clock_on_the_wall(home: Path, tmp_path: Path) -> None:
    """A host whose clock is set right, by days, must not end kernels, nor keep orphans for days."""
    flags = {name: tmp_path / name for name in ("forth", "back")}
    change = (
        "import os, time; real = time.time; "
        f"time.time = lambda: real() + 864000 * (os.path.exists({str(flags['forth'])!r}) - os.path.exists({str(flags['back'])!r}))"
    )
    with changed_listener(home, change):
        watcher = Bridge(home, owner="other")
        first = Bridge(home, client="first")
        kernel = first.launch(stub_argv(), orphan_timeout=0.8)
        flags["forth"].touch()
        time.sleep(1)
        assert lives(kernel["pid"])
        flags["forth"].unlink()
        flags["back"].touch()
        first.close()
        time.sleep(0.4)
        assert lives(kernel["pid"])
        until(lambda: not watcher.request("list")["kernels"], 5)
        watcher.close()
