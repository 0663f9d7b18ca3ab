"""Kernels below Spark in YARN's client mode: real clients, application masters and executors, on a stand-in for YARN itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from jupyter_client.manager import AsyncKernelManager

from tests.applications.desk import Desk
from tests.cluster.real_kernels import host_of, run, running, until

from .spark_cells import EXECUTORS, interrupt_a_job
from .spark_hosts import SparkPackage, of_kernels, options_of
from .yarn_stand_in import YarnStandIn

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [
    *(pytest.mark.cluster, pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(300)),
    pytest.mark.usefixtures("nothing_of_spark_left"),
]


@pytest.fixture(scope="module", autouse=True)
def _specs(desk: Desk, desk_for_classes: None, yarn: YarnStandIn, spark: SparkPackage) -> None:
    # Without --spark-home: the hosts have no SPARK_HOME, and the Spark of the package pyspark serves.
    where = ("--spark", "--extra-spark-opts", options_of(yarn.conf))
    desk.install("yarn", *where, "--remote-hosts", "host1,host2", "--launch-timeout", "90")
    desk.change("yarn", env={"PYSPARK_PYTHON": spark.python, **yarn.environment})


async def test_a_kernel_from_launch_to_shutdown(yarn: YarnStandIn) -> None:
    """If it fails: `--spark` makes specifications that do not compute on YARN, or leave applications behind."""
    ended = len(yarn.states())
    async with running("yarn", env={"KERNEL_REMOTE_HOST": "host1"}) as (manager, client):
        assert host_of(manager) == "host1"
        assert len(yarn.states()) == ended
        assert f" {manager.kernel_id} by " not in yarn.log.read_text(), "lazy begins at first use"
        assert await run(client, "print(spark.range(1000).selectExpr('sum(id)').first()[0])", 120) == "499500"
        assert f" {manager.kernel_id} by " in yarn.log.read_text()
        assert set((await run(client, EXECUTORS, 60)).split()) <= {"host2", "host3"}
        assert (
            await run(client, "print(sc.master, sc.getConf().get('spark.submit.deployMode'))")
            == "yarn client"
        )
        await interrupt_a_job(manager, client)
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=60)
        await until(lambda: len(yarn.states()) == ended + 1, 20)
        assert await run(client, "print('job' in globals(), spark.range(10).count())", 120) == "False 10"
        await manager.shutdown_kernel()
    await until(lambda: len(yarn.states()) == ended + 2, 20)
    assert yarn.states()[ended:] == ["FINISHED", "FINISHED"]


async def test_kernels_of_several_hosts_at_a_time(cluster: Cluster, yarn: YarnStandIn) -> None:
    """If it fails: the second user's kernel gets the first one's executors, or none."""
    ended = len(yarn.states())
    managers = [AsyncKernelManager(kernel_name="yarn") for _ in range(2)]
    clients = []
    try:
        for manager, host in zip(managers, ("host1", "host2"), strict=True):
            await manager.start_kernel(env={"KERNEL_REMOTE_HOST": host})
            clients.append(manager.client())
            clients[-1].start_channels()
            await clients[-1].wait_for_ready(timeout=60)
        assert [host_of(manager) for manager in managers] == ["host1", "host2"]
        cells = [run(client, "print(spark.range(100).count(), sc.appName)", 120) for client in clients]
        assert await asyncio.gather(*cells) == [f"100 {manager.kernel_id}" for manager in managers]
        assert managers[0].provisioner is not None
        await managers[0].provisioner.kill()
        await managers[0].provisioner.wait()
        await until(lambda: len(yarn.states()) == ended + 1, 30)
        assert await run(clients[1], "print(spark.range(100).count())", 60) == "100"
        assert not of_kernels(cluster["host1"])
    finally:
        for client in clients:
            client.stop_channels()
        for manager in managers:
            await manager.shutdown_kernel(now=True)
