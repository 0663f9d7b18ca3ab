"""Three hosts inside one process, to see the provisioner work without any: `./run demo` and `./run lab`.

`notebook` runs digits.ipynb as one kernel on each host at the same time, through nbclient; `lab` starts JupyterLab on the same hosts.
The hosts are real SSH servers on loopback. All files lie in temporary directories; nothing of yours is read or changed, and nothing is
left at the end, also when it is interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, lambda *_: os._exit(130)
    )  # while modules are imported: nothing has been started

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from distributed_provisioner.errors import ProvisionerError
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.testing.embedded import EmbeddedCluster

NOTEBOOK = Path(__file__).with_name("digits.ipynb")
KERNEL = "ssh_python"
HOSTS = 3
PHASES = ("reserve", "connect", "ship", "start", "forward", "ready")

console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run demo|lab", description=__doc__)
    parser.add_argument("what", choices=["notebook", "lab"])
    parser.add_argument("--hosts", type=int, default=HOSTS, help=f"how many (default: {HOSTS})")
    arguments, rest = parser.parse_known_args()
    if rest and arguments.what == "notebook":
        parser.error(f"there is no use for {' '.join(rest)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with cluster_of(arguments.hosts) as cluster:
            if arguments.what == "lab":
                return lab(cluster, rest)
            runs = [Run(number, arguments.hosts) for number in range(1, arguments.hosts + 1)]
            try:
                in_thread(run_all(runs))
            finally:
                IOThread.current().close()  # log out before the hosts go: elsewhere the end of the process does it
    except KeyboardInterrupt:
        console.print("interrupted; kernels and hosts have been ended")
        return 130
    except ProvisionerError as error:
        console.print(f"the demo failed: {error}", style="red", highlight=False, markup=False)
        return 1
    console.print(*tables(runs), sep="\n")
    console.print("Kernels, hosts and files have been removed. ./run lab opens JupyterLab on such a cluster.")
    return 0


# --- the cluster -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster_of(hosts: int) -> Iterator[EmbeddedCluster]:
    """Start the hosts, make their home ours, and install the kernelspec as a user would."""
    console.print(f"starting {hosts} hosts inside this process …")
    with EmbeddedCluster(hosts) as cluster:
        environment = {
            name: text for name, text in os.environ.items() if not name.startswith(("GP_", "JUPYTER_"))
        }
        prefix = cluster.home / "prefix"
        os.environ.clear()
        os.environ.update(environment)
        os.environ.update(
            HOME=str(cluster.home),
            JUPYTER_PATH=str(prefix / "share" / "jupyter"),
            JUPYTER_PLATFORM_DIRS="1",
            # The hosts have what this interpreter has; elsewhere `python3` of each host is the default.
            GP_REMOTE_PYTHON=sys.executable,
            # Who the kernels are for: root may not start kernels unless somebody says so, and demos are run in containers.
            KERNEL_USERNAME="demo" if getpass.getuser() == "root" else getpass.getuser(),
            # One thread a kernel: the three hosts share this machine's cores.
            OMP_NUM_THREADS="1",
        )
        names = [host.name for host in cluster.hosts]
        jupyter = str(Path(sys.executable).with_name("jupyter"))
        command = [jupyter, "ssh-spec", "install", "--prefix", str(prefix)]
        command += [word for name in names for word in ("--remote-hosts", name)]
        console.print(f"$ jupyter {' '.join(command[1:])}", style="bold", highlight=False, soft_wrap=True)
        subprocess.run(command, check=True, start_new_session=True)
        yield cluster


# --- one notebook on each host ---------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One run of the notebook, and what became of it."""

    number: int
    shares: int
    host: str = ""
    kernel_id: str = ""
    pid: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    result: str = ""

    async def execute(self, progress: Progress, task: TaskID) -> None:
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        manager = AsyncKernelManager(kernel_name=KERNEL)
        client = NotebookClient(
            notebook, km=manager, timeout=600, on_cell_start=self.on_cell_start(manager, progress, task)
        )
        client.owns_km = True  # so that it ends the kernel, whatever happens
        began = time.perf_counter()
        try:
            await client.async_execute(env={**os.environ, "KERNEL_SHARE": f"{self.number}/{self.shares}"})
        finally:
            # nbclient ends the kernel, unless it is cancelled, or fails, before the first cell.
            atexit.unregister(client._cleanup_kernel)
            if manager.has_kernel:
                await manager.shutdown_kernel(now=True)
            manager.cleanup_connection_file()
        self.seconds = time.perf_counter() - began
        self.result = notebook.cells[-1].outputs[0]["text"].strip()
        progress.update(task, completed=len(notebook.cells), description=f"{self.host}  done")

    def on_cell_start(self, manager: AsyncKernelManager, progress: Progress, task: TaskID) -> Any:
        def on_cell_start(cell: Any, cell_index: int) -> None:
            provisioner: Any = manager.provisioner
            kernel = provisioner.kernel
            self.host, self.pid = str(kernel.process.host), kernel.process.kernel_pid
            self.kernel_id, self.phases = kernel.kernel_id, dict(kernel.phases)
            progress.update(task, completed=cell_index, description=f"{self.host}  cell {cell_index + 1}")

        return on_cell_start


