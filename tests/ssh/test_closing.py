"""When the process ends, its connections do, and none begins again."""

from __future__ import annotations

import pytest

from distributed_provisioner.errors import ConnectionLostError
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh import Connections

from .conftest import Run


def test_a_closed_set_of_connections_gives_none(run: Run) -> None:
    """If it fails: work that is left over starts a second bridge while the process exits, and keeps it from that."""

    async def ask() -> None:
        connections = Connections.current()
        await connections.close()
        with pytest.raises(ConnectionLostError, match="this process is ending"):
            connections.get(HostAddress("localhost"), Login())

    run(ask())
