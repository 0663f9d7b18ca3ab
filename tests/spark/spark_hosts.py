"""Spark on the hosts of a test cluster: the package pyspark, and a standalone master with its workers."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

VARIABLE = "DISTRIBUTED_PROVISIONER_SPARK_PYTHON"
"""Names the interpreter of the environment with pyspark and ipykernel; `./run test` makes it."""
QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
SPARK_CONF = {
    "spark.ui.enabled": "false",
    "spark.executor.memory": "512m",
    "spark.driver.memory": "512m",
    "spark.sql.shuffle.partitions": "2",
    "spark.executor.extraJavaOptions": QUICK_JVM,
    "spark.driver.extraJavaOptions": QUICK_JVM,
}
"""What makes a small Spark."""


@dataclass(frozen=True)
class SparkPackage:
    """The environment in which pyspark is installed."""

    environment: Path

    @property
    def python(self) -> str:
        return str(self.environment / "bin" / "python3")

    @property
    def home(self) -> Path:
        return next(self.environment.glob("lib/python3.*/site-packages/pyspark"))

    @property
    def toree(self) -> Path | None:
        """The assembly of Apache Toree, if that is installed beside it."""
        return next(self.home.parent.glob("toree/lib/toree-assembly-*.jar"), None)


def find_spark() -> SparkPackage:
    """Skips the test, with the reason, where there is none."""
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    prefix = Path(sys.prefix)
    named = os.environ.get(VARIABLE)
    place = Path(named).parents[1] if named else prefix.with_name(f"{prefix.name}-spark")
    if list(place.glob("lib/python3.*/site-packages/pyspark/bin/spark-submit")):
        return SparkPackage(place)
    pytest.skip(f"no environment with pyspark: ./run test makes it, or {VARIABLE} names its interpreter")


def options_of(conf: Mapping[str, str]) -> str:
    """As --extra-spark-opts has them."""
    return " ".join(f"--conf {shlex.quote(f'{name}={value}')}" for name, value in conf.items())


def start(host: Host, log: str, *argv: str, until: str, env: Mapping[str, str]) -> None:
    """Start a program on a host that lives as long as the host; returns when `until` is in its log."""
    command = f"exec setsid -f nice {shlex.join(argv)} >{log} 2>&1 </dev/null"
    host.run("sh", "-c", command, env=env)
    deadline = time.monotonic() + 60
    while until not in (text := host.path(log).read_text() if host.path(log).exists() else ""):
        assert time.monotonic() < deadline, f"{argv} on {host.name} is not ready:\n{text[-3000:]}"
        time.sleep(0.1)


class Standalone:
    """A master on host1, workers on host2 and host3: kernels run on host1."""

    url = "spark://host1:7077"

    def __init__(self, cluster: Cluster, package: SparkPackage) -> None:
        spark_class = str(package.home / "bin" / "spark-class")
        role = "org.apache.spark.deploy"

        def env(host: Host) -> dict[str, str]:
            return {
                "SPARK_HOME": str(package.home),
                "SPARK_NO_DAEMONIZE": "1",
                "SPARK_LOCAL_IP": host.address,
                "SPARK_DAEMON_MEMORY": "256m",
                "SPARK_DAEMON_JAVA_OPTS": QUICK_JVM,
            }

        master = cluster["host1"]
        options = ["--host", master.name, "--port", "7077", "--webui-port", "0"]
        argv = [spark_class, f"{role}.master.Master", *options]
        start(master, "/var/tmp/spark-master.log", *argv, until="New state: ALIVE", env=env(master))
        for host in (cluster["host2"], cluster["host3"]):
            options = [
                "--host",
                host.name,
                "-c",
                "4",
                "-m",
                "4g",
                "-d",
                "/var/tmp/spark-work",
                "--webui-port",
                "0",
            ]
            argv = [spark_class, f"{role}.worker.Worker", *options, self.url]
            until = "Successfully registered with master"
            start(host, "/var/tmp/spark-worker.log", *argv, until=until, env=env(host))


def of_kernels(host: Host) -> list[str]:
    """Command lines of all that a kernel below Spark has on a host: JVMs, kernels, executors, application masters, their Pythons."""
    names = (
        "SparkSubmit",
        "launch_ipykernel",
        "launch_IRkernel",
        "ExecutorBackend",
        "ExecutorLauncher",
        "pyspark.daemon",
    )
    return [p.command for p in host.processes() if any(name in p.command for name in names)]
