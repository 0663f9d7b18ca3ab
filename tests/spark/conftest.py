"""Kernels of other languages and below Spark, installed and launched as users do it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.applications.conftest import at_the_desk, desk
from tests.applications.desk import Desk

from .spark_hosts import SPARK_CONF, SparkPackage, Standalone, find_spark, of_kernels, options_of
from .yarn_stand_in import YarnStandIn

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

__all__ = ["at_the_desk", "desk"]


@pytest.fixture(scope="module", autouse=True)
def desk_for_classes(desk: Desk) -> Iterator[None]:
    """Kernels of jupyter_kernel_test are started once for a class, before the fixtures of a test."""
    with desk.entered():
        yield


@pytest.fixture(scope="session")
def irkernel() -> None:
    """R with IRkernel, on this machine and so on its hosts."""
    if shutil.which("Rscript") is None:
        pytest.skip("R is not installed")
    code = 'quit("no", if (requireNamespace("IRkernel", quietly = TRUE)) 0 else 1)'
    if subprocess.run(["Rscript", "-e", code], capture_output=True, check=False).returncode:
        pytest.skip("R has no package IRkernel")


@pytest.fixture(scope="session")
def spark() -> SparkPackage:
    """Real Spark, of the package pyspark."""
    return find_spark()


@pytest.fixture(scope="session")
def standalone(cluster: Cluster, spark: SparkPackage) -> Standalone:
    """A standalone Spark on the hosts, until they are switched off."""
    return Standalone(cluster, spark)


@pytest.fixture(scope="session")
def yarn(cluster: Cluster, spark: SparkPackage, session_directory: Path) -> YarnStandIn:
    """A stand-in for YARN on the hosts, until they are switched off."""
    if shutil.which("javac") is None:
        pytest.skip("the stand-in for YARN needs a JDK, and there is no javac")
    return YarnStandIn(cluster, spark, session_directory)


@pytest.fixture(params=["standalone", "yarn"])
def install_below(request: pytest.FixtureRequest, desk: Desk) -> Callable[..., str]:
    """Install a kernelspec for host1 whose kernels compute on each of the two clusters; its name."""
    kind: str = request.param
    spark_cluster: Standalone | YarnStandIn = request.getfixturevalue(kind)

    def install(prefix: str, *options: str, conf: Mapping[str, str] = SPARK_CONF) -> str:
        name = f"{prefix}_{kind}"
        if (desk.kernels / name).exists():
            return name
        options += ("--spark", "--remote-hosts", "host1", "--launch-timeout", "100", "--extra-spark-opts")
        if isinstance(spark_cluster, Standalone):
            return desk.install(name, *options, options_of(conf), "--spark-master", spark_cluster.url)
        desk.install(name, *options, options_of(spark_cluster.conf))
        return desk.change(name, env=spark_cluster.environment)

    return install


@pytest.fixture
def nothing_of_spark_left(cluster: Cluster) -> Iterator[None]:
    """Neither JVMs nor kernels, nor executors and application masters on other hosts."""
    yield
    left: list[str] = []
    for _ in range(200):
        left = [f"{host.name}: {command}" for host in cluster.hosts for command in of_kernels(host)]
        if not left:
            return
        time.sleep(0.1)
    pytest.fail("left behind: " + "\n".join(left))
