"""The jar of the launcher for Scala kernels, built from its source; standard library, and a JDK of version 9 or newer.

The same source and the same JDK make the same bytes: nothing in the jar depends on when, where or by whom it was built.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from environment import SetupError

PACKAGE = Path("src", "distributed_provisioner")
SOURCES = PACKAGE / "remote" / "java"
JAR = PACKAGE / "kernelspec" / "resources" / "toree-launcher.jar"
MANIFEST = "META-INF/MANIFEST.MF"
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The first moment that a zip file knows."""


def build(root: Path) -> int:
    """Write the jar below `root`, and say so."""
    jar = make_jar(compile_classes(root), javac_version())
    (root / JAR).write_bytes(jar)
    print(f"{JAR}: {len(jar)} bytes, by javac {javac_version()}")
    return 0


def compile_classes(root: Path) -> dict[str, bytes]:
    """The class files of the source below `root`, by their path in the jar. Raises SetupError with the compiler's words."""
    sources = root / SOURCES
    files = sorted(str(path.relative_to(sources)) for path in sources.glob("launcher/*.java"))
    with tempfile.TemporaryDirectory() as target:
        # --release: the API of Java 8, too, not its language alone; it hides sun.misc, for which there are stubs.
        options = ["--release", "8", "-encoding", "UTF-8", "-Xlint:all,-options", "-Werror"]
        options += ["-implicit:none", "-sourcepath", "stubs:.", "-d", target]
        done = subprocess.run(
            [javac(), *options, *files], cwd=sources, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SetupError(f"the launcher does not compile:\n{done.stdout}{done.stderr}")
        paths = sorted(Path(target).rglob("*.class"))
        return {path.relative_to(target).as_posix(): path.read_bytes() for path in paths}


def make_jar(classes: dict[str, bytes], version: int) -> bytes:
    """A jar with these files in it. Not compressed: other versions of zlib make other bytes."""
    manifest = (
        f"Manifest-Version: 1.0\r\nMain-Class: launcher.ToreeLauncher\r\nCreated-By: javac {version}\r\n\r\n"
    )
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {MANIFEST: manifest.encode(), **dict(sorted(classes.items()))}.items():
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    return result.getvalue()


def javac() -> str:
    """Where the compiler is. Raises SetupError where there is none."""
    found = shutil.which("javac")
    if found is None:
        raise SetupError(
            "there is no javac: install a JDK (Debian and Ubuntu: apt-get install openjdk-17-jdk-headless)."
        )
    return found


def javac_version() -> int:
    """17 for javac 17.0.15."""
    said = subprocess.run([javac(), "-version"], capture_output=True, text=True, check=True)
    match = re.search(r"javac (\d+)", said.stdout + said.stderr)
    if match is None:
        raise SetupError(f"javac does not say its version: {said.stdout}{said.stderr}")
    return int(match[1])
