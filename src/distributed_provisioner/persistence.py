"""What must be written down of a kernel so that another process can take it over. No password is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ConfigurationError
from .models import CHANNELS, HostAddress, LaunchRequest, Login, RemoteProcess, is_account_name

VERSION = 1

_OF_A_SERVER = ("JUPYTER", "JPY_", "GP_", "KG_", "EG_", "CONFIGPROXY_")
_SECRET = ("TOKEN", "PWD", "PASSW", "SECRET", "AUTH", "COOKIE")
"""Beginnings and parts of the names of a server's own credentials: a value that has changed since the kernel's start looks like the
request's."""


def process_to_json(process: RemoteProcess) -> dict[str, Any]:
    """Plain JSON for `process_from_json`."""
    return {
        "version": VERSION,
        "host": str(process.host),
        "pid": process.pid,
        "kernel_pid": process.kernel_pid,
        "pgid": process.pgid,
        "generation": process.generation,
        "kernel_transport": process.kernel_transport,
        "ip": process.ip,
        "ports": dict(process.ports),
        "directory": process.directory,
        "relay": process.relay,
    }


def process_from_json(data: Mapping[str, Any]) -> RemoteProcess:
    """The inverse of `process_to_json`.

    Raises:
        ConfigurationError: it was written by another version, or is damaged.
    """
    try:
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']!r}")
        return RemoteProcess(
            host=HostAddress.parse(data["host"]),
            pid=int(data["pid"]),
            kernel_pid=int(data["kernel_pid"]),
            pgid=int(data["pgid"]),
            generation=int(data["generation"]),
            kernel_transport=data["kernel_transport"],
            ip=str(data["ip"]),
            ports={str(channel): int(port) for channel, port in data["ports"].items()},
            directory=str(data["directory"]),
            relay=str(data.get("relay") or ""),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"What was kept about a running kernel cannot be read ({error}). It cannot be found again: start a new one."
        ) from error


def process_from_status(host: HostAddress, status: Mapping[str, Any]) -> RemoteProcess:
    """Where a kernel runs, by its status as the host's listener tells it. Raises KeyError, TypeError or ValueError for one that is none."""
    return RemoteProcess(
        host=host,
        pid=int(status["pid"]),
        kernel_pid=int(status["kernel_pid"] or status["pid"]),
        pgid=int(status["pgid"]),
        generation=int(status["generation"]),
        kernel_transport=status["transport"],
        ip=str(status["ip"]),
        ports={channel: int(status["ports"][channel]) for channel in CHANNELS},
        directory=str(status.get("directory") or ""),
        details={name: status.get(name) for name in ("log", "start", "started")},
        relay=str(status.get("relay") or ""),
    )


def launch_to_json(
    request: LaunchRequest, kernel_spec: Any, cwd: str | None, extra_arguments: Sequence[str]
) -> dict[str, Any]:
    """What a restart by another process needs, and what Jupyter asks of a kernelspec, should it be gone by then.

    Of the environment only what the start request brought, and no credentials of the server: hosts and files keep it.
    """
    own = ("KERNEL_ID", "KERNEL_LANGUAGE")
    return {
        "env": {
            name: value
            for name, value in request.request_env.items()
            if name not in own and not _is_credential(name)
        },
        "cwd": None if cwd is None else str(cwd),
        "extra_arguments": list(map(str, extra_arguments)),
        "spec": {name: getattr(kernel_spec, name) for name in ("display_name", "language", "interrupt_mode")},
    }


def _is_credential(name: str) -> bool:
    return name.startswith(_OF_A_SERVER) and any(part in name for part in _SECRET)


def launch_arguments_from_json(data: Mapping[str, Any] | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """What the kernel was started with, as a KernelManager keeps it for restarts; `environ` is this server's own environment."""
    known = data or {}
    arguments: dict[str, Any] = {"env": {**environ, **(known.get("env") or {})}}
    for name in ("cwd", "extra_arguments"):
        if known.get(name):
            arguments[name] = known[name]
    return arguments


def login_to_json(login: Login) -> dict[str, Any]:
    """Plain JSON without the password: the settings of the process that loads it have it."""
    return {
        "user": login.user,
        "gss": login.gss,
        "port": login.port,
        "connect_timeout": login.connect_timeout,
        "keepalive_interval": login.keepalive_interval,
        "run_as": login.run_as,
    }


def login_from_json(data: Mapping[str, Any], password: str | None) -> Login:
    """The inverse of `login_to_json`. Raises ConfigurationError for a name that no account has: it would become part of a command."""
    run_as = data.get("run_as") or None
    if run_as is not None and not (isinstance(run_as, str) and is_account_name(run_as)):
        raise ConfigurationError(
            f"What was kept about a running kernel says that it runs as {run_as!r}, which is no user's name. Start a new one."
        )
    return Login(
        data["user"],
        password,
        bool(data["gss"]),
        int(data["port"]),
        float(data["connect_timeout"]),
        float(data.get("keepalive_interval", Login.keepalive_interval)),
        run_as,
    )


def connection_info_to_json(info: Mapping[str, Any]) -> dict[str, Any]:
    """Jupyter's connection info with its key as text."""
    return {
        name: value.decode("utf-8") if isinstance(value, bytes) else value for name, value in info.items()
    }


def connection_info_from_json(info: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `connection_info_to_json`."""
    return {**info, "key": str(info["key"]).encode("utf-8")} if "key" in info else dict(info)
