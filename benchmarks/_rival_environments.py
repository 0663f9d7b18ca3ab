"""The environments that other provisioners live in: made once, in the user's cache, by pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

RIVALS: Mapping[str, str] = {"gateway-provisioners": "gateway_provisioners==0.5.0", "sshpyk": "sshpyk==1.25"}
"""Name -> what pip is asked for."""


def directory(name: str) -> Path:
    """Found before and after HOME was changed for the hosts: the name of the place is kept in the environment."""
    cache = os.environ.setdefault(
        "DISTRIBUTED_PROVISIONER_BENCHMARKS_CACHE",
        os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
    )
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return Path(cache, "distributed-provisioner", "benchmarks", f"{RIVALS[name]}-python{version}")


def install(name: str) -> None:
    """Make the environment, unless it is there; a failure is kept as the reason why the tool is not measured."""
    place = directory(name)
    if python(name) is not None:
        return
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {RIVALS[name]} …", flush=True)
    made = _run([sys.executable, "-m", "venv", str(place)])
    if made:
        made = _run([sys.executable, "-m", "virtualenv", "-q", str(place)]) and made
    pip = [
        str(place / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    failed = made or _run([*pip, RIVALS[name], "ipykernel"])
    place.mkdir(exist_ok=True)
    (place / ("failed" if failed else "installed")).write_text(failed)


def python(name: str) -> Path | None:
    """Its interpreter; None where the tool is not installed."""
    place = directory(name)
    return place / "bin" / "python" if (place / "installed").exists() else None


def why_not(name: str) -> str:
    failed = directory(name) / "failed"
    return failed.read_text() if failed.exists() else "it was not installed"


def _run(argv: list[str]) -> str:
    """Nothing, or the last words of a program that failed."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    lines = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
    return lines[-1][:300]
