"""One SSH server of the embedded cluster: real commands, real forwarding, sshd's habits."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import pwd
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import asyncssh

from distributed_provisioner.testing import marked


class HostServer:
    """Serves commands and forwards on 127.0.0.1; its methods run in the cluster's event loop."""

    def __init__(self, directory: Path, marker: str) -> None:
        self.port = 0
        self.allow_tcp = self.allow_streamlocal = True
        self.login_delay = self.command_delay = 0.0
        self.connections: set[asyncssh.SSHServerConnection] = set()
        self.commands = 0
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._marker = marker
        self._directory = directory
        self._acceptor: asyncssh.SSHAcceptor | None = None
        for path in (directory, directory / "home", directory / "tmp"):
            path.mkdir(mode=0o700)

    @property
    def host_key(self) -> str:
        """The host's public key."""
        return self._key.export_public_key().decode().strip()

    async def listen(self, client_key: asyncssh.SSHKey) -> None:
        """Accept connections of the owner of `client_key`."""
        if self._acceptor is None:
            keys = asyncssh.import_authorized_keys(client_key.export_public_key().decode())
            self._acceptor = await asyncssh.listen(
                "127.0.0.1",
                self.port,
                server_factory=lambda: _Server(self),
                server_host_keys=[self._key],
                authorized_client_keys=keys,
                process_factory=self._run,
                encoding=None,
                reuse_address=True,
                agent_forwarding=False,
            )
            self.port = self._acceptor.get_port()

    async def close(self) -> None:
        """Accept no more connections."""
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None:
            acceptor.close()

    async def disconnect(self) -> None:
        """Break the connections, without a word of goodbye."""
        for connection in list(self.connections):
            connection.abort()

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        await asyncio.sleep(self.command_delay)
        self.commands += 1
        shell = _login_shell()
        with contextlib.suppress(asyncssh.Error, OSError):
            child = subprocess.Popen(  # noqa: ASYNC220 - see _exit_status
                [shell, "-c", process.command] if process.command is not None else [shell],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment(process, shell),
                cwd=self._directory / "home",
                start_new_session=True,
            )
            await _carry(process, child)

    def _environment(self, process: asyncssh.SSHServerProcess[bytes], shell: str) -> dict[str, str]:
        client, server = process.get_extra_info("peername"), process.get_extra_info("sockname")
        sent = {
            name: value for name, value in process.env.items() if name == "LANG" or name.startswith("LC_")
        }
        user = getpass.getuser()
        return {
            "HOME": str(self._directory / "home"),
            "TMPDIR": str(self._directory / "tmp"),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "SHELL": shell,
            "USER": user,
            "LOGNAME": user,
            "SSH_CLIENT": f"{client[0]} {client[1]} {server[1]}",
            "SSH_CONNECTION": f"{client[0]} {client[1]} {server[0]} {server[1]}",
            marked.VARIABLE: self._marker,
            **sent,
        }


class _Server(asyncssh.SSHServer):
    def __init__(self, host: HostServer) -> None:
        self._host = host

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._host.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._host.connections.discard(self._connection)

    async def begin_auth(self, username: str) -> bool:
        await asyncio.sleep(self._host.login_delay)
        return True

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return _allowed(self._host.allow_tcp)

    def unix_connection_requested(self, dest_path: str) -> bool:
        return _allowed(self._host.allow_streamlocal)


def _allowed(allow: bool) -> bool:
    if not allow:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "open failed")
    return True


async def _carry(process: asyncssh.SSHServerProcess[bytes], child: subprocess.Popen[bytes]) -> None:
    """Carry the child's standard streams until it has ended and nobody holds them open any more, as sshd does.

    The streams are only closed when the connection is lost: the child may live on.
    """
    assert child.stdin and child.stdout and child.stderr  # noqa: PT018 - for mypy
    exited = _exit_status(child)
    stdin = asyncio.create_task(_carry_in(process.stdin, child.stdin))
    try:
        await asyncio.gather(
            _carry_out(child.stdout, process.stdout), _carry_out(child.stderr, process.stderr)
        )
        status = await exited
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)
    finally:
        stdin.cancel()
        await asyncio.gather(stdin, return_exceptions=True)


async def _carry_out(source: IO[bytes], target: asyncssh.SSHWriter[bytes]) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), source)
    try:
        while data := await reader.read(1 << 16):
            target.write(data)
            await target.drain()
    finally:
        transport.close()


async def _carry_in(source: asyncssh.SSHReader[bytes], target: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, target)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        with contextlib.suppress(asyncssh.Error, OSError):
            while data := await source.read(1 << 16):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


def _exit_status(child: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """A future; asyncio's own child processes are killed when their pipes are closed."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    def settle(status: int) -> None:
        if not future.done():
            future.set_result(status)

    def wait() -> None:
        status = child.wait()
        with contextlib.suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(settle, status)

    threading.Thread(target=wait, name=f"wait-{child.pid}", daemon=True).start()
    return future


def _login_shell() -> str:
    shell = pwd.getpwuid(os.geteuid()).pw_shell
    return shell if shell and os.path.basename(shell) not in {"false", "nologin"} else "/bin/sh"
