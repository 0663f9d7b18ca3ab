"""Every exception of the package, on one screen.

A message is one sentence that says what happened, and where, and one that says what to do. What the host said itself is in the
message and, for programs, in the fields. Each class is also the built-in that a caller may already catch.

What a caller can do about an error:

* try another host: `HostError`
* nothing before something is changed: `ConfigurationError`, `NotAuthorizedError`, `KernelSpecError`
* ask again later: `NoHostAvailableError`
"""

from __future__ import annotations

from collections.abc import Mapping


class ProvisionerError(Exception):
    """Root of the tree. `host` and `kernel_id` are set where they are known."""

    def __init__(self, message: str, *, host: str | None = None, kernel_id: str | None = None) -> None:
        super().__init__(message)
        self.host = host
        self.kernel_id = kernel_id


class ConfigurationError(ProvisionerError, ValueError):
    """An option has a value that cannot be used."""


class KernelSpecError(ProvisionerError, ValueError):
    """A kernel specification cannot be built, installed or launched as it is."""


class NotAuthorizedError(ProvisionerError, PermissionError):
    """The user may not launch this kernel (HTTP 403)."""


class NoHostAvailableError(ProvisionerError, ConnectionError):
    """No host could take the kernel. `tried` has the reason of each host, in the order they were tried."""

    def __init__(
        self, message: str, *, tried: Mapping[str, ProvisionerError], kernel_id: str | None = None
    ) -> None:
        super().__init__(message, kernel_id=kernel_id)
        self.tried = dict(tried)


class HostError(ProvisionerError, ConnectionError):
    """Something is wrong with one host; another one may do."""


class HostUnreachableError(HostError):
    """The host could not be asked: refused, no route, unknown name, no answer in time. Never means that a kernel is dead."""


class ConnectionLostError(HostError):
    """The connection ended while something was under way on it."""


class AuthenticationError(HostError):
    """The host refused the user's keys, password or ticket."""


class HostKeyError(HostError):
    """The host's key is unknown or has changed. `fingerprint` is the one that it showed (SHA256:…)."""

    def __init__(self, message: str, *, fingerprint: str | None = None, host: str | None = None) -> None:
        super().__init__(message, host=host)
        self.fingerprint = fingerprint


class HostSetupError(HostError):
    """The host can be logged in to, but cannot be used: no Python, a forced command, forwarding forbidden, no space."""


class RunAsError(HostSetupError):
    """The host does not let us run kernels as this user; for others it may. `user` is the one who was wanted."""

    def __init__(self, message: str, *, user: str = "", host: str | None = None) -> None:
        super().__init__(message, host=host)
        self.user = user


class HostDrainedError(HostError):
    """The host is well and takes no new kernels until it is undrained. `reason` is what was said when it was drained."""

    def __init__(self, host: str, reason: str = "", *, kernel_id: str | None = None) -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(
            f"{host} is drained{why}: kernels that run there stay, new ones are not taken. "
            f"Let it take kernels again with `jupyter ssh-cluster undrain {host}`, or name another host.",
            host=host,
            kernel_id=kernel_id,
        )
        self.reason = reason


class LaunchError(ProvisionerError, RuntimeError):
    """The kernel could not be started on a host that works."""


class LaunchTimeoutError(LaunchError, TimeoutError):
    """The kernel did not report its connection information within `launch_timeout`."""


class LauncherExitedError(LaunchError):
    """The launcher or kernel ended before the kernel was ready. `exit_status` is negative for a signal, as subprocess has it."""

    def __init__(
        self,
        message: str,
        *,
        exit_status: int | None = None,
        log_tail: str = "",
        host: str | None = None,
        kernel_id: str | None = None,
    ) -> None:
        super().__init__(message, host=host, kernel_id=kernel_id)
        self.exit_status = exit_status
        self.log_tail = log_tail


class InterpreterNotFoundError(LaunchError, FileNotFoundError):
    """argv[0] of the kernel specification is not on the host."""


class TooLargeError(LaunchError):
    """The environment or the arguments of the kernel are larger than a program, or a request, may have."""


class PortRangeExhaustedError(LaunchError):
    """The host has too few free ports in the port range."""


class ProtocolError(ProvisionerError, RuntimeError):
    """The listener on a host said something that makes no sense, or is too old or too new."""
