"""The stand-in for YARN (`YarnStandIn.java`) on the hosts of a test cluster: no ResourceManager is to be had from a registry."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .spark_hosts import QUICK_JVM, SPARK_CONF, SparkPackage, start

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

SOURCE = Path(__file__).with_name("YarnStandIn.java")
PLACE = "/var/tmp/yarn-stand-in"
"""On the hosts: classes, configuration, logs, containers."""
NODE_PORT = 18041


class YarnStandIn:
    """The manager on host1, a node on each host; containers run on host2 and host3."""

    def __init__(self, cluster: Cluster, package: SparkPackage, directory: Path) -> None:
        self.package = package
        classes = directory / "yarn-stand-in"
        jars = f"{package.home}/jars/*"
        subprocess.run(
            ["javac", "-nowarn", "-d", str(classes), "-cp", jars, str(SOURCE)],
            check=True,
            capture_output=True,
        )
        java = [
            "java",
            *QUICK_JVM.split(),
            "-Xmx128m",
            "-cp",
            f"{PLACE}/classes:{PLACE}/conf:{jars}",
            "YarnStandIn",
        ]
        for host in cluster.hosts:
            self._prepare(host, classes)
            argv = [*java, "node", host.name, str(NODE_PORT), f"{PLACE}/containers"]
            start(host, f"{PLACE}/node.log", *argv, until="READY", env=self.environment)
        nodes = ",".join(f"{name}:{NODE_PORT}" for name in ("host2", "host3"))
        argv = [*java, "manager", "host1", nodes]
        start(cluster["host1"], f"{PLACE}/manager.log", *argv, until="READY", env=self.environment)
        self.log = cluster["host1"].path(f"{PLACE}/manager.log")

    @property
    def environment(self) -> dict[str, str]:
        """What a kernel needs to find it."""
        return {"HADOOP_CONF_DIR": f"{PLACE}/conf"}

    @property
    def conf(self) -> dict[str, str]:
        """Options of spark-submit that make a small application, and upload no jars."""
        return {
            **SPARK_CONF,
            "spark.yarn.jars": f"local:{self.package.home}/jars/*",
            "spark.executor.instances": "2",
            "spark.yarn.am.memory": "256m",
            "spark.yarn.am.extraJavaOptions": QUICK_JVM,
            "spark.yarn.maxAppAttempts": "1",
            "spark.yarn.report.interval": "200ms",
        }

    def states(self) -> list[str]:
        """How the applications have ended so far."""
        return [line.split()[3] for line in self.log.read_text().splitlines() if line.split()[1] == "end"]

    def _prepare(self, host: Host, classes: Path) -> None:
        """The classes and the configuration, as files of the cluster's user."""
        host.run("mkdir", "-p", f"{PLACE}/classes", f"{PLACE}/conf", f"{PLACE}/containers")
        for path in classes.glob("*.class"):
            host.run("sh", "-c", f"cat > '{PLACE}/classes/{path.name}'", input=path.read_bytes())
        sites = {
            "core-site.xml": {"fs.defaultFS": "file:///"},
            "yarn-site.xml": {
                "yarn.resourcemanager.address": "host1:18032",
                "yarn.resourcemanager.scheduler.address": "host1:18030",
                "yarn.resourcemanager.connect.max-wait.ms": "10000",
            },
        }
        for name, properties in sites.items():
            rows = "".join(
                f"<property><name>{k}</name><value>{v}</value></property>" for k, v in properties.items()
            )
            text = f"<configuration>{rows}</configuration>"
            host.run("sh", "-c", f"cat > {PLACE}/conf/{name}", input=text.encode())
