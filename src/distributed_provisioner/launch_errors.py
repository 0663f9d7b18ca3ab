"""Sentences for people, from the fragments that a listener answers to a launch: what, where, the host's own words, what to do."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import (
    HostDrainedError,
    InterpreterNotFoundError,
    LauncherExitedError,
    LaunchError,
    LaunchTimeoutError,
    NoHostAvailableError,
    PortRangeExhaustedError,
    ProvisionerError,
    TooLargeError,
)
from .models import HostAddress, LaunchRequest

LOG_LINES = 20
"""How many of the last lines of a kernel's log an error shows."""


def explained(error: LaunchError, request: LaunchRequest, host: HostAddress) -> LaunchError:
    """The same error, with its host and kernel, and a sentence that says so."""
    said = str(error).rstrip(". ")
    tail = str(getattr(error, "log_tail", "") or "")
    where = {"host": str(host), "kernel_id": request.kernel_id}
    if isinstance(error, LauncherExitedError):
        text = f"The kernel did not start on {host}: {said}. {_log(tail)}"
        if not tail.strip():
            text += " Run the argv of its kernel.json by hand on that host to see why, or correct it."
        return LauncherExitedError(text, exit_status=error.exit_status, log_tail=tail, **where)
    if isinstance(error, LaunchTimeoutError):
        late = LaunchTimeoutError(
            f"The kernel on {host} was not ready within {request.launch_timeout:g} s and was ended. "
            f"Raise launch_timeout (or KERNEL_LAUNCH_TIMEOUT) if it needs longer. {_log(tail)}",
            **where,
        )
        late.log_tail = tail  # type: ignore[attr-defined] # as LauncherExitedError has it
        return late
    if isinstance(error, InterpreterNotFoundError):
        return InterpreterNotFoundError(
            f"The kernel's program is not on {host}: {said}. "
            "Install it there, or name another one in kernel.json's argv or in remote_python.",
            **where,
        )
    if isinstance(error, PortRangeExhaustedError):
        return PortRangeExhaustedError(
            f"{host} has no room in the port range {request.port_range}: {said}. Widen port_range, or end kernels there.",
            **where,
        )
    if isinstance(error, TooLargeError):
        return TooLargeError(f"The kernel cannot be started on {host}: {said}. Shorten that.", **where)
    return type(error)(f"The kernel was not started on {host}: {said}. Try again.", **where)


def nobody(reasons: Mapping[str, ProvisionerError], kernel_id: str) -> NoHostAvailableError:
    """No host could take the kernel: why not, host by host, and what to do."""
    drained = {host: error for host, error in reasons.items() if isinstance(error, HostDrainedError)}
    if len(reasons) == 1:
        message = str(*reasons.values())
    elif len(drained) == len(reasons):
        hosts = ", ".join(
            f"{host} ({error.reason})" if error.reason else host for host, error in drained.items()
        )
        message = (
            f"All {len(reasons)} hosts are drained, so none takes a new kernel: {hosts}. "
            "Let one take kernels again with `jupyter ssh-cluster undrain HOST`, or add another to remote_hosts."
        )
    else:
        lines = "".join(
            f"\n  {error if str(error).startswith(host) else f'{host}: {error}'}"
            for host, error in reasons.items()
        )
        message = (
            f"None of the {len(reasons)} hosts could take the kernel. Mend one of them and try again:{lines}"
        )
    return NoHostAvailableError(message, tried=reasons, kernel_id=kernel_id)


def _log(tail: str) -> str:
    lines = tail.strip().splitlines()[-LOG_LINES:]
    return "The last lines of its log:\n" + "\n".join(lines) if lines else "It wrote nothing to its log."
