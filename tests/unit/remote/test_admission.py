"""Kernels start in the order in which they were asked for, as many at once as the host has cores."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .driver import Bridge, ListenerError, changed_listener, launch_parameters, stub_argv, until

ONE = "admission.cores = lambda: 0; admission.SLOW = 30.0"
"""One start at a time."""


def slow(seconds: float) -> list[str]:
    """argv of a kernel that takes so long to start."""
    return ["/bin/sh", "-c", f'sleep {seconds}; exec "$@"', "sh", sys.executable, *stub_argv()[1:]]


@pytest.fixture
def one_at_a_time(home: Path) -> Iterator[Bridge]:
    with changed_listener(home, ONE):
        bridge = Bridge(home)
        yield bridge
        bridge.close()


def send(bridge: Bridge, name: str, argv: list[str], **parameters: float) -> int:
    return bridge.send("launch", **launch_parameters(argv, name, 1, **parameters))


def test_starts_have_their_turn_in_order_and_are_told_that_they_wait(one_at_a_time: Bridge) -> None:
    """If it fails: in a burst each kernel slows all others down, and nobody knows what a start waits for."""
    bridge = one_at_a_time
    numbers = [send(bridge, name, slow(0.5)) for name in ("a", "b", "c")]
    told = [bridge.event(), bridge.event()]
    assert [(event["kernel_id"], event["waiting"]) for event in told] == [("b", True), ("c", True)]
    assert "waits for its turn" in told[0]["text"]
    assert "1 wait before it" in told[1]["text"]
    replies = [bridge.reply(number) for number in numbers]
    assert replies[0]["phases"]["turn"] < 0.3 < replies[1]["phases"]["turn"] < replies[2]["phases"]["turn"]


def test_the_time_of_a_kernel_runs_from_its_turn(one_at_a_time: Bridge) -> None:
    """If it fails: the last kernels of a burst are given up while they have not even begun."""
    bridge = one_at_a_time
    numbers = [send(bridge, name, slow(1.2), launch_timeout=2.0) for name in ("a", "b", "c")]
    assert all(bridge.reply(number)["pid"] for number in numbers)


def test_one_that_is_cancelled_while_it_waits_leaves_its_place_to_others(one_at_a_time: Bridge) -> None:
    """If it fails: a start that nobody wants any more blocks the host for good, or takes the turn of another."""
    bridge = one_at_a_time
    first, second, third = (send(bridge, name, slow(0.7)) for name in ("a", "b", "c"))
    until(lambda: bridge.events.qsize() == 2)
    bridge.request("cancel", kernel_id="b", generation=1)
    with pytest.raises(ListenerError) as caught:
        bridge.reply(second)
    assert caught.value.kind == "cancelled"
    assert bridge.reply(first)["pid"]
    assert bridge.reply(third)["pid"]
    assert bridge.launch(stub_argv(), "d")["phases"]["turn"] < 0.3


def test_a_failed_start_leaves_its_place(one_at_a_time: Bridge) -> None:
    """If it fails: after a few kernels that do not start, none does."""
    bridge = one_at_a_time
    for name in ("a", "b"):
        with pytest.raises(ListenerError):
            bridge.launch(["/bin/false", "{connection_file}"], name)
    assert bridge.launch(stub_argv(), "c")["phases"]["turn"] < 0.3


def test_a_start_that_takes_long_does_not_hold_others_up(home: Path) -> None:
    """If it fails: one kernel that hangs, or a JVM, keeps everybody else's from starting."""
    with changed_listener(home, "admission.cores = lambda: 0; admission.SLOW = 0.5"):
        bridge = Bridge(home)
        hanging = send(bridge, "a", slow(6))
        began = time.monotonic()
        assert bridge.launch(stub_argv(), "b")["pid"]
        assert time.monotonic() - began < 4
        assert bridge.reply(hanging)["pid"]
        bridge.close()
