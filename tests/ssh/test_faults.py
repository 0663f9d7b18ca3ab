"""A line that is lost costs no kernel: watchers are told, requests fail at once, and everything is there again after it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from distributed_provisioner.errors import ConnectionLostError, HostError, HostKeyError
from distributed_provisioner.ssh import HostConnection, KernelEvent

from .conftest import Get, Run
from .kernels import client_of, closing, forget, launch_params, process_of, value_of

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster, Host

pytestmark = pytest.mark.cluster


class Kernel:
    """A kernel on a host, its near ends, and what its watcher was told, each with its time."""

    def __init__(self, connection: HostConnection, run: Run, prefix: str) -> None:
        self.connection, self.run = connection, run
        self.params = launch_params()
        self.events: list[tuple[str, float]] = []
        self.last: KernelEvent | None = None
        self.attachment: Any = None
        self._prefix = prefix

    async def start(self) -> None:
        await self.connection.connect()
        self.watch = self.connection.watch(self.params["kernel_id"], 1, self._told)
        reply = await self.connection.request("launch", timeout=50, **self.params)
        self.process = process_of(self.connection.address, self.params, reply)
        self.attachment = await self.connection.attach(self.process, self._prefix)

    def client(self) -> BlockingKernelClient:
        return client_of(self.attachment, self.params["key"])

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def _told(self, event: KernelEvent) -> None:
        self.last = event
        self.events.append((event.kind, time.monotonic()))

    async def stop(self) -> None:
        self.watch.close()
        await self.attachment.close()
        try:
            await self.connection.connect()
            await forget(self.connection, self.params)
        except HostError:
            pass


@contextmanager
def kernel_on(host: Host, cluster: Cluster, run: Run, get: Get) -> Iterator[Kernel]:
    """Afterwards the host is as it was."""
    with tempfile.TemporaryDirectory(prefix="dp-") as directory:
        started = Kernel(get(host.name, connect_timeout=6.0), run, f"{directory}/k")
        run(started.start())
        yield started
        host.heal()
        host.resume_sshd()
        host.start_sshd()
        cluster.trust_hosts()
        run(started.stop())


@pytest.fixture
def kernel(cluster: Cluster, host: Host, run: Run, get: Get) -> Iterator[Kernel]:
    with kernel_on(host, cluster, run, get) as started:
        yield started


def until(condition: Callable[[], object], seconds: float) -> float:
    """Wait; gives the seconds that it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - start


def test_a_killed_sshd_costs_no_kernel_and_no_variable(host: Host, kernel: Kernel, run: Run) -> None:
    """Administrators restart sshd; the machine's out-of-memory killer takes it."""
    with closing(kernel.client()) as client:
        client.wait_for_ready(30)
        client.execute_interactive("x = 41", timeout=20)
        host.kill_sshd()
        until(lambda: kernel.kinds == ["lost"], 2)
        assert kernel.connection.state in ("lost", "connecting")
        assert "unreachable=" in repr(kernel.connection)
        host.start_sshd()
        assert until(lambda: kernel.kinds == ["lost", "regained"], 10) < 5
        assert (kernel.connection.unreachable_since, kernel.connection.error) == (None, None)
        assert value_of(client, "x + 1") == "42"
        signal_it = kernel.connection.request(
            "signal", timeout=5, kernel_id=kernel.params["kernel_id"], generation=1, signal=2
        )
        run(signal_it)


def test_requests_under_way_fail_at_once(host: Host, kernel: Kernel, run: Run) -> None:
    """A launch must go to another host at once, not after its time-out."""

    async def ask() -> None:
        slow = launch_params(argv=["/bin/sh", "-c", "sleep 60; :", "{connection_file}"])
        await kernel.connection.request("launch", timeout=50, **slow)

    async def lose() -> float:
        task = asyncio.ensure_future(ask())
        await asyncio.sleep(0.5)
        start = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(None, host.kill_sshd)
        with pytest.raises(ConnectionLostError):
            await task
        return time.monotonic() - start

    assert run(lose()) < 2
    until(lambda: not [process for process in host.processes() if "sleep 60" in process.command], 5)


