"""The simulation of large clusters: stubs that the real server cannot tell from hosts, and arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks._numbers import line_through
from benchmarks.scale import one_size, point, rows


def test_stub_kernels_start_answer_and_end_through_the_real_server() -> None:
    """The figures on the page are those of something that does not work."""
    found = one_size(kernels=6, hosts=3, idle=0)
    assert found.failures == []
    five_sockets_and_jupyters_own = found.handles["launched"] - found.handles["connected"]
    assert 6 * 5 <= five_sockets_and_jupyters_own <= 6 * 9 + 10
    assert found.handles["ended"] <= found.handles["connected"] + 10
    assert set(found.reserve) == {"round-robin", "least-connection"}
    assert point(found)["launches per second"] > 0
    assert rows([found, replace(found, kernels=12, hosts=6)])[0].met


def test_a_line_goes_through_its_points() -> None:
    """The page calls a curve linear that is none."""
    straight = line_through([1, 2, 3], [5, 7, 9])
    assert (straight.slope, straight.intercept, straight.r2) == pytest.approx((2, 3, 1))
    assert line_through([1, 2, 3, 4], [1, 4, 9, 16]).r2 < 0.99
