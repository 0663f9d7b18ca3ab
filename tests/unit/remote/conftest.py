"""A home with a listener of its own, a connection to it, and launches over that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .driver import Bridge, listener_home
from .forks import Launches, write


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with listener_home(tmp_path / "home") as directory:
        yield directory


@pytest.fixture
def bridge(home: Path) -> Iterator[Bridge]:
    connection = Bridge(home)
    yield connection
    connection.close()


@pytest.fixture
def launches(bridge: Bridge) -> Launches:
    return Launches(bridge)


@pytest.fixture
def library(tmp_path: Path, launches: Launches) -> Path:
    """A directory on the kernels' PYTHONPATH, with a module `mine` that is preloaded."""
    directory = tmp_path / "library"
    directory.mkdir()
    write(directory / "mine.py", "x = 1")
    launches.parameters.update(spec_env={"PYTHONPATH": str(directory)}, preload=["mine"])
    return directory
