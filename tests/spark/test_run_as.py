"""R, Scala and Spark kernels of the notebooks' users, started by sudo."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.applications.desk import Desk
from tests.cluster.accounts import ALICE, PEOPLE, allow, kernels_of, people
from tests.cluster.real_kernels import host_of, run, running, until
from tests.scala.test_kernel import run as run_scala
from tests.scala.test_kernel import running as running_scala

from .spark_cells import EXECUTORS, begin
from .spark_hosts import SPARK_CONF, SparkPackage, Standalone, of_kernels, options_of

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("accounts", "nothing_of_spark_left")]

AS_ALICE: dict[str, Any] = {"env": {"KERNEL_USERNAME": ALICE}}


@pytest.fixture(scope="module")
def accounts(cluster: Cluster) -> Iterator[None]:
    with people(cluster):
        allow(cluster, *(person.name for person in PEOPLE))
        yield


@pytest.mark.r
@pytest.mark.usefixtures("irkernel")
async def test_an_r_kernel_is_the_users_own(desk: Desk, cluster: Cluster) -> None:
    """If it fails: R kernels are the service account's, or their interrupts get nowhere."""
    desk.install("r_as", "--language", "R", "--remote-hosts", "host2")
    desk.change("r_as", impersonation_enabled=True)
    host = cluster["host2"]
    async with running("r_as", **AS_ALICE) as (manager, client):
        assert await run(client, "cat(Sys.info()[['user']], path.expand('~'))") == f"{ALICE} /home/dp-alice"
        cell = await begin(client, "cat('begun\\n'); flush.console(); Sys.sleep(60)", "begun")
        await manager.interrupt_kernel()
        assert (await asyncio.wait_for(cell, 15))["content"]["status"] != "ok"
        assert await run(client, "cat(6 * 7)") == "42"
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=30)
        assert await run(client, "cat(Sys.info()[['user']])") == ALICE
    await until(lambda: not kernels_of(host, ALICE))


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_spark_kernel_is_the_users_own(
    desk: Desk, cluster: Cluster, standalone: Standalone, spark: SparkPackage
) -> None:
    """If it fails: below spark-submit a kernel is the service account's, or leaves its JVM behind, which nobody else can end."""
    conf = options_of({**SPARK_CONF, "spark.cores.max": "2"})
    desk.install(
        *(
            "spark_as",
            "--spark",
            "--remote-hosts",
            "host1",
            "--launch-timeout",
            "90",
            "--spark-master",
            standalone.url,
        ),
        *("--spark-home", str(spark.home), "--extra-spark-opts", conf),
    )
    desk.change("spark_as", env={"PYSPARK_PYTHON": spark.python}, impersonation_enabled=True)
    async with running("spark_as", **AS_ALICE) as (manager, client):
        assert host_of(manager) == "host1"
        assert (
            await run(client, "import getpass; print(getpass.getuser(), sc.sparkUser())", 120)
            == f"{ALICE} {ALICE}"
        )
        assert set((await run(client, EXECUTORS, 60)).split()) <= {"host2", "host3"}
        job = await begin(client)
        await manager.interrupt_kernel()
        assert (await asyncio.wait_for(job, 15))["content"]["ename"] == "KeyboardInterrupt"
        assert await run(client, "print(spark.range(10).count())", 60) == "10"
    await until(lambda: not kernels_of(cluster["host1"], ALICE) and not of_kernels(cluster["host1"]))


@pytest.mark.spark
@pytest.mark.scala
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_scala_kernel_is_the_users_own(
    desk: Desk, cluster: Cluster, spark: SparkPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: Scala kernels are the service account's, or their JVM stays behind."""
    if spark.toree is None:
        pytest.skip("the environment with pyspark has no toree")
    conf = options_of(SPARK_CONF)
    desk.install(
        *("scala_as", "--language", "Scala", "--spark", "--remote-hosts", "host1", "--launch-timeout", "100"),
        *("--spark-master", "local[1]", "--spark-home", str(spark.home), "--toree-jar", str(spark.toree)),
        *("--extra-spark-opts", conf),
    )
    desk.change("scala_as", impersonation_enabled=True)
    monkeypatch.setenv("KERNEL_USERNAME", ALICE)
    async with running_scala("scala_as") as (_, client):
        assert await run_scala(client, 'println(System.getProperty("user.name"))') == ALICE
        assert (await run_scala(client, "sc.parallelize(1 to 4, 2).map(_ * 2).sum()")).endswith("20.0")
    await until(lambda: not kernels_of(cluster["host1"], ALICE))
