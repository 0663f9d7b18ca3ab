"""The administrator's files in /etc/ssh count, after the user's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest

ETC = Path("/etc/ssh")

CODE = """
from distributed_provisioner.models import HostAddress, Login
from distributed_provisioner.ssh.config import find_target

for name in ("ours", "both"):
    target = find_target(HostAddress(name), Login())
    trusted = target.known_hosts(target.host, "", None)[0]
    print(name, target.host, target.user, len(trusted))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not ETC.is_dir(), reason="other platform: no mount namespaces, or no /etc/ssh"
)
def test_the_systems_configuration_and_known_hosts_are_read_after_the_users(tmp_path: Path) -> None:
    """Administrators give all users the cluster's aliases and host keys there; verification of host keys would fail without."""
    home, etc = tmp_path / "home", tmp_path / "etc"
    (home / ".ssh").mkdir(parents=True)
    etc.mkdir()
    public = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    (home / ".ssh" / "config").write_text("Host both\n User mine\n")
    (etc / "ssh_config").write_text(
        "Host ours\n HostName 192.0.2.10\nHost both\n HostName 192.0.2.11\n User theirs\n"
    )
    (etc / "ssh_known_hosts").write_text(f"192.0.2.10 {public}")
    (etc / "ssh_known_hosts2").write_text(f"192.0.2.11 {public}")
    script = f'mount --bind "{etc}" {ETC} && exec "$0" -c "$1"'
    root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = [shutil.which("unshare") or "unshare", "--mount", *root, "sh", "-c", script, sys.executable, CODE]
    done = subprocess.run(
        argv, env={**os.environ, "HOME": str(home), "LOGNAME": "ann"}, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["ours 192.0.2.10 ann 1", "both 192.0.2.11 mine 1"]
