"""From what Jupyter hands over to a `LaunchRequest`: settled, validated, nothing contacted."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .authorization import USER_VARIABLE, authorize, for_user, requested_pin, requesting_user, shortened
from .envelope import public_key
from .errors import ConfigurationError, KernelSpecError
from .models import KernelTransport, LaunchRequest
from .settings import Settings, launch_timeout_for, orphan_timeout_for, server_environment

Encryption = Literal["disabled", "auto", "required"]

_KERNEL_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_DECIDING = ("KERNEL_REMOTE_HOST", "KERNEL_USERNAME")
"""Of the server's own environment they count, too, where a request does not say otherwise: plain servers drop a request's `env`."""

_SPEAK_IPC = frozenset(("launch_ipykernel.py", "launch_IRkernel.R"))
"""Launchers whose kernels listen on Unix sockets, if told so."""

_OF_A_MACHINE = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "SHLVL", "_", "TMPDIR", "HOSTNAME"),
        *(
            "VIRTUAL_ENV",
            "PYTHONEXECUTABLE",
            "JPY_PARENT_PID",
            "KERNEL_ID",
            "KERNEL_LANGUAGE",
            "GP_REMOTE_PWD",
        ),
    )
)
_OF_A_LOGIN = ("LD_", "DYLD_", "XDG_", "SSH_", "CONDA_")


def check_kernel_id(kernel_id: str | None) -> str:
    """A kernel id becomes part of paths and of an argv on the host; REST clients may choose it.

    Raises:
        ConfigurationError: it is not made of letters, digits, `_`, `.` and `-`.
    """
    if not isinstance(kernel_id, str) or not _KERNEL_ID.fullmatch(kernel_id):
        raise ConfigurationError(
            f"The kernel id {shortened(kernel_id)} cannot be used: it may have up to 200 letters, digits, '_', '.' and '-', "
            "and begins with none of the last two. Choose another one, or none at all."
        )
    return kernel_id


def kernel_environment(
    env: Mapping[str, Any] | None, environ: Mapping[str, str], kernel_id: str, language: str
) -> dict[str, str]:
    """What of a request's environment goes to the kernel (reference.md, section 4).

    Args:
        env: of the start request; None where it brings none, then the server's own counts.
        environ: the server's own.

    Raises:
        ConfigurationError: a name or value that no environment can hold.
    """
    request = (
        environ
        if env is None
        else {str(name): str(value) for name, value in env.items() if value is not None}
    )
    chosen = {name: environ[name] for name in _DECIDING if environ.get(name)}
    chosen.update(
        (name, value)
        for name, value in request.items()
        if name.startswith("KERNEL_") or environ.get(name) != value
    )
    for name, value in chosen.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ConfigurationError(
                f"The environment variable {shortened(name)} of the start request has a NUL in it, or '=' in its name. "
                "No program can be given such a variable: take it out."
            )
    kept = {name: value for name, value in chosen.items() if not _stays_here(name)}
    kept.setdefault("KERNEL_USERNAME", requesting_user(kept))
    return {**kept, "KERNEL_ID": kernel_id, "KERNEL_LANGUAGE": language}


def build_request(
    settings: Settings,
    *,
    kernel_id: str,
    kernel_name: str,
    kernel_spec: Any,
    env: Mapping[str, Any] | None,
    cwd: str | None,
    extra_arguments: Sequence[str],
    key: str,
    encryption: Mapping[str, str] | None,
    encrypt_ipc: bool = False,
) -> LaunchRequest:
    """Settle a launch. Who may not launch learns that first.

    Raises:
        NotAuthorizedError: the user may not.
        ConfigurationError: something in the request or in an option cannot be used.
        KernelSpecError: the argv is empty, or names a file of the specification that is not there.
    """
    environ = server_environment()
    requested = kernel_environment(env, environ, kernel_id, str(kernel_spec.language or ""))
    authorize(requesting_user(requested), settings)
    configured = settings.remote_hosts
    settings = for_user(settings, requested if _says_whom(env, environ) else {})
    if not kernel_spec.argv:
        raise KernelSpecError(
            f"Kernel specification '{kernel_name}' cannot be launched: its argv is empty. Put the kernel's command into its kernel.json."
        )
    argv = (*map(str, kernel_spec.argv), *map(str, extra_arguments))
    resource_dir = str(kernel_spec.resource_dir or "")
    _check_files(kernel_name, argv, resource_dir)
    transport = kernel_transport(settings, argv, resource_dir)
    if transport == "direct" and encryption is None and not settings.allow_plain_text:
        raise ConfigurationError(
            f"Kernel specification '{kernel_name}' cannot encrypt, so with transport 'direct' its messages would cross the network "
            'in plain text. Declare metadata.supported_encryption ["curve"] if its kernel can, set transport to ssh, '
            "or accept it with allow_plain_text."
        )
    return LaunchRequest(
        kernel_id=kernel_id,
        hosts=settings.remote_hosts,
        argv=argv,
        key=key,
        policy=settings.policy,
        rotation=configured,
        pin=requested_pin(requested, settings),
        login=settings.login,
        spec_env={str(name): str(value) for name, value in (kernel_spec.env or {}).items()},
        request_env=requested,
        directories=tuple(
            dict.fromkeys(
                filter(
                    None, (requested.get("KERNEL_WORKING_DIR"), os.fspath(cwd) if cwd else _own_directory())
                )
            )
        ),
        resource_dir=resource_dir,
        public_key=public_key() if any("{public_key}" in item for item in argv) else "",
        kernel_name=kernel_name,
        kernel_transport=transport,
        port_range=settings.port_range,
        encryption=encryption,
        encrypt_ipc=encrypt_ipc,
        prefix=sys.prefix,
        launch_timeout=launch_timeout_for(settings, requested),
        orphan_timeout=orphan_timeout_for(settings, requested),
        output_limit=settings.output_limit << 20,
        interrupt_target=settings.interrupt_target,
        remote_python=settings.remote_python,
        kernel_log_dir=settings.kernel_log_dir,
        prefork=settings.prefork,
        preload=settings.preload,
        prefork_idle=settings.prefork_idle,
    )


def kernel_transport(settings: Settings, argv: Sequence[str], resource_dir: str = "") -> KernelTransport:
    """What the kernel's sockets are to be: Unix sockets where the kernel is known to have them, or is said to."""
    if settings.transport == "direct":
        return "direct"
    return settings.kernel_transport or ("ipc" if _is_known_for_ipc(argv, resource_dir) else "tcp")


