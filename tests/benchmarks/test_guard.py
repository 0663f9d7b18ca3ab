"""The guard against becoming slow: that it passes, and that it can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks._command import exit_code
from benchmarks._numbers import Spread
from benchmarks._report import Report
from benchmarks.guard import ROOM, judged

ROOT = Path(__file__).parents[2]


class Measured:
    """Ratios that are measured one after the other."""

    def __init__(self, *ratios: float) -> None:
        self.left = list(ratios)

    async def __call__(self) -> Spread:
        return Spread.of([self.left.pop(0)])


@pytest.mark.cluster
@pytest.mark.slow
def test_nothing_has_become_much_slower_than_a_local_kernel() -> None:
    """A fork, a cold launch, a cell, bulk output, a burst's stall or a poll takes far more than its budget, and only users notice."""
    check = [sys.executable, "-m", "distributed_provisioner.testing", "check"]
    done = subprocess.run(check, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "guard"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("| yes |") == 6


async def test_a_ratio_over_its_limit_twice_fails_the_guard() -> None:
    """A guard that cannot fail guards nothing."""
    report = Report("guard", "", "")
    report.rows.append(await judged("launch", Measured(3.0, 2.5), budget=1.0))
    assert report.rows[0].value == 2.5
    assert report.rows[0].budget == ROOM
    assert exit_code(report) == 1


async def test_a_ratio_over_its_limit_once_is_noise() -> None:
    """CI fails whenever another program takes the machine for a moment."""
    report = Report("guard", "", "")
    report.rows.append(await judged("launch", Measured(3.0, 1.1), budget=1.0))
    assert exit_code(report) == 0


async def test_a_missed_budget_of_a_plain_benchmark_is_no_failure() -> None:
    """A benchmark's exit code says that it could not be measured, where it only was slow."""
    report = Report("launch", "", "")
    report.rows.append(await judged("launch", Measured(3.0, 2.5), budget=1.0))
    assert exit_code(report) == 0
