"""Random sequences of faults on two hosts with two kernels that compute meanwhile: whatever happens, in any order, nothing is lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from jupyter_client.manager import AsyncKernelManager

from distributed_provisioner.models import KernelState
from tests.cluster.real_kernels import kernels_on, until, write_spec
from tests.faults.conftest import mend
from tests.faults.work import (
    CLEAR_SOCKETS,
    Cell,
    Notebook,
    do,
    kill,
    listeners,
    named,
    pid_of,
    state_of,
    steady,
)

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster, Host

pytestmark = pytest.mark.cluster

EXAMPLES = int(os.environ.get("FAULT_SEQUENCES", "7"))
STEPS = 8
HOSTS = ("host1", "host2")
PER_CELL = 40


class Kernel:
    """A kernel of a sequence, and what was asked of it."""

    def __init__(self, manager: AsyncKernelManager, notebook: Notebook, host: Host) -> None:
        self.manager, self.notebook, self.host = manager, notebook, host
        self.cells: list[Cell] = []
        self.pid = pid_of(manager)
        self.lossy = False
        """Whether its relay was killed: its running cells may miss lines then, and say so."""
        self.fragile = False
        """Whether its own sockets were cleared away. Only the relay that was there before finds them then, until it is restarted."""


class Sequences(RuleBasedStateMachine):
    """Rules are faults; `teardown` mends all and looks."""

    cluster: ClassVar[Cluster]
    loop: ClassVar[asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        super().__init__()
        self.silent: dict[str, str] = {}
        """Hosts that are away, and how."""
        self.cleared: set[str] = set()
        """Hosts whose listener may not have made its files again yet. Without them and without it nobody knows of the kernels."""
        self.kernels: list[Kernel] = []
        self.steady = steady()
        self.wait_for(self.steady.__aenter__())
        for name in HOSTS:
            self.wait_for(self.start(name))

    def wait_for(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 120))

    async def start(self, name: str) -> None:
        manager = AsyncKernelManager(kernel_name=write_spec(f"on_{name}", remote_hosts=[name]))
        await manager.start_kernel()
        notebook = Notebook(manager.client())
        await notebook.open()
        self.kernels.append(Kernel(manager, notebook, self.cluster[name]))

    # --- what people do -------------------------------------------------------------------------------------------------------

    @rule(which=st.sampled_from([0, 1]), pause=st.sampled_from([0.0, 0.02, 0.05]))
    def run(self, which: int, pause: float) -> None:
        kernel = self.kernels[which]
        kernel.cells.append(kernel.notebook.run(PER_CELL, pause))
        self.wait_for(asyncio.sleep(0.2))

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.5]))
    def time_passes(self, seconds: float) -> None:
        self.wait_for(asyncio.sleep(seconds))

    @rule(which=st.sampled_from([0, 1]))
    def restart(self, which: int) -> None:
        """Only of a kernel that can be asked and has nothing to do: what becomes of the rest is no question of faults."""
        kernel = self.kernels[which]
        if kernel.host.name in self.silent or state_of(kernel.manager) is not KernelState.RUNNING:
            return
        self.wait_for(self.settle(kernel))
        self.wait_for(kernel.manager.restart_kernel(now=True))
        kernel.notebook.runs = kernel.notebook.total = 0
        kernel.pid, kernel.fragile = pid_of(kernel.manager), False

    # --- what happens to hosts --------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(HOSTS), how=st.sampled_from(["cut", "blackhole", "pause_sshd", "kill_sshd"]))
    def goes_away(self, name: str, how: str) -> None:
        if name not in self.silent:
            self.silent[name] = how
            self.wait_for(do(getattr(self.cluster[name], how)))

    @precondition(lambda self: self.silent)
    @rule(index=st.integers(0, 1))
    def comes_back(self, index: int) -> None:
        name = sorted(self.silent)[index % len(self.silent)]
        self.back(name)

    def back(self, name: str) -> None:
        host, how = self.cluster[name], self.silent.pop(name)
        mended = {"kill_sshd": host.start_sshd, "pause_sshd": host.resume_sshd}.get(how, host.heal)
        self.wait_for(do(mended))
        self.wait_for(self.recover(name))

    async def recover(self, name: str) -> None:
        """Wait for the connection."""
        for kernel in self.kernels:
            if kernel.host.name == name:
                await until(lambda kernel=kernel: state_of(kernel.manager) is KernelState.RUNNING, 60)  # type: ignore[misc]

    @rule(name=st.sampled_from(HOSTS))
    def sshd_sessions_end(self, name: str) -> None:
        if name not in self.silent:
            self.wait_for(do(self.cluster[name].kill_sshd))
            self.wait_for(asyncio.sleep(0.5))
            self.wait_for(do(self.cluster[name].start_sshd))
            self.wait_for(self.recover(name))
            self.cleared.discard(name)

    @rule(name=st.sampled_from(HOSTS))
    def listener_is_killed(self, name: str) -> None:
        host = self.cluster[name]
        if name not in self.cleared:
            self.wait_for(do(kill, host, *listeners(host)))
            self.wait_for(asyncio.sleep(0.3))

    @rule(which=st.sampled_from([0, 1]))
    def relay_is_killed(self, which: int) -> None:
        kernel = self.kernels[which]
        relays = named(kernel.host, "dp-relay")
        if relays and kernel.host.name not in self.silent and not kernel.fragile:
            kernel.lossy = True
            self.wait_for(do(kill, kernel.host, *relays))

    @rule(name=st.sampled_from(HOSTS))
    def sockets_are_cleared_away(self, name: str) -> None:
        # A relay that has not found its kernel yet would never find it.
        there = all(
            state_of(kernel.manager) is KernelState.RUNNING and not kernel.lossy
            for kernel in self.kernels
            if kernel.host.name == name
        )
        if there and listeners(self.cluster[name]):
            self.cleared.add(name)
            for kernel in self.kernels:
                kernel.fragile |= kernel.host.name == name
            self.wait_for(do(self.cluster[name].run, "sh", "-c", CLEAR_SOCKETS))

    # --- the look at it ---------------------------------------------------------------------------------------------------------

    async def settle(self, kernel: Kernel) -> None:
        """All that was asked has been answered; what was lost was said."""
        await until(lambda: state_of(kernel.manager) is KernelState.RUNNING, 60)
        if kernel.lossy:
            await self.settle_lossy(kernel)
        for cell in kernel.cells:
            await cell.check()
        kernel.cells, kernel.lossy = [], False

    async def settle_lossy(self, kernel: Kernel) -> None:
        """What its relay had when it was killed may be lost; all cells end, nothing comes twice, and what is sent now runs."""
        notebook, cells = kernel.notebook, kernel.cells
        for _ in range(3):  # it may be on its way while the relay is killed, and says so then
            look = notebook.execute("print(globals().get('runs', 0))\nprint(globals().get('total', 0))")
            await until(lambda look=look: look.is_over, 60)  # type: ignore[misc]
            if "lost with the relay" not in look.told:
                break
        for cell in cells:
            await until(lambda cell=cell: cell.is_over, 60)  # type: ignore[misc]
            printed = list(map(int, cell.printed))
            assert printed == sorted(set(printed))
        assert not notebook.doubled
        runs, total = map(int, look.printed)
        assert notebook.runs - len(cells) <= runs <= notebook.runs
        notebook.runs, notebook.total, kernel.cells = runs, total, []

    async def look(self, kernel: Kernel) -> None:
        await self.settle(kernel)
        await kernel.notebook.run(
            5, 0.0
        ).check()  # it tells how often cells have run, and how many lines they have printed
        assert pid_of(kernel.manager) == kernel.pid
        assert len(kernels_on(kernel.host)) == 1
        # A listener that was killed behind a dead line is missed when the line is.
        await until(lambda: len(listeners(kernel.host)) == len(named(kernel.host, "dp-relay")) == 1, 30)

    async def end(self) -> None:
        for kernel in self.kernels:
            await kernel.notebook.close()
            await kernel.manager.shutdown_kernel(now=True)
        await self.steady.__aexit__(None, None, None)

    def teardown(self) -> None:
        for name in list(self.silent):
            self.back(name)
        try:
            for kernel in self.kernels:
                self.wait_for(self.look(kernel))
        finally:
            self.wait_for(self.end())


@pytest.fixture(autouse=True)
def without_other_users(cluster: Cluster) -> None:
    """Other tests leave listeners of other users on the hosts, which are none of ours to kill, to wait for or to clear away."""
    for name in HOSTS:
        host = cluster[name]
        for process in host.processes():
            if " serve " in process.command and process.user != cluster.user:
                host.run("kill", "-KILL", str(process.pid), user=process.user, check=False)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_sequence_of_faults_loses_anything(cluster: Cluster) -> None:
    """If it fails: faults that are survived one by one are not survived together."""
    Sequences.cluster = cluster
    Sequences.loop = asyncio.new_event_loop()
    try:
        run_state_machine_as_test(
            Sequences,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        mend(cluster)
        Sequences.loop.close()
