"""Forked kernels on real hosts, over SSH."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jupyter_client.manager import AsyncKernelManager
from tests.cluster.real_kernels import prefork_of, run, running, until, warm, write_spec

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster
    from distributed_provisioner.testing.processes import HostProcess

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone")]


def templates(host: Host) -> list[HostProcess]:
    return [p for p in host.processes() if "prefork_template" in p.command]


def proportional_memory(processes: list[HostProcess]) -> float:
    """MB of their own, and their parts of what they share."""
    total = 0
    for process in processes:
        text = Path(f"/proc/{process.outer_pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


async def test_a_kernel_over_ssh_is_a_fork_once_one_was_started() -> None:
    """If it fails: each notebook on the cluster waits for the same imports again. How fast it is, the guard of the benchmarks knows."""
    name = write_spec("forked")
    await warm(name)
    async with running(name) as (manager, client):
        assert prefork_of(manager) == {"used": True, "why": ""}
        assert await run(client, "print(6 * 7)") == "42"


@pytest.mark.skipif(
    not os.access("/proc/1/smaps_rollup", os.R_OK), reason="other platform: PSS cannot be read"
)
async def test_forked_kernels_share_their_memory(cluster: Cluster) -> None:
    """If it fails: a host has room for half as many idle notebooks."""
    host, memory = cluster["host1"], {}
    for each in templates(host):  # of other kinds, from other tests
        os.kill(each.outer_pid, signal.SIGKILL)
    await until(lambda: not templates(host))
    for prefork in (False, True):
        name = write_spec(f"prefork-{prefork}".lower(), prefork=prefork)
        if prefork:
            await warm(name)
        managers = [AsyncKernelManager(kernel_name=name) for _ in range(10)]
        for manager in managers:
            await manager.start_kernel()
            assert prefork_of(manager)["used"] is prefork
        await asyncio.sleep(1)
        kernels = [p for p in host.processes() if "launch_ipykernel" in p.command]
        assert len(kernels) == len(managers)
        memory[prefork] = proportional_memory([*kernels, *templates(host)])
        for manager in managers:
            await manager.shutdown_kernel(now=True)
    print(
        f"{len(managers)} kernels: cold {memory[False]:.0f} MB, forked, with the template {memory[True]:.0f} MB"
    )
    assert memory[True] < 0.75 * memory[False]


async def test_a_restart_is_a_fork_too() -> None:
    """If it fails: what is done most often takes as long as ever."""
    name = write_spec("restarted")
    await warm(name)
    async with running(name) as (manager, client):
        await run(client, "x = 1")
        await manager.restart_kernel(now=True)
        assert prefork_of(manager) == {"used": True, "why": ""}
        await client.wait_for_ready(timeout=30)
        assert await run(client, "print('x' in globals())") == "False"


async def test_kernels_survive_template_and_listener(cluster: Cluster) -> None:
    """If it fails: a process that only saves time takes people's work with it."""
    host, name = cluster["host1"], write_spec("surviving")
    await warm(name)
    async with running(name) as (manager, client):
        assert prefork_of(manager)["used"]
        for template in templates(host):
            os.kill(template.outer_pid, signal.SIGKILL)
        assert await run(client, "x = 3; print(x)") == "3"
        async with running(name) as (second, _):
            assert not prefork_of(second)["used"]
        await until(lambda: templates(host))
        listeners = [
            p for p in host.processes() if " serve " in p.command and p.pid == templates(host)[0].ppid
        ]
        os.kill(listeners[0].outer_pid, signal.SIGKILL)
        await until(lambda: not templates(host))
        assert await run(client, "print(x)") == "3"
        assert await manager.is_alive()


async def test_a_host_that_forwards_nothing_forks_as_well(cluster: Cluster) -> None:
    """If it fails: TCP kernels, and those with ports of their own, are never forked."""
    name = write_spec("tcp", kernel_transport="tcp")
    await warm(name)
    async with running(name) as (manager, client):
        assert prefork_of(manager)["used"]
        assert await run(client, "print(1)") == "1"