def _check_files(kernel_name: str, argv: Sequence[str], resource_dir: str) -> None:
    """What argv names below the specification's directory is shipped from there: what is not there is on no host either."""
    for item in argv:
        path = item.replace("{resource_dir}", resource_dir)
        if (
            resource_dir
            and path.startswith(resource_dir + "/")
            and "{" not in path
            and not os.path.exists(path)
        ):
            raise KernelSpecError(
                f"Kernel specification '{kernel_name}' cannot be launched: its argv names {path}, and there is no such file. "
                "Install the specification again, or correct its kernel.json."
            )


def _own_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed below us: the kernel begins in the user's home
        return None


def _is_known_for_ipc(argv: Sequence[str], resource_dir: str) -> bool:
    names = {os.path.basename(item) for item in argv}
    if os.path.basename(argv[0]) == "run.sh":  # it finds its launcher in the specification's directory
        scripts = os.path.join(resource_dir, "scripts")
        names |= set(os.listdir(scripts)) if os.path.isdir(scripts) else set()
    if names & _SPEAK_IPC:
        return True
    modules = [argv[place + 1] for place, item in enumerate(argv[:-1]) if item == "-m"]
    return any(module in ("ipykernel_launcher", "ipykernel") for module in modules)


def _says_whom(env: Mapping[str, Any] | None, environ: Mapping[str, str]) -> bool:
    """Whether somebody has said whom the kernel is for; else it is for the server's own user, who is not to be taken for that."""
    return bool((env or {}).get(USER_VARIABLE) or environ.get(USER_VARIABLE))


def _stays_here(name: str) -> bool:
    return name in _OF_A_MACHINE or name.startswith(_OF_A_LOGIN)
