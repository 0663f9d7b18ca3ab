"""A home with a listener of its own, and a connection to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .driver import Bridge, listener_home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with listener_home(tmp_path / "home") as directory:
        yield directory


@pytest.fixture
def bridge(home: Path) -> Iterator[Bridge]:
    connection = Bridge(home)
    yield connection
    connection.close()