async def run_all(runs: list[Run]) -> None:
    """Run the notebooks at the same time; when one fails, the others are ended too."""
    cells = len(nbformat.read(NOTEBOOK, as_version=4).cells)
    columns = (SpinnerColumn(), TextColumn("{task.description:24}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks = [
            asyncio.create_task(run.execute(progress, progress.add_task("launching", total=cells)))
            for run in runs
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome


def tables(runs: list[Run]) -> Iterator[Table]:
    """What ran where, and how long each phase of the launch took; each fits 80 columns."""
    what = Table(title="what ran where", title_justify="left")
    for name in ("host", "kernel", "pid", "time", "result"):
        what.add_column(
            name, no_wrap=name != "result", justify="right" if name in ("pid", "time") else "left"
        )
    phases = Table(title="phases of each launch, in milliseconds", title_justify="left")
    phases.add_column("host", no_wrap=True)
    for name in (*PHASES, "all"):
        phases.add_column(name, justify="right", no_wrap=True)
    for run in sorted(runs, key=lambda run: run.host):
        what.add_row(run.host, run.kernel_id[:8], str(run.pid), f"{run.seconds:.1f} s", run.result)
        times = [run.phases.get(phase, 0) * 1000 for phase in PHASES]
        phases.add_row(run.host, *(f"{time:.0f}" for time in (*times, sum(times))))
    yield what
    yield phases


# --- JupyterLab ------------------------------------------------------------------------------------------------------------------


def lab(cluster: EmbeddedCluster, arguments: list[str]) -> int:
    """JupyterLab on loopback until Ctrl-C; its kernels run on the cluster."""
    directory = cluster.home / "notebooks"
    directory.mkdir()
    shutil.copy(NOTEBOOK, directory)
    settings = cluster.home / ".jupyter/lab/user-settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"),
        f"--ServerApp.root_dir={directory}",
        f"--LabApp.default_url=/lab/tree/{NOTEBOOK.name}",
        f"--KernelSpecManager.allowed_kernelspecs={KERNEL}",
        "--KernelSpecManager.ensure_native_kernel=False",
        f"--MultiKernelManager.default_kernel_name={KERNEL}",
        *(["--allow-root"] if os.geteuid() == 0 else []),
        *arguments,
    ]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(cluster.home / ".jupyter")}
    console.print(
        f"JupyterLab with kernels on {', '.join(host.name for host in cluster.hosts)}. Its URL is below. Ctrl-C ends it."
    )
    console.print(
        "The notebooks lie in a temporary directory that is removed at the end: download what you want to keep."
    )
    # In a session of its own, so that Ctrl-C reaches this process alone, which ends Lab without a question.
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            server.kill()
            raise


# --- interrupts ------------------------------------------------------------------------------------------------------------------


def in_thread(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on a loop in another thread. Ctrl-C cancels it once and waits for its clean-up; nbclient's own handlers would not."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    ended = threading.Event()

    def turn() -> None:
        try:
            loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(cancel_the_rest())
            loop.close()
        finally:
            ended.set()

    threading.Thread(target=turn, daemon=True).start()
    try:
        while not ended.wait(0.2):
            pass
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.call_soon_threadsafe(
            loop.set_exception_handler, lambda *_: None
        )  # nbclient's tasks complain when they are cancelled
        loop.call_soon_threadsafe(task.cancel)
        ended.wait(30)
        raise
    task.result()


async def cancel_the_rest() -> None:
    """nbclient leaves tasks when a cell is cancelled."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
