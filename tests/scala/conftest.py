"""Kernels for Scala as users have them: installed by the command, on hosts of a cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.hosts import HostPool
from tests.applications.desk import Desk
from tests.scala.parts import Parts, find_parts

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster

PORTS = "41000..42000"


@pytest.fixture(scope="session")
def parts() -> Parts:
    return find_parts()


@pytest.fixture(scope="module")
def desk(cluster: Cluster, session_directory: Path, parts: Parts) -> Iterator[Desk]:
    """A desk with `ssh_scala`, and with `ssh_scala_spark` that needs no cluster of Spark's; this process sees both."""
    desk = Desk(Path(tempfile.mkdtemp(prefix="scala-", dir=session_directory)), cluster.home, cluster.user)
    common = [*("--language", "Scala"), *("--toree-jar", str(parts.assembly)), *("--remote-hosts", "host1")]
    common += [*("--launch-timeout", "100"), *("--port-range", PORTS)]
    desk.install("ssh_scala", *common)
    desk.install("ssh_scala_spark", *common, "--spark", "--spark-master", "local[2]")
    # What matters is whether it works, not how fast a long loop becomes: the tests start many.
    options = "--master local[2] --conf spark.ui.enabled=false --driver-java-options -XX:TieredStopAtLevel=1"
    for name in ("ssh_scala", "ssh_scala_spark"):
        env = {"SPARK_HOME": str(parts.spark_home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_OPTS": options}
        desk.change(name, env=env)
    with desk.entered():
        yield desk


@pytest.fixture
def _at_the_desk(isolated: Path, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `isolated` has emptied the environment."""
    HostPool._current = None
    for name, value in desk.settings.items():
        monkeypatch.setenv(name, value)
