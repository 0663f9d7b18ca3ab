"""sshd's configuration on a host: a distribution's defaults, with keys only, and what a test asks for."""

from __future__ import annotations

from distributed_provisioner.testing.plan import HOST_KEY

_DEFAULTS = {
    "AcceptEnv": "LANG LC_*",
    "HostKey": HOST_KEY,
    "KbdInteractiveAuthentication": "no",
    "LogLevel": "VERBOSE",
    "PasswordAuthentication": "no",
    "PidFile": "/run/sshd.pid",
    "PrintMotd": "no",
    "Subsystem": "sftp internal-sftp",
    "UsePAM": "no",
}


def sshd_config(options: dict[str, str]) -> str:
    """The text of sshd_config(5); `options` win."""
    lower = {name.lower() for name in options}
    kept = {name: value for name, value in _DEFAULTS.items() if name.lower() not in lower}
    return "".join(f"{name} {value}\n" for name, value in {**kept, **options}.items())
