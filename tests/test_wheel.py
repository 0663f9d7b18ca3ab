"""What people install is the wheel, not the clone: it has every file, and works in an environment with nothing else.

`./run test` builds it and installs it in a fresh environment (with a network, before the tests enter their namespaces).
"""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "distributed_provisioner"
SERVER_CONFIG = "etc/jupyter/jupyter_server_config.d/distributed_provisioner.json"
"""Where Jupyter Server learns that it has an extension of ours."""


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The built wheel."""
    return Path(_variable("DISTRIBUTED_PROVISIONER_WHEEL"))


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the environment that has the wheel, what it requires, and ipykernel."""
    return Path(_variable("DISTRIBUTED_PROVISIONER_WHEEL_PYTHON"))


def _variable(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        pytest.skip("no wheel was built: ./run test does that")
    return value


def run(*argv: object, **environment: str) -> str:
    """Run a program away from the clone, and give what it says."""
    env = {name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in argv],
        env={**env, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    """A launcher, a logo or the marker for type checkers that is missing shows only at a user's."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        f"distributed_provisioner/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file()
        and not any(part == "__pycache__" or part.startswith(".") for part in path.parts[-3:])
    }
    assert expected <= names
    assert {"server_listener.py", "launch_ipykernel.py"} <= {name.rsplit("/", 1)[-1] for name in names}
    strangers = {name for name in names - expected if ".dist-info/" not in name}
    assert {name.partition(".data/data/")[2] for name in strangers} == {SERVER_CONFIG}


def test_wheel_has_license_and_description(wheel: Path) -> None:
    """The license goes with every copy; the index page is the README."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert "License-Expression: BSD-3-Clause" in text
    assert "# distributed-provisioner" in text


def test_installed_entry_point_loads(python: Path) -> None:
    """jupyter_client finds the provisioner by its entry point, with the wheel's own requirements alone."""
    code = (
        "from importlib.metadata import entry_points;"
        "(found,) = entry_points(group='jupyter_client.kernel_provisioners', name='distributed-provisioner');"
        "import distributed_provisioner; print(found.load().__name__, distributed_provisioner.__file__)"
    )
    name, file = run(python, "-c", code).split()
    assert name == "DistributedProvisioner"
    assert Path(file).is_relative_to(python.parents[1])


def test_installation_enables_the_extension_of_jupyter_server(python: Path) -> None:
    """Who installs the package has kernels that outlive the server, without a further command."""
    config = json.loads((python.parents[1] / SERVER_CONFIG).read_text())
    (name,) = [name for name, on in config["ServerApp"]["jpserver_extensions"].items() if on]
    code = (
        "import importlib, sys; package = importlib.import_module(sys.argv[1])\n"
        "(point,) = package._jupyter_server_extension_points()\n"
        "print(importlib.import_module(point['module'])._load_jupyter_server_extension.__name__)"
    )
    assert run(python, "-c", code, name).strip() == "_load_jupyter_server_extension"


def test_installed_command_makes_a_kernelspec_that_launches(
    python: Path, tmp_path: Path, isolated: Path
) -> None:
    """From `pip install` to a kernel: the command writes the files, and a kernel starts from them on this machine."""
    jupyter = python.with_name("jupyter")
    run(jupyter, "ssh-spec", "install", "--prefix", tmp_path)
    directory = tmp_path / "share" / "jupyter" / "kernels" / "ssh_python"
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert files >= {
        "kernel.json",
        "logo-64x64.png",
        "scripts/launch_ipykernel.py",
        "scripts/server_listener.py",
    }
    spec = json.loads((directory / "kernel.json").read_text())
    assert spec["metadata"]["kernel_provisioner"]["provisioner_name"] == "distributed-provisioner"
    code = (
        "from jupyter_client.manager import start_new_kernel\n"
        "manager, client = start_new_kernel(kernel_name='ssh_python')\n"
        "try:\n"
        "    print(type(manager.provisioner).__name__)\n"
        "    client.execute_interactive('print(6 * 7)', timeout=30)\n"
        "finally:\n"
        "    client.stop_channels()\n"
        "    manager.shutdown_kernel(now=True)\n"
    )
    said = run(
        python,
        "-c",
        code,
        JUPYTER_PATH=str(tmp_path / "share" / "jupyter"),
        GP_REMOTE_PYTHON=str(python),
        KERNEL_USERNAME="tester",
    )
    assert "DistributedProvisioner" in said
    assert "42" in said
