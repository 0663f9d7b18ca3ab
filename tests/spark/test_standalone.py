"""Kernels below a standalone Spark: a real master, real workers, each on a host of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.applications.desk import Desk
from tests.cluster.real_kernels import host_of, provisioner_of, run, running, until

from .spark_cells import EXECUTORS, interrupt_a_job
from .spark_hosts import SPARK_CONF, SparkPackage, Standalone, of_kernels, options_of

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [
    *(pytest.mark.cluster, pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(300)),
    pytest.mark.usefixtures("nothing_of_spark_left"),
]

OPTIONS = ("--spark", "--remote-hosts", "host1", "--launch-timeout", "90")


@pytest.fixture(scope="module", autouse=True)
def _specs(desk: Desk, desk_for_classes: None, standalone: Standalone, spark: SparkPackage) -> None:
    for mode in ("lazy", "eager", "none"):
        small = options_of({**SPARK_CONF, "spark.cores.max": "2"})
        where = (
            "--spark-master",
            standalone.url,
            "--spark-home",
            str(spark.home),
            "--extra-spark-opts",
            small,
        )
        desk.install(f"standalone_{mode}", *OPTIONS, *where, "--spark-init-mode", mode)
        desk.change(f"standalone_{mode}", env={"PYSPARK_PYTHON": spark.python})


async def test_a_kernel_from_launch_to_shutdown(cluster: Cluster) -> None:
    """If it fails: `--spark-master spark://…` makes specifications that do not compute, or leave executors behind."""
    async with running("standalone_lazy") as (manager, client):
        assert host_of(manager) == "host1"
        process = provisioner_of(manager).kernel.process
        assert process is not None
        assert process.kernel_transport == "ipc"
        assert process.pid != process.kernel_pid
        executors = [command for host in ("host2", "host3") for command in of_kernels(cluster[host])]
        assert not executors, "lazy begins at first use"
        assert (
            await run(client, "x = spark.range(1000).selectExpr('sum(id)').first()[0]; print(x)", 120)
            == "499500"
        )
        assert set((await run(client, EXECUTORS, 60)).split()) <= {"host2", "host3"}
        assert await run(client, "print(sc.appName, sc.master)") == f"{manager.kernel_id} spark://host1:7077"
        assert await run(client, "print(sql('select 6 * 7 as x').first().x)", 60) == "42"
        for _ in range(2):
            await interrupt_a_job(manager, client)
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=60)
        assert await run(client, "print('x' in globals())") == "False"
        await manager.shutdown_kernel()


async def test_a_kernel_that_is_killed_takes_its_jvm_and_executors_along(cluster: Cluster) -> None:
    """If it fails: executors of dead kernels hold the cluster's cores until somebody notices."""
    async with running("standalone_lazy") as (manager, client):
        await run(client, "print(spark.range(10).count())", 120)
        await until(lambda: of_kernels(cluster["host2"]) or of_kernels(cluster["host3"]))
        assert manager.provisioner is not None
        await manager.provisioner.kill()
        await manager.provisioner.wait()
        assert not of_kernels(cluster["host1"])


async def test_eager_begins_by_itself_and_a_cell_waits_for_it(cluster: Cluster) -> None:
    """If it fails: eager is lazy, or the first cell fails because it was too quick."""
    async with running("standalone_eager") as (_, client):
        first = asyncio.ensure_future(
            run(client, "print(spark.range(10).count(), type(spark).__name__)", 120)
        )
        assert await first == "10 SparkSession"
    async with running("standalone_eager") as (_, client):
        assert await run(client, "print(1)") == "1"
        await until(lambda: of_kernels(cluster["host2"]) or of_kernels(cluster["host3"]), 60)


async def test_none_makes_no_session_and_ones_own_is_cancelled_too() -> None:
    """If it fails: somebody who makes the session with options of their own is in the way of ours."""
    async with running("standalone_none") as (manager, client):
        assert (
            await run(client, "print([name for name in ('spark', 'sc', 'sql') if name in globals()])") == "[]"
        )
        own = "from pyspark.sql import SparkSession\nspark = SparkSession.builder.getOrCreate(); sc = spark.sparkContext"
        await run(client, own, 60)
        await interrupt_a_job(manager, client)


async def test_a_session_that_cannot_be_made_is_told_in_the_cell(desk: Desk) -> None:
    """If it fails: the kernel dies of a wrong option, or the cell shows a hundred lines of Java."""
    name = desk.copy("standalone_lazy", "standalone_bad")
    async with running(name, env={"KERNEL_EXTRA_SPARK_OPTS": "--conf spark.executor.memory=1m"}) as (
        _,
        client,
    ):
        for _ in range(2):
            with pytest.raises(RuntimeError) as caught:
                await run(client, "spark.range(1)", 60)
            words = str(caught.value)
            assert words.startswith("SparkSessionError: the Spark session could not be created: ")
            assert "Executor memory 1048576 must be at least" in words
            assert "\tat " not in words
        assert await run(client, "print(6 * 7)") == "42"
