"""Medians, spreads, and ratios of what was measured in turn."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The middle of a sample: its median between its quartiles."""

    low: float
    median: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        sample = sorted(values)
        if len(sample) < 2:
            return cls(sample[0], sample[0], sample[0], 1)
        low, middle, high = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(low, middle, high, len(sample))


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ratios of values that were measured one after the other, so that both met the same machine."""
    return Spread.of(a / b for a, b in zip(ours, theirs, strict=True))


def paired_differences(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    return Spread.of(a - b for a, b in zip(ours, theirs, strict=True))


def in_turn(count: int, turn: int) -> list[int]:
    """0 … count-1, beginning with another one each turn, so that nobody always comes after the same neighbor."""
    return [(turn + number) % count for number in range(count)]


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


@dataclass(frozen=True)
class Line:
    """A straight line through points, and how well it goes through them."""

    slope: float
    intercept: float
    r2: float


def line_through(x: Sequence[float], y: Sequence[float]) -> Line:
    """By least squares."""
    slope, intercept = statistics.linear_regression(x, y)
    mean = statistics.fmean(y)
    rest = sum((b - slope * a - intercept) ** 2 for a, b in zip(x, y, strict=True))
    whole = sum((b - mean) ** 2 for b in y)
    return Line(slope, intercept, 1.0 if whole == 0 else 1 - rest / whole)
