"""The page that says what survives what names a test for each row, and every test of a fault is on it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "what-survives-what.md"
LINK = re.compile(r"\[(test_\w+)\]\((\S+?\.py)\)")


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def rows() -> list[str]:
    """The rows of the page's tables, without their heads."""
    lines = PAGE.read_text().splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| what happens")]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip()[:50])
def test_each_row_names_a_test_that_there_is(row: str) -> None:
    """If it fails: the page promises what nobody looks at any more."""
    named = LINK.findall(row)
    assert named, row
    for name, path in named:
        assert name in names_in((PAGE.parent / path).resolve()), f"{path} has no {name}"


def test_each_fault_that_is_made_is_on_the_page() -> None:
    """If it fails: something is survived, and nobody is told."""
    named = {name for name, _ in LINK.findall(PAGE.read_text())}
    assert len(rows()) > 25
    for path in (ROOT / "tests" / "faults").glob("test_*.py"):
        assert names_in(path) <= named, path.name
