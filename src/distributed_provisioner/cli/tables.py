"""Tables for people: aligned text, as wide as it needs where it is piped, no wider than the terminal where there is one."""

from __future__ import annotations

import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence

GAP = "  "
LEAST = 6
"""Columns that a cell keeps when its table is too wide."""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    flexible: Sequence[str] = (),
    width: int | None = None,
) -> list[str]:
    """Lines of equal columns, the last one unpadded. Where they are wider than `width`, the widest of the `flexible` columns are cut."""
    cells = [tuple(map(plain, row)) for row in (head, *rows)]
    widths = [max(map(columns_of, column)) for column in zip(*cells, strict=True)]
    while width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        candidates = [n for n, name in enumerate(head) if name in flexible and widths[n] > LEAST]
        if not candidates:
            break
        widths[max(candidates, key=lambda n: widths[n])] -= 1
    return [
        GAP.join(_fitted(cell, size) for cell, size in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def terminal_width() -> int | None:
    """Columns of the terminal that is written to; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def plain(text: str) -> str:
    """On one line, without what a terminal would obey."""
    return (
        re.sub(r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else "?" for c in text)).strip()
        or "-"
    )


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _fitted(text: str, size: int) -> str:
    if columns_of(text) > size:
        while columns_of(text) > size - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (size - columns_of(text))


def duration(seconds: float | None) -> str:
    """`8s`, `5m`, `3h`, `12d`; nothing for None."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.0f}s"


def memory(count: int | None) -> str:
    """`80B`, `512K`, `35M`, `1.2G`: powers of 1024; nothing for None."""
    if count is None:
        return ""
    size = float(count)
    for unit in "BKMGT":
        if size < 1000 or unit == "T":
            break
        size /= 1024
    return f"{size:.1f}{unit}" if size < 10 and unit in "GT" else f"{size:.0f}{unit}"
