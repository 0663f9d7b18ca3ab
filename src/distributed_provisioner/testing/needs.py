"""Which paths of the machine a host must be able to use, and which it must not see."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import distributed_provisioner

SPARK_PYTHON = "DISTRIBUTED_PROVISIONER_SPARK_PYTHON"
"""Names the interpreter of an environment with pyspark, for the tests that need one."""
_STATE = (
    ".cache",
    ".config",
    ".ipython",
    ".jupyter",
    ".local/share/jupyter",
    ".local/state",
    ".ssh",
)


def needed_paths(directory: Path) -> list[str]:
    """The directories that this interpreter and this package lie in: where links to it lead, too."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    found.update(_chain(Path(sys.executable)))
    found.add(str(Path(distributed_provisioner.__file__).parent))
    excluded = {Path("/"), Path("/tmp"), Path("/run"), Path("/dev/shm"), *directory.parents}
    found.update(path for path in sys.path if path and Path(path).is_dir())
    if spark := os.environ.get(SPARK_PYTHON):
        found |= {str(Path(spark).parents[1]), *_chain(Path(spark))}
    # An interpreter that was started as ../venv/bin/python has `..` in its paths until Python 3.11.
    normal = {os.path.normpath(path) for path in found}
    return sorted(path for path in normal if Path(path) not in excluded)


def hidden_paths(directory: Path) -> list[str]:
    """Kernelspecs, the state that programs keep in root's home, and the cluster's own directory."""
    prefixes = {sys.prefix, sys.base_prefix, "/usr", "/usr/local"}
    homes = {pwd.getpwuid(os.getuid()).pw_dir, "/root"}
    hidden = {f"{prefix}/share/jupyter/kernels" for prefix in prefixes}
    hidden |= {f"{home}/{name}" for home in homes for name in _STATE}
    return sorted(hidden | {str(directory)})


def _chain(path: Path) -> set[str]:
    result = {str(path.parent)}
    for _ in range(40):
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
        result.add(os.path.normpath(path.parent))
    return result
