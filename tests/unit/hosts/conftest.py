"""What tests of hosts get."""

from __future__ import annotations

import pytest

from tests.unit.hosts.launches import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
