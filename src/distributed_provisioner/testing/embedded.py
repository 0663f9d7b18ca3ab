"""A cluster inside this process: SSH servers on loopback, whose commands run on this machine as this user.

    with EmbeddedCluster(3) as cluster:
        subprocess.run(["ssh", "-F", cluster.home / ".ssh/config", "host1", "echo $HOME"])

For a demo and for quick tests: it needs neither root nor Linux nor sshd. Each host has its own host key and its own
HOME and TMPDIR; files, processes and host name are this machine's. As under sshd, a command is not ended when
its connection is: it sees its pipes closed. `stop` ends what the hosts started, even if it is detached, by a
variable in its environment.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import asyncssh

from distributed_provisioner.testing import marked
from distributed_provisioner.testing.embedded_server import HostServer
from distributed_provisioner.testing.leftovers import remove_socket_directories
from distributed_provisioner.testing.processes import HostProcess

__all__ = ["EmbeddedCluster", "EmbeddedHost"]

T = TypeVar("T")


class EmbeddedHost:
    """One server: `address` and `port` to connect to, `host_key` in OpenSSH's public format, `directory` with its HOME.

    `allow_tcp_forwarding` and `allow_streamlocal_forwarding` may be set at any time, as may `login_delay` and
    `command_delay`: seconds before a login is answered, and before a command starts.
    """

    address = "127.0.0.1"

    def __init__(self, cluster: EmbeddedCluster, name: str, directory: Path) -> None:
        self.name, self.directory, self.home = name, directory, directory / "home"
        self.marker = uuid.uuid4().hex
        self._cluster = cluster
        self._server = HostServer(directory, self.marker)
        self.host_key = self._server.host_key

    def __repr__(self) -> str:
        return f"<EmbeddedHost {self.name} port={self.port} connections={len(self._server.connections)}>"

    @property
    def port(self) -> int:
        """The port, the same for the host's whole life."""
        return self._server.port

    @property
    def allow_tcp_forwarding(self) -> bool:
        """sshd's AllowTcpForwarding."""
        return self._server.allow_tcp

    @allow_tcp_forwarding.setter
    def allow_tcp_forwarding(self, allow: bool) -> None:
        self._server.allow_tcp = allow

    @property
    def allow_streamlocal_forwarding(self) -> bool:
        """sshd's AllowStreamLocalForwarding."""
        return self._server.allow_streamlocal

    @allow_streamlocal_forwarding.setter
    def allow_streamlocal_forwarding(self, allow: bool) -> None:
        self._server.allow_streamlocal = allow

    def slow(self, *, login: float = 0, command: float = 0) -> None:
        """Let this many seconds pass before a login is answered, and before a command starts."""
        self._server.login_delay, self._server.command_delay = login, command

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._server.connections)

    @property
    def commands(self) -> int:
        """How many commands were started since the cluster is up."""
        return self._server.commands

    def disconnect(self) -> None:
        """Break all connections that are open."""
        self._cluster.call(self._server.disconnect())

    def refuse_connections(self) -> None:
        """Stop listening; open connections stay."""
        self._cluster.call(self._server.close())

    def accept_connections(self) -> None:
        """Listen again, on the same port."""
        self._cluster.call(self._server.listen(self._cluster.client_key))

    def processes(self) -> list[HostProcess]:
        """What this host started and what is still running, children of children and detached ones included."""
        return marked.processes(self.marker)

    def kill_processes(self) -> None:
        """SIGKILL to all of them; returns when they have ended."""
        marked.kill(self.marker)


class EmbeddedCluster:
    """Hosts host1 … hostN; `home` is a HOME for the client, whose .ssh reaches them by these names."""

    hosts: list[EmbeddedHost]
    home: Path

    def __init__(self, hosts: int = 3, *, directory: Path | None = None) -> None:
        self._count, self._given_directory = hosts, directory
        self.hosts = []
        self.user = getpass.getuser()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> EmbeddedCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __getitem__(self, name: str) -> EmbeddedHost:
        return next(host for host in self.hosts if host.name == name)

    def __repr__(self) -> str:
        return f"<EmbeddedCluster {'up' if self._loop else 'down'} hosts={len(self.hosts)}>"

    def start(self) -> EmbeddedCluster:
        """Start the servers; returns when all listen."""
        self._directory = Path(tempfile.mkdtemp(prefix="dp-", dir=self._given_directory))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="embedded-cluster", daemon=True)
        self._thread.start()
        try:
            self.client_key = asyncssh.generate_private_key("ssh-ed25519", comment="embedded cluster")
            for number in range(1, self._count + 1):
                host = EmbeddedHost(self, f"host{number}", self._directory / f"h{number}")
                self.hosts.append(host)
                host.accept_connections()
            self.home = self._make_home()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the servers, their connections, and every process that was started on them."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        for host in self.hosts:
            host.kill_processes()
        asyncio.run_coroutine_threadsafe(self._shut_down(), loop).result(20)
        for host in self.hosts:  # what a command started while it was being ended
            host.kill_processes()
            remove_socket_directories(host.home)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _shut_down(self) -> None:
        for host in self.hosts:
            await host._server.close()
            await host._server.disconnect()
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something in the cluster's own event loop; for `EmbeddedHost`."""
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("the cluster is not up")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def _make_home(self) -> Path:
        home = self._directory / "client"
        ssh = home / ".ssh"
        for directory in (home, ssh):
            directory.mkdir(mode=0o700)
        self.client_key.write_private_key(ssh / "id_ed25519")
        self.client_key.write_public_key(ssh / "id_ed25519.pub")
        os.chmod(ssh / "id_ed25519", 0o600)
        lines, known = [], []
        for host in self.hosts:
            lines += [f"Host {host.name}", f"  HostName {host.address}", f"  Port {host.port}"]
            known.append(f"[{host.address}]:{host.port} {host.host_key}\n")
        lines += [
            f"Host {' '.join(host.name for host in self.hosts)}",
            f"  User {self.user}",
            f"  IdentityFile {ssh / 'id_ed25519'}",
            "  IdentitiesOnly yes",
            f"  UserKnownHostsFile {ssh / 'known_hosts'}",
            "  StrictHostKeyChecking yes",
            "  BatchMode yes",
        ]
        (ssh / "config").write_text("\n".join(lines) + "\n")
        (ssh / "known_hosts").write_text("".join(known))
        return home

    def ssh(self, host: str, *options: str) -> list[str]:
        """The start of a command line of OpenSSH's client to `host`."""
        return ["ssh", "-F", str(self.home / ".ssh/config"), *options, host]
