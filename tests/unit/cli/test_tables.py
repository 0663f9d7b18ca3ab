"""Tables look right at 80 columns and in a pipe, whatever is in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_provisioner.cli.tables import LEAST, columns_of, duration, memory, plain, table

words = st.text(max_size=40)


@given(st.lists(st.tuples(words, words, words), max_size=5), st.integers(30, 120))
def test_a_table_is_no_wider_than_the_terminal(rows: list[tuple[str, str, str]], width: int) -> None:
    """Lines would be folded, and columns could not be told apart."""
    lines = table(("ONE", "TWO", "THREE"), rows, flexible=("ONE", "TWO", "THREE"), width=width)
    assert len(lines) == len(rows) + 1
    assert all(columns_of(line) <= width for line in lines)
    assert all(line == line.rstrip() and "\n" not in line for line in lines)


@given(st.lists(st.tuples(words, words), max_size=5))
def test_nothing_is_cut_in_a_pipe_and_columns_begin_one_below_the_other(rows: list[tuple[str, str]]) -> None:
    """`| grep` would not find what is there."""
    lines = table(("ONE", "TWO"), rows, flexible=("ONE",))
    first = max(columns_of(plain(cell)) for cell in ("ONE", *(row[0] for row in rows)))
    for line, row in zip(lines[1:], rows, strict=True):
        assert line.endswith(plain(row[1]))
        assert columns_of(line) == first + 2 + columns_of(plain(row[1]))


def test_only_the_columns_that_may_be_cut_are_cut_and_the_widest_first() -> None:
    """An id or a pid would be shortened to something that is none."""
    lines = table(
        ("ID", "NAME", "HOST"), [("12345678", "n" * 30, "h" * 12)], flexible=("NAME", "HOST"), width=40
    )
    assert lines[1] == f"12345678  {'n' * 15}…  {'h' * 12}"
    narrow = table(
        ("ID", "NAME", "HOST"), [("12345678", "n" * 30, "h" * 12)], flexible=("NAME", "HOST"), width=5
    )
    assert narrow[1] == f"12345678  {'n' * (LEAST - 1)}…  {'h' * (LEAST - 1)}…"


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    """A kernel's name could clear the screen of whoever looks at it."""
    assert plain("a\x1b[2Jb\nc\u202e") == "a?[2Jb c?"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0, "0s"), (119.4, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (200_000, "2d")],
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    """A column would be wider than what it says."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, ""),
        (0, "0B"),
        (35 << 20, "35M"),
        (1023 << 20, "1.0G"),
        (16 << 30, "16G"),
        (3 << 40, "3.0T"),
        (5 << 50, "5120T"),
    ],
)
def test_sizes_are_short(count: int | None, text: str) -> None:
    """Kernels could not be compared at a glance."""
    assert memory(count) == text
