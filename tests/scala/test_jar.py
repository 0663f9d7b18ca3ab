"""The jar in the package is what its source builds: nobody has to trust a binary."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.scala.parts import JAR, ROOT, javac

pytestmark = pytest.mark.scala


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/launcher.py, which `./run launcher` is."""
    javac()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        spec = importlib.util.spec_from_file_location("launcher_tool", ROOT / "tools" / "launcher.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules.pop("environment", None)
    return module


@pytest.fixture(scope="module")
def built(tool: ModuleType) -> dict[str, bytes]:
    classes: dict[str, bytes] = tool.compile_classes(ROOT)
    return classes


def shipped() -> dict[str, bytes]:
    with zipfile.ZipFile(JAR) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".class")}


def compiler_of_the_jar() -> int:
    with zipfile.ZipFile(JAR) as archive:
        match = re.search(r"Created-By: javac (\d+)", archive.read("META-INF/MANIFEST.MF").decode())
    assert match is not None
    return int(match[1])


def test_the_jar_has_the_classes_that_its_source_builds(
    tool: ModuleType, built: dict[str, bytes], tmp_path: Path
) -> None:
    """If it fails: somebody changed the source and not the jar (`./run launcher` builds it), or the jar alone."""
    assert shipped().keys() == built.keys()
    if tool.javac_version() == compiler_of_the_jar():
        assert shipped() == built
        assert tool.make_jar(built, tool.javac_version()) == JAR.read_bytes()
        return
    for name, data in built.items():  # each version of the compiler has instructions of its own
        assert members(shipped()[name], tmp_path) == members(data, tmp_path), name


def test_the_class_files_are_java_8(built: dict[str, bytes]) -> None:
    """If it fails: the kernel does not start on hosts with Java 8 or 11."""
    assert {int.from_bytes(data[6:8], "big") for data in shipped().values()} == {52}
    assert JAR.stat().st_size < 100_000


def members(data: bytes, directory: Path) -> list[str]:
    """What the class declares, as people read it."""
    path = directory / "some.class"
    path.write_bytes(data)
    javap = Path(javac()).with_name("javap")
    said = subprocess.run([javap, "-p", "-constants", path], capture_output=True, text=True, check=True)
    return sorted(line for line in said.stdout.splitlines() if "lambda$" not in line)
