"""Where a user sits: an environment for host applications, and the kernelspecs that are installed for them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

SECRETIVE = ("GP_", "KERNEL_", "JUPYTER_", "SSH_", "IPYTHON")
"""Variables of the developer's own that shall not reach a test."""


class Desk:
    """One directory below which everything of a user's applications lies, and the environment that says so."""

    def __init__(self, directory: Path, home: Path, user: str) -> None:
        self.directory, self.home, self.user = directory, home, user
        self.kernels = directory / "share" / "jupyter" / "kernels"

    @property
    def settings(self) -> dict[str, str]:
        """What differs from this process's own environment."""
        return {
            "HOME": str(self.home),
            "JUPYTER_PLATFORM_DIRS": "1",
            "JUPYTER_PATH": str(self.kernels.parent),
            "JUPYTER_CONFIG_DIR": str(self.directory / "config"),
            "JUPYTER_DATA_DIR": str(self.directory / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.directory / "runtime"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.directory / "workspaces"),
            "JUPYTERLAB_SETTINGS_DIR": str(self.directory / "lab-settings"),
            "IPYTHONDIR": str(self.directory / "ipython"),
            "KERNEL_USERNAME": self.user,  # the tests may run as root, who is not authorized by default
        }

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(SECRETIVE)}
        return {**own, **self.settings, **(extra or {})}

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This process sits at the desk, before the fixtures of a test: a class of jupyter_kernel_test starts its kernel once for all."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(("GP_", "KERNEL_", "JUPYTER_"))]:
                patch.delenv(name)
            for name, value in self.settings.items():
                patch.setenv(name, value)
            yield

    def install(self, name: str, *options: str, **config: Any) -> str:
        """Run `jupyter ssh-spec install` as users do, then set what only kernel.json can say."""
        command = ["ssh-spec", "install", "--prefix", str(self.directory), "--kernel-name", name, *options]
        self.jupyter(*command)
        return self.change(name, remote_python=sys.executable, **config)

    def copy(self, source: str, name: str, **changes: Any) -> str:
        """Another kernelspec like an installed one, but for what `change` takes."""
        shutil.copytree(self.kernels / source, self.kernels / name)
        argv = json.loads((self.kernels / name / "kernel.json").read_text())["argv"]
        moved = [item.replace(str(self.kernels / source), str(self.kernels / name)) for item in argv]
        return self.change(name, **{"argv": moved, **changes})

    def change(
        self, name: str, *, argv: list[str] | None = None, env: Mapping[str, str] | None = None, **config: Any
    ) -> str:
        """Edit a kernel.json: its argv, its env stanza, its provisioner's options."""
        path = self.kernels / name / "kernel.json"
        spec = json.loads(path.read_text())
        spec["argv"] = spec["argv"] if argv is None else argv
        spec["env"].update(env or {})
        spec["metadata"]["kernel_provisioner"]["config"].update(config)
        path.write_text(json.dumps(spec))
        return name

    def jupyter(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `jupyter …` to its end; AssertionError with all that it said when it fails."""
        done = subprocess.run(
            [*JUPYTER, *arguments],
            env=self.environment(),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise AssertionError(
                f"jupyter {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done


JUPYTER = [sys.executable, "-m", "jupyter_core"]
