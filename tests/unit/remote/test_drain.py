"""A drained host takes no new kernels and keeps those that it has."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from .driver import Bridge, ListenerError, changed_listener, lives, stub_argv


def test_drained_host_takes_no_new_kernel_and_keeps_and_restarts_the_old(home: Path, bridge: Bridge) -> None:
    """An operator who empties a host must not end work on it, nor get more."""
    kernel = bridge.launch(stub_argv())
    other = Bridge(home, owner="other")
    assert bridge.request("drain", on=True, reason="new disk") == {"drained": True}
    for each in (bridge, other):
        assert each.event() == {"event": "drained", "drained": True, "reason": "new disk"}
    with pytest.raises(ListenerError, match="takes no new kernels: new disk") as caught:
        other.launch(stub_argv(), "k2")
    assert caught.value.kind == "drained"
    assert lives(kernel["pid"])
    assert bridge.launch(stub_argv(), generation=2)["pid"] != kernel["pid"]
    assert bridge.request("drain", on=False) == {"drained": False}
    assert other.event() == {"event": "drained", "drained": False, "reason": ""}
    assert other.launch(stub_argv(), "k2")["pid"]
    other.close()


def test_drained_host_stays_so_for_its_next_listener(home: Path, bridge: Bridge) -> None:
    """A reboot ends the listener and changes the host's identity: neither may undo what an operator said."""
    bridge.request("drain", on=True, reason="new disk")
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    [state] = home.glob(".local/state/distributed-provisioner/*/listener-1.json")
    state.parent.rename(state.parent.with_name("an-earlier-boot"))
    again = Bridge(home)
    assert (again.welcome["drained"], again.welcome["drain_reason"]) == (True, "new disk")
    assert again.request("list")["listener"]["drained"] is True
    again.request("drain", on=False)
    again.close()


def test_host_that_root_drains_is_drained_for_all(home: Path, tmp_path: Path) -> None:
    """One file empties a host, whoever has a listener there; a user cannot take that back."""
    system = tmp_path / "etc"
    system.mkdir()
    change = f"places.Places.SYSTEM = {str(system)!r}"
    with changed_listener(home, change) as pid:
        bridge = Bridge(home)
        assert bridge.welcome["pid"] == pid
        assert bridge.welcome["drained"] is False
        (system / "drained").write_text("moves on Friday\n")
        bridge.request("ping")
        assert bridge.event() == {"event": "drained", "drained": True, "reason": "moves on Friday"}
        assert bridge.request("drain", on=False) == {"drained": True}
        with pytest.raises(ListenerError, match="moves on Friday"):
            bridge.launch(stub_argv())
        (system / "drained").unlink()
        assert bridge.launch(stub_argv())["pid"]
        bridge.close()
