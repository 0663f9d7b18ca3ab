"""A file that has of Toree's assembly what kernelspec/ looks at."""

from __future__ import annotations

import zipfile
from pathlib import Path


def toree_jar(directory: Path) -> Path:
    """Write it; its path."""
    path = directory / "toree-assembly-0.5.0-incubating.jar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("org/apache/toree/Main.class", "")
        archive.writestr("scala-collection-compat.properties", "scala.binary.version.number=2.12\n")
        archive.writestr(
            "META-INF/MANIFEST.MF", "Manifest-Version: 1.0\nImplementation-Version: 0.5.0-incubating\n"
        )
    return path
