"""R kernels below Spark: spark-submit starts them, and they live. SparkR itself is in no registry: it comes with Spark's distributions."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.cluster.real_kernels import host_of, provisioner_of, run, running, until

from .spark_cells import begin
from .spark_hosts import SparkPackage, of_kernels

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [
    *(pytest.mark.cluster, pytest.mark.spark, pytest.mark.r, pytest.mark.slow, pytest.mark.timeout(300)),
    pytest.mark.usefixtures("nothing_of_spark_left", "irkernel"),
]

HOME = "/var/tmp/spark-for-r"
"""On host1: pyspark's Spark, with the archive without which spark-submit starts no R on YARN."""


@pytest.fixture(scope="module")
def spark_home(cluster: Cluster, spark: SparkPackage) -> str:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("SparkR/DESCRIPTION", "a stand-in\n")
    host = cluster["host1"]
    host.run("mkdir", "-p", f"{HOME}/R/lib")
    for name in ("bin", "jars", "python"):
        host.run("ln", "-sfn", str(spark.home / name), f"{HOME}/{name}")
    host.run("sh", "-c", f"cat > {HOME}/R/lib/sparkr.zip", input=archive.getvalue())
    return HOME


@pytest.fixture
def spec(install_below: Callable[..., str], spark_home: str) -> str:
    return install_below("r", "--language", "R", "--spark-home", spark_home)


async def test_a_kernel_from_launch_to_shutdown(spec: str, cluster: Cluster) -> None:
    """If it fails: `--language R --spark` makes specifications that do not start, or that the stop button ends."""
    async with running(spec) as (manager, client):
        assert host_of(manager) == "host1"
        process = provisioner_of(manager).kernel.process
        assert process is not None
        assert process.kernel_transport == "ipc"
        assert await run(client, "cat(Sys.getpid(), 6 * 7)") == f"{process.kernel_pid} 42"
        assert process.pid != process.kernel_pid
        assert await run(client, "cat(nzchar(Sys.getenv('EXISTING_SPARKR_BACKEND_PORT')))") == "TRUE"
        for code in ("Sys.sleep(60)", "while (TRUE) {}"):
            cell = await begin(client, f"kept <- 5; cat('begun\\n'); flush.console(); {code}", "begun")
            await manager.interrupt_kernel()
            await asyncio.wait_for(cell, 15)
            assert await run(client, "cat(kept)") == "5"
        await asyncio.sleep(2)  # a JVM takes its time to end
        assert [command for command in of_kernels(cluster["host1"]) if "SparkSubmit" in command]
        with pytest.raises(RuntimeError, match="The package SparkR is not installed on this host"):
            await run(client, "spark")
        assert await run(client, "cat(kept)") == "5"
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=60)
        assert await run(client, "cat(exists('kept'))") == "FALSE"
        await manager.shutdown_kernel()
    await until(lambda: not of_kernels(cluster["host1"]))


async def test_a_kernel_that_is_killed_takes_its_jvm_along(spec: str, cluster: Cluster) -> None:
    """If it fails: each kernel that is killed leaves a JVM of half a gigabyte."""
    async with running(spec) as (manager, client):
        assert await run(client, "cat(1)") == "1"
        assert manager.provisioner is not None
        await manager.provisioner.kill()
        await manager.provisioner.wait()
        assert not of_kernels(cluster["host1"])
