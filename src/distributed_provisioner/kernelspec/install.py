"""Putting specifications into place, finding them there, and taking them away again.

jupyter_client's own installer removes an existing specification before it copies the new one. Here the new one is complete, in a
directory beside the old one, before anything is moved; a rename then puts it into place.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.paths import SYSTEM_JUPYTER_PATH

from distributed_provisioner.errors import KernelSpecError

from .build import PROVISIONER_NAME, BuiltSpec


@dataclass(frozen=True)
class InstallTarget:
    """Where specifications go: the user's own directory, below a prefix, or (neither) the system's."""

    user: bool = False
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.user and self.prefix:
            raise KernelSpecError(
                "Both --user and a prefix are given: choose one of --user, --sys-prefix and --prefix."
            )

    def directory(self, kernel_name: str, manager: KernelSpecManager) -> Path:
        """The specification's own directory, as jupyter_client would choose it."""
        if self.user:
            return Path(manager.user_kernel_dir, kernel_name)
        if self.prefix:
            prefix = os.path.abspath(os.path.expanduser(self.prefix))
            return Path(prefix, "share", "jupyter", "kernels", kernel_name)
        return Path(SYSTEM_JUPYTER_PATH[0], "kernels", kernel_name)


@dataclass(frozen=True)
class InstalledSpec:
    """A specification of ours that was found. `remote_hosts` is None where it leaves the hosts to the server."""

    name: str
    display_name: str
    directory: str
    remote_hosts: tuple[str, ...] | None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The options in its stanza, as they are written."""


def install(spec: BuiltSpec, directory: Path, *, replace: bool = False) -> None:
    """Write the specification to `directory`, completely or not at all. With `replace`, the old one stays if that fails.

    Raises:
        KernelSpecError: there is one already, the directory cannot be written to, or a file of this package is missing.
    """
    kernels = directory.parent
    with _explained(f"The kernel specification cannot be installed in {directory}"):
        old = _existing(directory)
        if old is not None and not replace:
            raise KernelSpecError(
                f"A kernel specification '{spec.kernel_name}' exists already in {old}: give --replace to replace it, or"
                " --kernel-name for another name."
            )
        kernels.mkdir(parents=True, exist_ok=True)
        # Without a kernel.json of its own the staging directory is no kernel for anybody who looks meanwhile.
        staging = Path(tempfile.mkdtemp(prefix=f".{spec.kernel_name}-", dir=kernels))
        try:
            _write(spec, staging / "new")
            _swap(staging, old, directory)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def find_installed(manager: KernelSpecManager) -> list[InstalledSpec]:
    """All specifications that use our provisioner, sorted by name. What cannot be read is logged and left out."""
    found = []
    for name, directory in sorted(manager.find_kernel_specs().items()):
        try:
            content = json.loads(Path(directory, "kernel.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            manager.log.warning("The kernel.json in %s cannot be read: %s", directory, error)
            continue
        stanza = _mapping(_mapping(_mapping(content).get("metadata")).get("kernel_provisioner"))
        if stanza.get("provisioner_name") != PROVISIONER_NAME:
            continue
        config = _mapping(stanza.get("config"))
        hosts = config.get("remote_hosts")
        if isinstance(hosts, str):
            hosts = [item.strip() for item in hosts.split(",")]
        shown = tuple(map(str, hosts)) if isinstance(hosts, list) else None
        found.append(
            InstalledSpec(name, str(_mapping(content).get("display_name", "")), directory, shown, config)
        )
    return found


def remove(spec: InstalledSpec, manager: KernelSpecManager) -> None:
    """Remove the specification's directory (of a symbolic link, the link alone).

    Raises:
        KernelSpecError: it cannot be removed.
    """
    with _explained(f"The kernel specification '{spec.name}' cannot be removed from {spec.directory}"):
        manager.remove_kernel_spec(spec.name)


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _existing(directory: Path) -> Path | None:
    """What lies there already. Jupyter looks names up without regard to case."""
    if not directory.parent.is_dir():
        return None
    return next((path for path in directory.parent.iterdir() if path.name.lower() == directory.name), None)


def _write(spec: BuiltSpec, target: Path) -> None:
    contents = [("kernel.json", spec.kernel_json_text.encode(), 0o644)]
    contents += [(file.path, _read(file.source), file.mode) for file in spec.files]
    target.mkdir()
    target.chmod(0o755)
    for path, data, mode in contents:
        file_path = target / path
        if not file_path.parent.is_dir():
            file_path.parent.mkdir()
            file_path.parent.chmod(0o755)
        file_path.write_bytes(data)
        file_path.chmod(mode)


def _read(source: str) -> bytes:
    if os.path.isabs(source):
        return Path(source).read_bytes()
    try:
        return files("distributed_provisioner").joinpath(source).read_bytes()
    except FileNotFoundError:
        raise KernelSpecError(
            f"The file {source} is missing in the installed distributed-provisioner: install the package again."
        ) from None


def _swap(staging: Path, old: Path | None, directory: Path) -> None:
    if old is None:
        os.rename(staging / "new", directory)
        return
    saved = staging / "old"
    try:
        os.rename(old, saved)
        os.rename(staging / "new", directory)
    except BaseException:
        if os.path.lexists(saved) and not os.path.lexists(directory):
            os.rename(saved, old)
        raise


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the system's errors into one sentence of ours."""
    try:
        yield
    except PermissionError as error:
        raise KernelSpecError(
            f"{what} ({error.strerror}): use --user or --sys-prefix, or run the command with sudo."
        ) from error
    except OSError as error:
        raise KernelSpecError(f"{what}: {error.strerror or error}.") from error
