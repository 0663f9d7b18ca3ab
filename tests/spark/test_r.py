"""R kernels: Debian's IRkernel on hosts that have no specification."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jupyter_kernel_test
import pytest

from tests.applications.desk import Desk
from tests.cluster.real_kernels import host_of, provisioner_of, run, running

from .spark_cells import begin

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.r, pytest.mark.usefixtures("irkernel")]

WHERE = "cat(Sys.info()[['nodename']])"


@pytest.fixture(scope="module", autouse=True)
def _specs(desk: Desk, desk_for_classes: None, irkernel: None) -> None:
    desk.install("ssh_r", "--language", "R", "--remote-hosts", "host2")


def r_processes(host: Host) -> list[str]:
    return [process.command for process in host.processes() if "launch_IRkernel" in process.command]


async def test_a_kernel_from_launch_to_shutdown(cluster: Cluster) -> None:
    """If it fails: `--language R` makes specifications that do not start on a host, or that leave something there."""
    host = cluster["host2"]
    before = host.files()
    async with running("ssh_r") as (manager, client):
        assert host_of(manager) == "host2"
        assert await run(client, WHERE) == "host2"
        assert await run(client, "x <- 6 * 7; cat(x)") == "42"
        process = provisioner_of(manager).kernel.process
        assert process is not None
        assert process.kernel_transport == "ipc"
        assert await run(client, "cat(Sys.getpid())") == str(process.kernel_pid)
        assert await run(client, "cat(Sys.getenv('KERNEL_LANGUAGE'), length(ls()))") == "R 1"
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=30)
        assert await run(client, "cat(exists('x'))") == "FALSE"
        assert len(r_processes(host)) == 1
        await manager.shutdown_kernel()
        assert not r_processes(host)
    new = {path for path in host.files() - before if "/.cache/" not in path and "/.local/state/" not in path}
    assert not {path for path in new if "/dp-" not in path}


@pytest.mark.parametrize(
    "code",
    ["cat('begun\\n'); flush.console(); Sys.sleep(60)", "cat('begun\\n'); flush.console(); while (TRUE) {}",
     "cat('begun\\n'); flush.console(); system('sleep 60')"],
    ids=["sleeping", "busy", "in a program"],
)  # fmt: skip
async def test_interrupts(cluster: Cluster, code: str) -> None:
    """If it fails: the stop button does nothing, or takes the variables away."""
    async with running("ssh_r") as (manager, client):
        assert await run(client, "kept <- 5; cat(kept)") == "5"
        for _ in range(2):
            task = await begin(client, code, "begun")
            await asyncio.sleep(0.3)
            await manager.interrupt_kernel()
            reply = await asyncio.wait_for(task, 15)
            # R goes on after a program that was interrupted.
            assert reply["content"]["status"] in ("ok" if "system(" in code else "abort", "error")
            assert await run(client, "cat(kept)") == "5"


async def test_an_interrupt_of_an_idle_kernel_is_harmless() -> None:
    """If it fails: the stop button, pressed a moment too late, ends the kernel."""
    async with running("ssh_r") as (manager, client):
        assert await run(client, "kept <- 5; cat(kept)") == "5"
        for _ in range(20):
            await manager.interrupt_kernel()
            await asyncio.sleep(0.01)
        assert await run(client, "cat(kept)") == "5"


async def test_a_kernel_that_dies_is_noticed(cluster: Cluster) -> None:
    """If it fails: a kernel that R's memory has killed looks busy for ever."""
    async with running("ssh_r") as (manager, client):
        pid = int(await run(client, "cat(Sys.getpid())"))
        assert manager.provisioner is not None
        cluster["host2"].run("kill", f"-{signal.SIGKILL}", str(pid))
        provisioner = manager.provisioner
        deadline = asyncio.get_running_loop().time() + 15
        while await provisioner.poll() is None:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
        assert not r_processes(cluster["host2"])


async def test_ports_lie_in_the_range(cluster: Cluster, desk: Desk) -> None:
    """If it fails: a firewall between the kernel's ports and whoever needs them drops its messages."""
    name = desk.install("r_tcp", "--language", "R", "--remote-hosts", "host3", "--port-range", "44000..45000")
    desk.change(name, kernel_transport="tcp")
    async with running(name) as (manager, client):
        assert await run(client, WHERE) == "host3"
        process = provisioner_of(manager).kernel.process
        assert process is not None
        assert process.kernel_transport == "tcp"
        assert all(44000 <= port <= 45000 for port in process.ports.values())


async def test_a_missing_package_is_told(
    desk: Desk, break_r: Callable[[Host], None], cluster: Cluster
) -> None:
    """If it fails: a host without IRkernel is a launch that times out."""
    break_r(cluster["host1"])
    name = desk.install("r_broken", "--language", "R", "--remote-hosts", "host1")
    with pytest.raises(Exception, match="The package IRkernel is not installed for"):
        async with running(name):
            pass


