"""What must be written down of a kernel so that another process can take it over. No password is in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import ConfigurationError
from .models import HostAddress, Login, RemoteProcess

VERSION = 1


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
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"What was kept about a running kernel cannot be read ({error}). It cannot be found again: start a new one."
        ) from error


def login_to_json(login: Login) -> dict[str, Any]:
    """Plain JSON without the password: the settings of the process that loads it have it."""
    return {
        "user": login.user,
        "gss": login.gss,
        "port": login.port,
        "connect_timeout": login.connect_timeout,
    }


def login_from_json(data: Mapping[str, Any], password: str | None) -> Login:
    """The inverse of `login_to_json`."""
    return Login(data["user"], password, bool(data["gss"]), int(data["port"]), float(data["connect_timeout"]))


def connection_info_to_json(info: Mapping[str, Any]) -> dict[str, Any]:
    """Jupyter's connection info with its key as text."""
    return {
        name: value.decode("utf-8") if isinstance(value, bytes) else value for name, value in info.items()
    }


def connection_info_from_json(info: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `connection_info_to_json`."""
    return {**info, "key": str(info["key"]).encode("utf-8")} if "key" in info else dict(info)