@pytest.mark.slow
def test_a_minutes_cut_heals_within_three_seconds(cluster: Cluster, run: Run, get: Get) -> None:
    """The promise: a cut of a minute, and after it cells run, with every variable there. Two kinds share the minute, each on its host."""
    hosts = [cluster["host1"], cluster["host2"]]
    with ExitStack() as stack:
        kernels = [stack.enter_context(kernel_on(host, cluster, run, get)) for host in hosts]
        clients = [stack.enter_context(closing(kernel.client())) for kernel in kernels]
        for client in clients:
            client.wait_for_ready(30)
            client.execute_interactive("x = 41", timeout=20)
        hosts[0].cut()
        hosts[1].blackhole()
        assert until(lambda: all(kernel.kinds == ["lost"] for kernel in kernels), 20) < 15
        time.sleep(45)
        for host, kernel, client in zip(hosts, kernels, clients, strict=True):
            assert kernel.kinds == ["lost"]
            host.heal()
            healed = time.monotonic()
            assert value_of(client, "x + 1", timeout=15) == "42"
            assert time.monotonic() - healed < 3
            assert kernel.kinds == ["lost", "regained"]


@pytest.mark.slow
def test_a_stopped_sshd_is_noticed_and_regained(host: Host, kernel: Kernel) -> None:
    """The third kind of silence: TCP answers, sshd does not."""
    host.pause_sshd()
    assert until(lambda: kernel.kinds == ["lost"], 20) < 15
    host.resume_sshd()
    until(lambda: kernel.kinds == ["lost", "regained"], 12)


@pytest.mark.slow
def test_a_restarted_host_is_told_as_such_and_its_kernels_as_dead(host: Host, kernel: Kernel) -> None:
    """A kernel whose host was restarted is gone: the user must not wait for it."""
    host.power_off()
    until(lambda: kernel.kinds == ["lost"], 20)
    host.boot()
    until(lambda: kernel.kinds == ["lost", "exited"], 15)
    assert kernel.last is not None
    assert kernel.last.reason is not None
    assert (kernel.last.reason.code, kernel.last.reason.reason) == (None, "host rebooted")


def test_a_kernel_that_died_meanwhile_is_told_with_its_end(host: Host, kernel: Kernel) -> None:
    """Its exit is kept by the listener until somebody asks."""
    host.kill_sshd()
    until(lambda: kernel.kinds == ["lost"], 5)
    host.run("kill", "-9", str(kernel.process.pid))
    host.start_sshd()
    until(lambda: kernel.kinds == ["lost", "exited"], 10)
    assert kernel.last is not None
    assert kernel.last.reason is not None
    assert kernel.last.reason.code == -9


def test_a_kernel_that_is_to_be_ended_on_a_host_that_is_away_is_ended_when_it_is_back(
    host: Host, kernel: Kernel
) -> None:
    """A restart elsewhere must not leave the old kernel running for ever."""
    host.kill_sshd()
    until(lambda: kernel.kinds == ["lost"], 5)
    kernel.watch.close()
    kernel.run(_call(lambda: kernel.connection.end_later(kernel.params["kernel_id"], 1)))
    host.start_sshd()
    until(lambda: not [process for process in host.processes() if process.pid == kernel.process.pid], 15)


def test_a_host_that_refuses_us_is_not_asked_each_second(
    host: Host, kernel: Kernel, cluster: Cluster, run: Run
) -> None:
    """A changed key is never accepted because a kernel is wanted, and a host must not take us for an attacker."""
    log = host.sshd_log().count("Connection from")
    host.new_host_key()
    host.kill_sshd()
    until(lambda: kernel.kinds == ["lost"], 5)
    host.start_sshd()
    until(lambda: isinstance(kernel.connection.error, HostKeyError), 10)
    time.sleep(4)
    assert kernel.kinds == ["lost"]
    assert host.sshd_log().count("Connection from") - log < 8
    cluster.trust_hosts()
    run(kernel.connection.connect())
    assert kernel.kinds == ["lost", "regained"]


def test_nothing_is_sent_while_nothing_happens_but_signs_of_life(host: Host, kernel: Kernel) -> None:
    """A hundred idle kernels must cost nothing; exits are pushed, not asked for."""
    assert kernel.connection._lines.transport is not None
    connection = kernel.connection._lines.transport.connection
    before = connection._send_seq
    time.sleep(5)
    assert connection._send_seq - before <= 2


async def _call(function: Callable[[], None]) -> None:
    function()