@pytest.fixture
def break_r(cluster: Cluster) -> Any:
    """Take IRkernel away from a host until the test ends."""
    broken: list[Host] = []

    def take(host: Host) -> None:
        place = host.path("/usr/lib/R/site-library/IRkernel")
        if not place.is_dir():
            pytest.skip("other platform: IRkernel is not Debian's")
        os.rename(place / "DESCRIPTION", place / "DESCRIPTION.away")
        broken.append(host)

    yield take
    for host in broken:
        place = host.path("/usr/lib/R/site-library/IRkernel")
        os.rename(place / "DESCRIPTION.away", place / "DESCRIPTION")


class TestKernelOnAHost(jupyter_kernel_test.KernelTests):  # type: ignore[misc] # it has no types
    """If one of them fails: some front end shows no completions, no help, or nothing at all for R."""

    kernel_name = "ssh_r"
    language_name = "R"
    file_extension = ".r"
    code_hello_world = 'print("hello, world")'
    code_stderr = 'message("oh")'
    completion_samples = (
        {"text": "zi", "matches": {"zip"}},
        {"text": "Sys.sle", "matches": {"Sys.sleep"}},
    )
    complete_code_samples = ("1", "print('hello, world')", "f <- function(x) {\n  x*2\n}")
    incomplete_code_samples = ("print('hello", "f <- function(x) {\n  x*2")
    invalid_code_samples = (")",)
    code_generate_error = "stop('no')"
    code_page_something = "?print"
    code_display_data = (
        {"code": "IRdisplay::display_html('<b>test</b>')", "mime": "text/html"},
        {"code": "1+2+3", "mime": "text/plain"},
    )
    # IRkernel keeps no history, and shows results as display_data.
    test_history = test_execute_result = None
    code_inspect_sample = "print"
    code_clear_output = "IRdisplay::clear_output()"


# --- a session of SparkR, which is in no registry: a package of that name in its place ------------------------------------------------


SPARKR = """
sparkR.session <- function(...) {
  cat("made\\n", file = Sys.getenv("MADE"), append = TRUE)
  if (file.exists(Sys.getenv("BROKEN"))) stop("no cluster")
  structure(list(), class = "session")
}
sql <- function(query) paste("result of", query)
callJStatic <- function(...) "a context"
"""


@pytest.fixture(scope="module")
def sparkr(cluster: Cluster) -> str:
    """A library on host2 with a stand-in for SparkR."""
    host, place = cluster["host2"], "/var/tmp/sparkr-stand-in"
    host.run("mkdir", "-p", f"{place}/SparkR/R", f"{place}/library")
    for name, text in {
        "DESCRIPTION": "Package: SparkR\nVersion: 0.1\nTitle: Stand-in\nDescription: None.\nLicense: none\n",
        "NAMESPACE": "export(sparkR.session, sql)\n",
        "R/all.R": SPARKR,
    }.items():
        host.run("sh", "-c", f"cat > {place}/SparkR/{name}", input=text.encode())
    host.run("R", "CMD", "INSTALL", "--no-docs", f"--library={place}/library", f"{place}/SparkR", timeout=60)
    return place


@pytest.mark.parametrize("mode", ["lazy", "eager", "none"])
async def test_the_session_is_made_when_the_mode_says(
    mode: str, sparkr: str, desk: Desk, cluster: Cluster
) -> None:
    """If it fails: R kernels hold executors that nobody uses, or have no `spark`."""
    host, made, broken = cluster["host2"], f"{sparkr}/made-{mode}", f"{sparkr}/broken-{mode}"
    name = desk.copy("ssh_r", f"r_{mode}")
    spec = json.loads((desk.kernels / name / "kernel.json").read_text())
    environment = {"R_LIBS": f"{sparkr}/library", "MADE": made, "BROKEN": broken}
    desk.change(name, argv=[*spec["argv"], "--spark-context-initialization-mode", mode], env=environment)
    host.run("touch", broken)
    async with running(name) as (_, client):
        assert await run(client, "cat(ls())") == ""
        times = {"lazy": 0, "eager": 1, "none": 0}[mode]
        assert (host.path(made).read_text().count("made") if host.path(made).exists() else 0) == times
        if mode == "none":
            assert await run(client, "cat(exists('spark'), exists('sc'))") == "FALSE FALSE"
            return
        with pytest.raises(RuntimeError, match="no cluster"):
            await run(client, "spark")
        host.run("rm", broken)
        assert (
            await run(client, "cat(class(spark), sc, sql('select'))") == "session a context result of select"
        )
        assert await run(client, "rm(list = ls()); cat(class(spark))") == "session"
        assert host.path(made).read_text().count("made") == times + 2
