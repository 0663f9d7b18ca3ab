"""What of the server's own environment reaches this machine's listener and kernels: what a log-in needs, and nothing else."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from distributed_provisioner.own_user import own_name

from .conftest import Get, Run
from .kernels import forget, launch_params

SECRETS = {
    "SSH_CONNECTION": "192.0.2.7 50000 192.0.2.8 22",
    "GP_REMOTE_PWD": "secret-0815",
    "JUPYTER_TOKEN": "secret-4711",
    "SSH_AUTH_SOCK": "/tmp/secret-agent",
}


def environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(item.partition("=")[::2] for item in text.split("\0") if item)


@pytest.mark.skipif(sys.platform != "linux", reason="other platform: no /proc")
def test_the_servers_secrets_reach_neither_the_listener_nor_the_kernels_of_this_machine(
    run: Run, get: Get, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A password or a token of the server would be in the hands of everybody's kernels, for days."""
    monkeypatch.setenv("HOME", str(tmp_path))  # a listener of its own: it is started here
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    connection = get("localhost")
    params = launch_params()

    async def launch() -> tuple[int, int]:
        welcome = await connection.connect()
        return welcome.pid, (await connection.request("launch", timeout=50, **params))["pid"]

    listener, kernel = run(launch())
    try:
        for pid in (listener, kernel):
            found = environment(pid)
            assert found["HOME"] == str(tmp_path)
            assert not SECRETS.keys() & found.keys()
            assert not set(SECRETS.values()) & set(found.values())
        assert not [
            name for name in environment(listener) if name.startswith(("JUPYTER_", "IPYTHON", "SSH_"))
        ]
    finally:
        run(forget(connection, params))


def test_a_uid_without_an_account_has_its_number_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers run with arbitrary uids; a bare KeyError helps nobody."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert own_name() == str(os.getuid())


@pytest.mark.skipif(os.geteuid() != 0, reason="other platform: needs root to be another user")
def test_a_uid_without_an_account_can_use_ssh(tmp_path: Path) -> None:
    """OpenShift gives each project a uid that no passwd file has."""
    home = tmp_path / "home"
    home.mkdir()
    code = """
import asyncio
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh import Connections
from distributed_provisioner.ssh.config import find_target

async def owner():
    return (await Connections.current().names())[0]

print(asyncio.run(IOThread.current().run(owner())).partition("@")[0])
print(find_target(HostAddress("host1"), Login()).user)
"""
    environ = {"HOME": "/nonexistent", "PATH": os.environ["PATH"]}
    argv = ["setpriv", "--reuid", "54321", "--clear-groups", sys.executable, "-B", "-c", code]
    done = subprocess.run(argv, env=environ, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["54321", "54321"]
