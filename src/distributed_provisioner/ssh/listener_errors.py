"""Errors for people and callers, from what a listener answers, or from what answers in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import (
    HostDrainedError,
    HostError,
    HostSetupError,
    InterpreterNotFoundError,
    LauncherExitedError,
    LaunchError,
    LaunchTimeoutError,
    PortRangeExhaustedError,
    ProtocolError,
    ProvisionerError,
    TooLargeError,
)
from .bootstrap import PYTHONS, MarkerSearch, words


class NeedBundle(LaunchError):
    """The host has not (or no longer) the files that a launch needs: ship them and ask again."""


def exception_of(error: Mapping[str, Any], host: str) -> ProvisionerError:
    """The exception for an `error` object of the listener."""
    kind, message = error.get("type"), str(error.get("message", ""))
    tail = str(error.get("log_tail") or "")
    if kind == "launcher-exited":
        return LauncherExitedError(message, exit_status=error.get("exit_status"), log_tail=tail, host=host)
    if kind in ("setup", "resources", "drained"):
        return _host_error(error, host)
    if kind == "bad-request":
        return ProtocolError(
            f"The listener on {host} refused a request: {message}. Correct that in kernel.json or in the start request; "
            "if it comes from neither, it is a bug of distributed-provisioner: report it.",
            host=host,
        )
    if kind == "unknown-op":
        return ProtocolError(
            f"The listener on {host} refused a request: {message}. It is of another version: "
            "use the same version of distributed-provisioner for all servers of this user.",
            host=host,
        )
    if kind == "timeout":
        failure = LaunchTimeoutError(message, host=host)
        failure.log_tail = tail  # type: ignore[attr-defined] # as LauncherExitedError has it
        return failure
    return _LAUNCH_ERRORS.get(str(kind), LaunchError)(message, host=host)


def _host_error(error: Mapping[str, Any], host: str) -> HostError:
    if error.get("type") == "drained":
        return HostDrainedError(host, str(error.get("message", "")).partition(": ")[2])
    return HostSetupError(
        f"{host} cannot be used: {error.get('message', '')}. Mend that there and try again.", host=host
    )


_LAUNCH_ERRORS: dict[str, type[LaunchError]] = {
    "interpreter-not-found": InterpreterNotFoundError,
    "ports-exhausted": PortRangeExhaustedError,
    "need-bundle": NeedBundle,
    "too-large": TooLargeError,
}


def no_bridge(host: str, search: MarkerSearch, stderr: bytes) -> HostError:
    """The remote command has not run as it should: with the host's own words, and what it may be."""
    said = words(search.noise + b"\n" + stderr)
    told = f" It said instead: {said}" if said else " It said nothing."
    if search.trouble == "no-python":
        return HostSetupError(
            f"{host} has no Python 3.8 or newer (looked for {', '.join(PYTHONS)} on the PATH and in /usr/bin, "
            "/usr/local/bin and /opt/homebrew/bin). Install python3 there, or put it on the PATH of non-interactive shells.",
            host=host,
        )
    if search.done:
        return HostSetupError(
            f"{host} cannot be used: the listener's bridge ended at its start.{told} "
            "Mend that there and try again.",
            host=host,
        )
    return HostSetupError(
        f"{host} lets the user log in but runs no commands.{told} A ForceCommand in its sshd_config, a command= in "
        "authorized_keys, or a login shell like nologin stands in the way: allow commands for this user or key.",
        host=host,
    )


def largest(params: Mapping[str, Any]) -> str:
    """What of a launch is the largest: names only, values may be secrets."""
    groups = ("spec_env", "request_env", "argv")
    sizes = {f"its {name}": len(str(value)) for name, value in params.items() if name not in groups}
    for name, value in {**params.get("spec_env", {}), **params.get("request_env", {})}.items():
        sizes[f"the environment variable {name}"] = len(value)
    sizes.update((f"argument {number}", len(item)) for number, item in enumerate(params.get("argv", ())))
    name = max(sizes, key=lambda name: sizes[name], default="it")
    return f"{name} has {sizes.get(name, 0) >> 20} MB of it"
