"""The command line of all benchmarks; each is a module of this package with a `TITLE` and a `measure()`."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._plot import write_figures
from benchmarks._report import Report, write_page
from benchmarks._world import world
from distributed_provisioner.testing.errors import Unsupported

NAMES = (
    "launch",
    "roundtrip",
    "poll",
    "burst",
    "interrupt",
    "restart",
    "idle",
    "memory",
    "adoption",
    "flood",
    "scale",
    "rivals",
)
OTHERS = ("guard", "plot")
"""Not part of `all`: a test, and the figures of what was saved."""
_COMMAND = (sys.executable, str(Path(__file__).with_name("__main__.py")))
INSIDE = "DISTRIBUTED_PROVISIONER_BENCHMARKS_INSIDE"


@dataclass(frozen=True)
class Scale:
    """How much is measured. `quick` shows that a benchmark works; its figures are no evidence."""

    quick: bool
    n: int | None = None

    def rounds(self, full: int, quick: int) -> int:
        """A count of repetitions: what the command line says, else by scale."""
        return self.n or (quick if self.quick else full)

    def pick(self, full: float, quick: float) -> float:
        """A size that `-n` does not change."""
        return quick if self.quick else full


def main(argv: Sequence[str] | None = None, only: str | None = None) -> int:
    """Run the named benchmarks one after the other.

    Exit code 1 where one could not run, 0 otherwise, budgets met or not; a guard's is also 1 where its limits are exceeded.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if only is not None:
        arguments = [only, *arguments]
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.quick and options.write:
        parser.error("quick figures are no evidence: they do not belong into docs/benchmarks.md")
    if options.name == "plot":
        print("\n".join(write_figures()))
        return 0
    names = list(NAMES) if options.name == "all" else [options.name]
    scale = Scale(options.quick, options.n)
    if INSIDE not in os.environ and any(_needs_hosts(name) for name in names):
        if reason := _why_no_hosts():
            for name in names:
                _finish(_report(name, scale, skipped=reason))
            return 1
        for name in names:
            prepare = getattr(_module(name), "prepare", None)
            if prepare is not None:
                prepare()
        _enter(arguments)
    if options.name == "all":  # a process for each: every one makes hosts of its own, with the same names
        rest = [item for item in arguments if item not in ("all", "--write")]
        codes = [subprocess.call([*_COMMAND, name, *rest]) for name in names]
        code = max(codes)
    else:
        report = _run(options.name, scale)
        _finish(report)
        code = exit_code(report)
    if options.write:
        write_figures()
        write_page(NAMES)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "all", *OTHERS])
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions: whether it works, not how fast it is"
    )
    parser.add_argument(
        "-n", type=int, default=None, help="repetitions, instead of the benchmark's own number"
    )
    parser.add_argument("--write", action="store_true", help="put all saved results into docs/benchmarks.md")
    return parser


def _enter(arguments: Sequence[str]) -> None:
    """Go on in namespaces of our own, where hosts can be made and no traffic leaves the machine; never returns."""
    testing = [sys.executable, "-m", "distributed_provisioner.testing", "enter", "--"]
    command = [*testing, *_COMMAND, *arguments]
    os.execve(command[0], command, {**os.environ, INSIDE: "1"})


def _why_no_hosts() -> str:
    """Why no hosts can be made on this machine; nothing where they can."""
    check = [sys.executable, "-m", "distributed_provisioner.testing", "check"]
    done = subprocess.run(check, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()


def _run(name: str, scale: Scale) -> Report:
    report = _report(name, scale)
    print(f"{name}: {report.title} …", flush=True)
    began = time.monotonic()
    try:
        with world() if _needs_hosts(name) else nullcontext() as place:
            asyncio.run(_module(name).measure(place, scale, report))
    except Unsupported as reason:
        report.skipped = str(reason)
    report.seconds = time.monotonic() - began
    return report


def _report(name: str, scale: Scale, skipped: str = "") -> Report:
    command = (
        f"python -m benchmarks {name}{' --quick' if scale.quick else ''}{f' -n {scale.n}' if scale.n else ''}"
    )
    return Report(name, _module(name).TITLE, command, skipped=skipped, quick=scale.quick)


def exit_code(report: Report) -> int:
    return int(bool(report.skipped or (_is_strict(report.name) and report.missed)))


def _finish(report: Report) -> None:
    if not _is_strict(report.name):
        report.save()
    print(f"\n{report.markdown()}", flush=True)


def _is_strict(name: str) -> bool:
    """Whether it is a test, whose figures nobody keeps."""
    return bool(getattr(_module(name), "STRICT", False))


def _needs_hosts(name: str) -> bool:
    """Whether it runs on hosts in namespaces."""
    return bool(getattr(_module(name), "NEEDS_HOSTS", True))


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")
