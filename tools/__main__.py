"""The commands of `./run`. Standard library only: this runs before anything is installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from checks import checks, lint
from environment import Environment, SetupError
from launcher import build

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "demo": "start three hosts inside one process, run a notebook on all of them at once, end clean",
    "lab": "JupyterLab with a kernel on the same three hosts; Ctrl-C ends it",
    "test": "all checks and tests: lint, types, layers, the built wheel, pytest (arguments go to pytest, and only it runs)",
    "lint": "lint, types and layers alone",
    "bench": "the benchmarks, or the one that is named; --help tells more",
    "docs": "write the generated pages of docs/ again",
    "launcher": "build the jar that launches Scala kernels, from its Java source (needs a JDK)",
    "setup": "make the virtual environment for everything, and nothing else",
    "clean": "remove the virtual environment and all that the commands made",
}


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: ./run COMMAND [ARGUMENT ...]\n")
        for name, text in COMMANDS.items():
            print(f"  {name:8} {text}")
        return 0
    name, arguments = argv[0], list(argv[1:])
    if name not in COMMANDS:
        print(f"run: '{name}' is not a command. ./run alone lists them.", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    environment = Environment.of(ROOT)
    try:
        return RUN[name](environment, arguments)
    except SetupError as error:
        print(f"run: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run_demo(environment: Environment, arguments: list[str]) -> int:
    environment.ensure("demo")
    return in_foreground([environment.python, "examples/demo.py", "notebook", *arguments])


def run_lab(environment: Environment, arguments: list[str]) -> int:
    environment.ensure("demo", "lab")
    return in_foreground([environment.python, "examples/demo.py", "lab", *arguments])


def run_test(environment: Environment, arguments: list[str]) -> int:
    environment.ensure_programs()
    environment.ensure("demo", "test")
    environment.ensure_kerberos()
    environment.ensure_spark()
    if environment.spark_python.exists():
        os.environ.setdefault("DISTRIBUTED_PROVISIONER_SPARK_PYTHON", str(environment.spark_python))
    return checks(environment, arguments)


def run_lint(environment: Environment, arguments: list[str]) -> int:
    environment.ensure("demo", "test")
    return lint(environment)


def run_bench(environment: Environment, arguments: list[str]) -> int:
    environment.ensure_programs()
    environment.ensure("demo", "test")
    return in_foreground([environment.python, "-m", "benchmarks", *(arguments or ["all"])])


def run_docs(environment: Environment, arguments: list[str]) -> int:
    environment.ensure("demo", "test")
    return in_foreground([environment.python, "docs/generate.py", *arguments])


def run_launcher(environment: Environment, arguments: list[str]) -> int:
    return build(ROOT)


def run_setup(environment: Environment, arguments: list[str]) -> int:
    environment.ensure("demo", "lab", "test")
    print(f"the environment is ready: {environment.directory}")
    return 0


def run_clean(environment: Environment, arguments: list[str]) -> int:
    caches = [".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache"]
    spark = environment.spark_python.parent.parent
    for path in [environment.directory, spark, *(ROOT / name for name in ["build", "dist", *caches])]:
        if path.exists():
            print(f"removing {path}")
            shutil.rmtree(path)
    for path in ROOT.rglob("__pycache__"):
        shutil.rmtree(path, ignore_errors=True)
    return 0


def in_foreground(argv: Sequence[str]) -> int:
    """Run a program on this terminal. Ctrl-C is the program's to answer; this waits until it has cleaned up."""
    # A handler of ours, not SIG_IGN: the program would inherit that.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with subprocess.Popen(argv, cwd=ROOT) as process:
            return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)


RUN: dict[str, Callable[[Environment, list[str]], int]] = {
    "demo": run_demo,
    "lab": run_lab,
    "test": run_test,
    "lint": run_lint,
    "bench": run_bench,
    "docs": run_docs,
    "launcher": run_launcher,
    "setup": run_setup,
    "clean": run_clean,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
