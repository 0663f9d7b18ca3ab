"""A Kerberos realm of the test's own: a key distribution center on loopback, and hosts whose sshd takes its tickets alone.

Nothing of the machine's own Kerberos is read or written: the programs are told by variables where everything is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Host

REALM = "DP.TEST"
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
PROGRAMS = ("krb5kdc", "kdb5_util", "kadmin.local", "kinit")
CONFIG = """
[libdefaults]
  default_realm = {realm}
  dns_lookup_kdc = false
  dns_lookup_realm = false
  dns_canonicalize_hostname = false
  rdns = false
  udp_preference_limit = 1
[realms]
  {realm} = {{
    kdc = 127.0.0.1:{port}
  }}
"""
CENTER_CONFIG = """
[kdcdefaults]
  kdc_listen = ""
  kdc_tcp_listen = 127.0.0.1:{port}
[realms]
  {realm} = {{
    database_name = {directory}/principal
    key_stash_file = {directory}/stash
    acl_file = {directory}/acl
    max_life = 1d
    supported_enctypes = aes128-cts-hmac-sha256-128:normal
    master_key_type = aes128-cts-hmac-sha256-128
  }}
"""


def missing() -> list[str]:
    """Programs that are not installed here."""
    return [program for program in PROGRAMS if not shutil.which(program, path=PATH)]


class Realm:
    """A realm with a running key distribution center. `environment` is what a process needs that belongs to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._tell_port()
        self.environment = {
            "KRB5_CONFIG": str(directory / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(directory / "kdc.conf"),
            "KRB5CCNAME": f"FILE:{directory / 'tickets'}",
            "KRB5_CLIENT_KTNAME": str(directory / "no-such-keytab"),
        }
        self._center: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the realm and start its center; returns when that listens."""
        self._run("kdb5_util", "create", "-s", "-P", "master")
        self.start_center()

    def start_center(self) -> None:
        program = shutil.which("krb5kdc", path=PATH)
        assert program is not None
        log = (self.directory / "center.log").open("ab")
        with log:
            self._center = subprocess.Popen(
                [program, "-n"], env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if self._center.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "center.log").read_text())
            time.sleep(0.01)

    def stop_center(self) -> None:
        if self._center is not None:
            self._center.kill()
            self._center.wait()
            self._center = None

    def silence_center(self, silent: bool) -> None:
        """Have it accept connections and say nothing; or end that."""
        if self._center is not None:
            self._center.send_signal(signal.SIGSTOP if silent else signal.SIGCONT)

    def add_user(self, name: str) -> None:
        """A principal whose password is its name."""
        self._run("kadmin.local", "-q", f"addprinc -pw {name} {name}")

    def admit(self, host: Host, *, key: bool = True) -> None:
        """Make a host one of the realm, with a principal by its address, and a keytab unless `key` is false."""
        keytab = self.directory / f"{host.name}.keytab"
        keytab.unlink(missing_ok=True)
        if f"host/{host.address}@{REALM}" not in self._run("kadmin.local", "-q", "listprincs"):
            self._run("kadmin.local", "-q", f"addprinc -randkey host/{host.address}")
        self._run("kadmin.local", "-q", f"ktadd -k {keytab} host/{host.address}")
        host.path("/etc/krb5.conf").write_text((self.directory / "krb5.conf").read_text())
        if key:
            host.path("/etc/krb5.keytab").write_bytes(keytab.read_bytes())
            host.path("/etc/krb5.keytab").chmod(0o600)

    def kinit(self, user: str, *, seconds: int = 3600) -> None:
        """Get a ticket, as a user at a terminal does."""
        self._run("kinit", "-l", f"{seconds}s", user, input=f"{user}\n")

    def kdestroy(self) -> None:
        (self.directory / "tickets").unlink(missing_ok=True)

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": PATH, "LC_ALL": "C", **self.environment}

    def _run(self, *argv: str, input: str = "") -> str:
        done = subprocess.run(
            argv, env=self._environment, input=input, capture_output=True, text=True, check=False, timeout=30
        )
        # kadmin.local ends with 0 whatever happens.
        if done.returncode or any(
            line.startswith(("add_principal:", "kadmin.local:")) for line in done.stderr.splitlines()
        ):
            raise RuntimeError(f"{argv}: {done.stdout}{done.stderr}")
        return done.stdout

    def _tell_port(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        words = {"realm": REALM, "port": self.port, "directory": self.directory}
        (self.directory / "krb5.conf").write_text(CONFIG.format(**words))
        (self.directory / "kdc.conf").write_text(CENTER_CONFIG.format(**words))
