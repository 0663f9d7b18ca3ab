"""What tests of faults begin and end with: hosts that are well, and nothing left on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.hosts import HostPool
from tests.conftest import kill, wait_until
from tests.faults.work import left_on

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster


@pytest.fixture(autouse=True)
def alone(isolated: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins with hosts that are well, and leaves neither kernels nor relays on them."""
    HostPool._current = None
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")
    monkeypatch.setenv("GP_KEEPALIVE_INTERVAL", "1")
    yield
    mend(cluster)
    left: list[str] = []

    def clean() -> bool:
        left[:] = left_on(cluster)
        return not left

    if not wait_until(clean, 15):
        for host in cluster.hosts:
            for process in host.processes():  # so that the next test is not blamed
                kill(process.outer_pid)
        pytest.fail("left behind: " + "; ".join(left))


def mend(cluster: Cluster) -> None:
    """End all faults."""
    for host in cluster.hosts:
        if not host.is_on:
            host.boot()
        host.heal()
        host.resume_sshd()
        host.start_sshd()
        for place in ("/tmp", "/"):
            with contextlib.suppress(Exception):
                host.free_disk(place)
