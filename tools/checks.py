"""What `./run test` and `./run lint` do: each check in turn, one summary at the end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from environment import Environment, SetupError, with_progress

IN_CI = os.environ.get("CI") == "true"
SHELL_FILES = ("run", ".ci/run")


@dataclass
class Result:
    name: str
    verdict: str
    seconds: float

    @property
    def failed(self) -> bool:
        return self.verdict.startswith("failed")


def lint(environment: Environment) -> int:
    """Lint, types and layers."""
    results = linters(environment)
    summarize(results)
    return int(any(result.failed for result in results))


def checks(environment: Environment, pytest_arguments: list[str]) -> int:
    """Everything; with arguments, pytest alone with them."""
    results = []
    variables = dict(os.environ)
    if not pytest_arguments:
        results += linters(environment)
    if not pytest_arguments or any("test_wheel" in argument for argument in pytest_arguments):
        results.append(wheel(environment, variables))
    code, closing, result = run_pytest(environment, pytest_arguments, variables)
    if not pytest_arguments:
        summarize([*results, result])
        print(closing, flush=True)
    return code or int(any(each.failed for each in results))


def linters(environment: Environment) -> list[Result]:
    tool = environment.directory / "bin"
    shell = [*SHELL_FILES, *(str(path) for path in sorted(environment.root.glob("src/**/*.sh")))]
    return [
        quietly("ruff", [str(tool / "ruff"), "check", "."]),
        quietly("mypy", [str(tool / "mypy")]),
        quietly("layers", [str(tool / "lint-imports")]),
        quietly("shellcheck", [str(tool / "shellcheck"), *shell]),
    ]


def quietly(name: str, argv: Sequence[str]) -> Result:
    """Run a check; what it says is shown only when it fails."""
    began = time.monotonic()
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    result = Result(name, "passed" if done.returncode == 0 else "failed", time.monotonic() - began)
    print(f"{name}: {result.verdict} ({result.seconds:.0f} s)", flush=True)
    if done.returncode:
        print(done.stdout, flush=True)
    return result


def wheel(environment: Environment, variables: dict[str, str]) -> Result:
    """Build the wheel and install it, with nothing but what it asks for and a kernel, where tests/test_wheel.py finds it."""
    began = time.monotonic()
    build = environment.directory / "wheel"
    shutil.rmtree(build, ignore_errors=True)
    fresh = Environment(environment.root, build / "venv")
    try:
        with_progress(
            "building the wheel",
            [environment.python, "-m", "build", "--wheel", "--outdir", str(build), str(environment.root)],
        )
        (built,) = build.glob("*.whl")
        fresh.create()
        install = [fresh.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        with_progress("installing the wheel", [*install, str(built), "ipykernel"])
    except SetupError as error:
        print(error, flush=True)
        return Result("wheel", "failed", time.monotonic() - began)
    variables["DISTRIBUTED_PROVISIONER_WHEEL"] = str(built)
    variables["DISTRIBUTED_PROVISIONER_WHEEL_PYTHON"] = fresh.python
    return Result("wheel", "built and installed", time.monotonic() - began)


def run_pytest(
    environment: Environment, arguments: list[str], variables: dict[str, str]
) -> tuple[int, str, Result]:
    """Run pytest, in private namespaces where this machine has them. Gives the exit code and pytest's closing line."""
    began = time.monotonic()
    prefix = private_namespaces(environment, variables)
    color = ["--color=yes"] if sys.stdout.isatty() else []
    argv = [*prefix, environment.python, "-u", "-m", "pytest", *color, *arguments]
    tail = b""
    with subprocess.Popen(
        argv, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 65536):  # not by the line: dots show progress
            sys.stdout.buffer.write(piece)
            sys.stdout.flush()
            tail = (tail + piece)[-4096:]
    closing = (tail.decode(errors="replace").strip().splitlines() or ["pytest said nothing"])[-1]
    plain = re.sub(r"\033\[[0-9;]*m", "", closing).strip("= ")
    result = Result("pytest", ("failed: " if process.returncode else "") + plain, time.monotonic() - began)
    return process.returncode, closing, result


def private_namespaces(environment: Environment, variables: dict[str, str]) -> list[str]:
    """The words to put before a command so that it runs where hosts can be made; none where that is not possible."""
    testing = [environment.python, "-m", "distributed_provisioner.testing"]
    said = subprocess.run([*testing, "check"], env=variables, capture_output=True, text=True, check=False)
    if said.returncode == 0:
        return [*testing, "enter", "--"]
    reason = (said.stdout + said.stderr).strip()
    print(f"run: no hosts in namespaces on this machine: {reason}", file=sys.stderr, flush=True)
    if IN_CI:
        raise SetupError("CI runs all tests, so this is a failure.")
    return []


def summarize(results: Sequence[Result]) -> None:
    print()
    for result in results:
        print(f"  {result.name:12} {result.seconds:5.0f} s  {result.verdict}")
    print(flush=True)
