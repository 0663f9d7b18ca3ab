"""Options reach a running kernel by each of the three ways: kernel.json, the application's configuration, the environment."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from distributed_provisioner import errors
from tests.applications.desk import Desk
from tests.cluster.real_kernels import STAND_IN, host_of, provisioner_of

if TYPE_CHECKING:
    from distributed_provisioner.testing.host import Host
    from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster

WAYS = ("kernel.json", "configuration", "environment")
SLOW = ["python", "-c", "import time; time.sleep(60)", "{connection_file}"]
QUIET = ["python", "-c", STAND_IN, "{connection_file}"]


class Way:
    """One way to set options: `set` them, and every `manager()` has them."""

    def __init__(self, name: str, desk: Desk, patch: pytest.MonkeyPatch) -> None:
        self.name, self._desk, self._patch = name, desk, patch
        self._config = Config()

    def set(self, *, argv: list[str] = QUIET, **options: Any) -> None:
        """Make the kernelspec `optional` with these options; the spec itself says only what it must."""
        spec = self._desk.kernels / "optional"
        if not spec.exists():
            self._desk.copy("ssh_python", "optional")
        in_spec = options if self.name == "kernel.json" else {}
        self._write(argv, {"remote_python": sys.executable, **in_spec})
        for option, value in options.items() if self.name != "kernel.json" else ():
            if self.name == "configuration":
                self._config.DistributedProvisioner[option] = value
            else:
                text = ",".join(value) if isinstance(value, list | set) else str(value)
                self._patch.setenv(f"GP_{option.upper()}", text)

    def _write(self, argv: list[str], config: dict[str, Any]) -> None:
        path = self._desk.kernels / "optional" / "kernel.json"
        spec = json.loads(path.read_text())
        spec["argv"] = argv
        spec["metadata"]["kernel_provisioner"]["config"] = config
        path.write_text(json.dumps(spec))

    def manager(self) -> AsyncKernelManager:
        return AsyncKernelManager(kernel_name="optional", config=self._config)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Each of the three ways in turn."""
    return Way(request.param, desk, monkeypatch)


async def test_hosts_log_directory_and_ports(cluster: Cluster, way: Way) -> None:
    """If it fails: kernels go to other hosts than configured, log elsewhere, or use ports that a firewall drops."""
    way.set(remote_hosts=["host3"], kernel_log_dir="~/kernel-logs", port_range="23000..24000")
    manager = way.manager()
    await manager.start_kernel()
    try:
        assert host_of(manager) == "host3"
        process = provisioner_of(manager).kernel.process
        assert process is not None
        assert all(23000 <= port <= 24000 for port in process.ports.values())
        assert all(port in listening(cluster["host3"]) for port in process.ports.values())
        log = cluster["host3"].path(f"/home/{cluster.user}/kernel-logs/{manager.kernel_id}.log")
        assert log.stat().st_mode & 0o777 == 0o600
    finally:
        await manager.shutdown_kernel(now=True)


def listening(host: Host) -> set[int]:
    """TCP ports on which a host listens."""
    with open(f"/proc/{host.pid}/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


async def test_launch_timeout(way: Way) -> None:
    """If it fails: users wait half a minute for a kernel that will not come, or lose one that needs longer."""
    way.set(remote_hosts=["host1"], launch_timeout=1, argv=SLOW)
    with pytest.raises(errors.LaunchTimeoutError, match="not ready within 1 s"):
        await way.manager().start_kernel()


async def test_a_start_request_has_its_own_launch_timeout(way: Way) -> None:
    """If it fails: KERNEL_LAUNCH_TIMEOUT, which front ends send, has no effect."""
    way.set(remote_hosts=["host1"], launch_timeout=50, argv=SLOW)
    with pytest.raises(errors.LaunchTimeoutError, match=r"not ready within 0\.5 s"):
        await way.manager().start_kernel(env={**os.environ, "KERNEL_LAUNCH_TIMEOUT": "0.5"})


async def test_authorized_users(way: Way) -> None:
    """If it fails: somebody starts kernels who may not, or nobody can."""
    way.set(remote_hosts=["host1"], authorized_users={"alice"} if way.name == "configuration" else ["alice"])
    with pytest.raises(errors.NotAuthorizedError, match="authorized_users does not have that name"):
        await way.manager().start_kernel()
    manager = way.manager()
    await manager.start_kernel(env={**os.environ, "KERNEL_USERNAME": "alice"})
    await manager.shutdown_kernel(now=True)


async def test_load_balancing_algorithm(way: Way) -> None:
    """If it fails: a site that wants least-connection gets round-robin, or each kernelspec another algorithm."""
    way.set(remote_hosts=["host1", "host2"], load_balancing_algorithm="least-connection")
    if way.name == "kernel.json":
        with pytest.raises(
            errors.ConfigurationError, match=r"load_balancing_algorithm cannot be set in kernel\.json"
        ):
            await way.manager().start_kernel()
        return
    first, second, third, fourth = (way.manager() for _ in range(4))
    await first.start_kernel()
    await second.start_kernel()
    await first.shutdown_kernel(now=True)
    await third.start_kernel()
    await third.shutdown_kernel(now=True)
    await fourth.start_kernel()  # the fourth in turn would be on host2, where the second is
    try:
        assert [host_of(second), host_of(fourth)] == ["host2", "host1"]
    finally:
        await second.shutdown_kernel(now=True)
        await fourth.shutdown_kernel(now=True)


async def test_kernel_json_wins_over_the_configuration_and_that_over_the_environment(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: an administrator's setting is without effect, or a user cannot have a kernelspec of another kind."""
    Way("environment", desk, monkeypatch).set(remote_hosts=["host3"], launch_timeout=7)
    way = Way("configuration", desk, monkeypatch)
    way.set(remote_hosts=["host2"])
    configured = way.manager()
    await configured.start_kernel()
    assert host_of(configured) == "host2"
    assert provisioner_of(configured).settings.launch_timeout == 7
    await configured.shutdown_kernel(now=True)
    desk.change("optional", remote_hosts=["host1"])
    specified = way.manager()
    await specified.start_kernel()
    assert host_of(specified) == "host1"
    await specified.shutdown_kernel(now=True)
