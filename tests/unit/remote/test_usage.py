"""What `list` tells of the use of memory and processors."""

from __future__ import annotations

import os

from .driver import Bridge, stub_argv, until

BUSY = """
import os, time
held = bytearray(os.urandom(1 << 20) * 60)
if os.fork() == 0:
    own = bytearray(os.urandom(1 << 20) * 40)
    while time.process_time() < 0.5: pass
    print("<<ready>>", flush=True)
"""


def test_usage_counts_the_whole_tree_of_a_kernel(bridge: Bridge) -> None:
    """A kernel's children are what eats memory and time; shared pages count once."""
    bridge.launch(stub_argv(BUSY))
    bridge.launch(stub_argv(), "quiet")
    until(lambda: "<<ready>>" in bridge.request("log", kernel_id="k")["text"])
    busy, quiet = bridge.request("list", usage=True)["kernels"]
    assert busy["processes"] == 2
    assert 100 << 20 <= busy["memory_bytes"] < 140 << 20
    assert 0.5 <= busy["cpu_seconds"] < 5
    assert quiet["processes"] == 1
    assert quiet["memory_bytes"] < 30 << 20
    assert "memory_bytes" not in bridge.request("list")["kernels"][0]


def test_list_tells_about_the_host(bridge: Bridge) -> None:
    """Who looks for a free host must see load and memory, and whether it is drained."""
    told = bridge.request("list")["listener"]
    assert told["pid"] == bridge.welcome["pid"]
    assert told["cores"] == len(os.sched_getaffinity(0))
    assert len(told["load"]) == 3
    assert 0 < told["memory_available"] < told["memory_total"]
    assert (told["drained"], told["drain_reason"]) == (False, "")
    assert told["hostname"] == os.uname().nodename
    assert told["started"] > 1e9
