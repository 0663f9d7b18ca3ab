"""The layers of ARCHITECTURE.md hold, and what runs on hosts needs a plain Python there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distributed_provisioner

PACKAGE = Path(distributed_provisioner.__file__).parent
ROOT = Path(__file__).parents[2]
REMOTE = sorted((PACKAGE / "remote").glob("*.py"))
SERVER_SIDE = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in ("remote", "testing")
]
ENVIRONMENT_READERS = {
    "settings.py",  # options
    "options.py",  # the same, one by one
    "launch_request.py",  # what of the server's environment a kernel gets
    "ssh/keys.py",  # SSH_AUTH_SOCK and SSH_ASKPASS belong to OpenSSH, not to our options
    "ssh/wire.py",  # the listener on this machine gets what a log-in would have of it
    "own_user.py",  # writes the name that asyncssh asks for where a uid has none
}


def test_import_contracts_hold() -> None:
    """A layer that reaches around the one below it makes the next change break something far away."""
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_is_in_a_contract() -> None:
    """A new module that no contract names may import whatever it likes."""
    contracts = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")[2]
    listed = set(re.findall(r"source_modules = \[(.*?)\]", contracts, re.DOTALL))
    named = {name for text in listed for name in re.findall(r'"distributed_provisioner\.(\w+)"', text)}
    there = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - named == {"__init__", "testing"}


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.name)
def test_remote_files_import_without_site_packages(path: Path) -> None:
    """A host has nothing but its own Python: a file that needs more fails there, not here."""
    code = f"import sys; sys.path.insert(0, {str(path.parent)!r}); __import__({path.stem!r})"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.name)
def test_remote_files_are_python_3_8(path: Path) -> None:
    """Hosts may have Python 3.8: newer syntax would end the listener before its first word."""
    ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.name)
def test_remote_files_use_the_standard_library_at_module_level(path: Path) -> None:
    """ipykernel and pyspark are imported inside functions of the launchers; nothing else of others is."""
    siblings = {other.stem for other in REMOTE}
    foreign = {
        name
        for name, level in module_level_imports(path)
        if level or (name not in sys.stdlib_module_names and name not in siblings)
    }
    assert not foreign


@pytest.mark.parametrize("path", REMOTE, ids=lambda path: path.name)
def test_remote_files_import_nothing_of_ours(path: Path) -> None:
    """What is shipped to a host does not find our package there."""
    imported = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    assert not {name for name in imported if name.startswith("distributed_provisioner")}


@pytest.mark.parametrize("path", SERVER_SIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_environment_is_read_in_one_place(path: Path) -> None:
    """An option that is read somewhere else has no documentation, no precedence and no check."""
    if str(path.relative_to(PACKAGE)) in ENVIRONMENT_READERS:
        return
    reads = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and ast.unparse(node.value) == "os"
    ]
    assert not reads, f"{path.name} reads the environment in line {reads}"


def test_nothing_is_read_or_started_at_import() -> None:
    """Importing the provisioner is cheap: no environment, no thread, no SSH library before a kernel is launched."""
    code = (
        "import threading; import distributed_provisioner.settings, distributed_provisioner.kernelspec, sys;"
        "assert 'asyncssh' not in sys.modules; assert threading.active_count() == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def module_level_imports(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level module names, with the level of relative imports; `if TYPE_CHECKING` blocks do not count."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], 0
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0], node.level
