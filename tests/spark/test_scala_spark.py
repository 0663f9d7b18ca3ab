"""Scala kernels on Spark clusters: Apache Toree below a real spark-submit, executors on other hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.cluster.real_kernels import host_of, until
from tests.scala.test_kernel import interrupted, run, running

from .spark_hosts import SPARK_CONF, SparkPackage, of_kernels

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [
    *(pytest.mark.cluster, pytest.mark.spark, pytest.mark.scala, pytest.mark.slow, pytest.mark.timeout(300)),
    pytest.mark.usefixtures("nothing_of_spark_left"),
]

EXECUTORS = 'sc.parallelize(1 to 2, 2).map(_ => java.net.InetAddress.getLocalHost.getHostName).collect().toSet.mkString(" ")'
SLOW = "sc.parallelize(1 to 2000, 2).map(x => { Thread.sleep(100); x }).count()"


@pytest.fixture
def spec(install_below: Callable[..., str], spark: SparkPackage) -> str:
    if spark.toree is None:
        pytest.skip("the environment with pyspark has no toree")
    options = ("--language", "Scala", "--spark-home", str(spark.home), "--toree-jar", str(spark.toree))
    return install_below("scala", *options, conf={**SPARK_CONF, "spark.cores.max": "2"})


async def test_a_kernel_from_launch_to_shutdown(spec: str, cluster: Cluster) -> None:
    """If it fails: `--language Scala --spark` makes specifications that do not compute, or that leave executors behind."""
    async with running(spec) as (manager, client):
        assert host_of(manager) == "host1"
        await run(client, "val kept = 6 * 7")
        computed = await run(client, 'spark.range(1000).selectExpr("sum(id)").first().getLong(0)')
        assert computed.endswith("499500")  # Toree says first that it waits for the session
        assert set((await run(client, EXECUTORS)).split()) <= {"host2", "host3"}
        await interrupted(manager, client, SLOW, 3)
        assert (await run(client, "sc.statusTracker.getActiveJobIds().toList")).endswith("List()")
        assert await run(client, "kept + sc.parallelize(1 to 4, 2).map(_ * 2).sum()") == "62.0"
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=60)
        with pytest.raises(RuntimeError):
            await run(client, "kept")
    await until(lambda: not of_kernels(cluster["host1"]))
