"""When the process ends, its connections do, and none begins again."""

from __future__ import annotations

import asyncio

import pytest

from distributed_provisioner.errors import ConnectionLostError
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.own_user import own_name
from distributed_provisioner.ssh import Connections, registry

from .conftest import Run


def test_a_closed_set_of_connections_gives_none(run: Run) -> None:
    """If it fails: work that is left over starts a second bridge while the process exits, and keeps it from that."""

    async def ask() -> None:
        connections = Connections.current()
        await connections.close()
        with pytest.raises(ConnectionLostError, match="this process is ending"):
            connections.get(HostAddress("localhost"), Login())

    run(ask())


def test_idle_connections_for_other_users_are_let_go(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: a gateway with impersonation keeps a line, a bridge and a sudo for each user whom it ever had."""
    local, own = HostAddress("localhost"), own_name()

    async def ask() -> None:
        connections = Connections.current()
        plain, idle, watched = (
            connections.get(local, Login(run_as=run_as, port=port))
            for run_as, port in ((None, 22), (own, 22), (own, 23))
        )
        for connection in (plain, idle, watched):
            await connection.connect()
        watch = watched.watch("k", 1, lambda event: None)
        connections.get(local, Login(port=24))
        assert idle.state == "connected", "it is idle for a moment only"
        monkeypatch.setattr(registry, "IDLE", 0.0)
        await idle.request("list")
        connections.get(local, Login(port=25))
        await asyncio.sleep(0.2)
        assert [each.state for each in (plain, idle, watched)] == ["connected", "closed", "connected"]
        again = connections.get(local, Login(run_as=own))
        assert again is not idle
        assert (await again.connect()).user == own
        watch.close()

    run(ask())
