"""What tests of real kernels on real hosts begin with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.hosts import HostPool

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster


@pytest.fixture
def alone(isolated: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes and the health of hosts are the process's; each test begins anew. The tests may run as root."""
    HostPool._current = None
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")
