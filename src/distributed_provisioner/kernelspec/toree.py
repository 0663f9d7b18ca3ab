"""Apache Toree's assembly, which a Scala specification has a copy of: where it lies on this machine, and what it says of itself."""

from __future__ import annotations

import importlib.util
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from distributed_provisioner.errors import KernelSpecError

COMPAT = "scala-collection-compat.properties"
LAUNCHER = "kernelspec/resources/toree-launcher.jar"


@dataclass(frozen=True)
class Toree:
    """An assembly: its file, Toree's version, and the version of Scala that it was made with."""

    jar: Path
    version: str
    scala_version: str

    @property
    def files(self) -> dict[str, str]:
        """What it adds to a specification."""
        return {
            f"lib/toree-launcher-{self.scala_version}.jar": LAUNCHER,
            f"lib/toree-assembly-{self.version}.jar": str(self.jar),
        }


def find_toree(jar: str = "") -> Toree:
    """The assembly `jar`, or that of the installed package `toree`.

    Raises:
        KernelSpecError: there is none, or the file is none.
    """
    path = Path(jar).expanduser().absolute() if jar else _installed()
    try:
        with zipfile.ZipFile(path) as archive:
            archive.getinfo("org/apache/toree/Main.class")
            manifest = archive.read("META-INF/MANIFEST.MF").decode()
            # Scala's own library is not in it, as Spark brings that; one that was made for a version of Scala is.
            library = archive.read(COMPAT).decode() if COMPAT in archive.namelist() else ""
    except KeyError:
        raise KernelSpecError(
            f"{path} is not the assembly of Apache Toree: name toree-assembly-….jar by --toree-jar."
        ) from None
    except (OSError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or error
        raise KernelSpecError(f"The assembly of Apache Toree, {path}, cannot be read: {why}.") from error
    version = re.search(r"^Implementation-Version: *(\d[\w.]*)", manifest, re.MULTILINE)
    scala = re.search(r"^scala\.binary\.version\.number=(\S+)", library, re.MULTILINE)
    return Toree(path, version[1] if version else "unknown", scala[1] if scala else "2.12")


def _installed() -> Path:
    package = importlib.util.find_spec("toree")
    for place in (package and package.submodule_search_locations) or ():
        for path in sorted(Path(place, "lib").glob("toree-assembly-*.jar")):
            return path
    raise KernelSpecError(
        "A Scala kernel needs Apache Toree, which is not installed here: pip install 'distributed-provisioner[scala]', or name its"
        " assembly by --toree-jar /path/to/toree-assembly-….jar."
    )
