"""What a benchmark found: rows with budgets, as JSON, as Markdown, and in docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks._numbers import Spread

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"
TIMES = "\N{MULTIPLICATION SIGN}"
"""The unit of a ratio."""
BEGIN, END = "<!-- results -->", "<!-- /results -->"
PACKAGES = ("jupyter_client", "ipykernel", "pyzmq", "asyncssh")


@dataclass(frozen=True)
class Row:
    """One thing that was measured. A row without a budget is for information."""

    what: str
    value: float
    unit: str
    budget: float | None = None
    """At most."""
    low: float | None = None
    high: float | None = None
    n: int = 1
    detail: str = ""

    @classmethod
    def spread(
        cls,
        what: str,
        spread: Spread,
        unit: str,
        budget: float | None = None,
        detail: str = "",
        scale: float = 1.0,
    ) -> Row:
        low, median, high = (value * scale for value in (spread.low, spread.median, spread.high))
        return cls(what, median, unit, budget, low, high, spread.n, detail)

    @property
    def met(self) -> bool | None:
        return None if self.budget is None else self.value <= self.budget

    def cells(self) -> list[str]:
        between = "" if self.low is None or self.high is None else f"{number(self.low)} … {number(self.high)}"
        budget = "" if self.budget is None else f"≤ {number(self.budget)} {self.unit}".rstrip()
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        return [
            self.what,
            f"{number(self.value)} {self.unit}".rstrip(),
            between,
            str(self.n),
            budget,
            met,
            self.detail,
        ]


@dataclass
class Report:
    """One run of one benchmark."""

    name: str
    title: str
    command: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    series: list[dict[str, float]] = field(default_factory=list)
    """Points of a curve, for its plot."""
    skipped: str = ""
    quick: bool = False
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))
    machine: str = field(default_factory=lambda: describe_machine())  # noqa: PLW0108 - defined below
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    seconds: float = 0.0

    @property
    def missed(self) -> list[Row]:
        return [row for row in self.rows if row.met is False]

    def markdown(self) -> str:
        lines = [f"### {self.name}: {self.title}", ""]
        if self.skipped:
            lines += [f"Not measured: {self.skipped}", ""]
        if self.rows:
            head = ["what", "median", "quartiles", "n", "budget", "met", "detail"]
            lines += [line(head), line(["---"] * len(head)), *(line(row.cells()) for row in self.rows), ""]
        lines += [f"- {note}" for note in self.notes] + ([""] if self.notes else [])
        taken = f"{self.seconds:.0f} s, load average {self.load_before:.1f} before it"
        lines += [f"`{self.command}`, {self.date}, {taken}. {self.machine}.", ""]
        return "\n".join(lines)

    def save(self) -> None:
        """Quick figures lie apart, so that they are never taken for the others."""
        place = RESULTS / "quick" if self.quick else RESULTS
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{self.name}.json").write_text(
            json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        )
        (place / f"{self.name}.md").write_text(self.markdown())

    @classmethod
    def load(cls, name: str) -> Report | None:
        """What was saved last; None where nothing was."""
        path = RESULTS / f"{name}.json"
        if not path.exists():
            return None
        values: dict[str, Any] = json.loads(path.read_text())
        return cls(**{**values, "rows": [Row(**row) for row in values["rows"]]})


def write_page(names: Sequence[str]) -> None:
    """Put the saved results of the benchmarks into docs/benchmarks.md."""
    reports = [report for name in names if (report := Report.load(name)) is not None]
    text = "\n".join(with_figure(report) for report in reports).rstrip()
    page = PAGE.read_text()
    found = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not found.search(page):
        raise SystemExit(f"{PAGE.name} has no {BEGIN} … {END} to write into")
    PAGE.write_text(found.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page))


def with_figure(report: Report) -> str:
    """A report's Markdown, with its figure, if it has one, below the heading."""
    heading, _, rest = report.markdown().partition("\n\n")
    file = IMAGES / f"{report.name}.svg"
    figure = f"![{report.title}](images/{file.name})\n\n" if file.exists() else ""
    return f"{heading}\n\n{figure}{rest}"


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def number(value: float) -> str:
    size = abs(value)
    if value == int(value) and size < 1e6:
        return str(int(value))
    return (
        f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3f}"
    )


def describe_machine() -> str:
    """What the figures depend on, without a name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    parts = [
        f"{len(os.sched_getaffinity(0))} cores ({_processor()})",
        f"{memory:.0f} GiB",
        f"{platform.system()} {platform.release().partition('-')[0]}",
        f"Python {platform.python_version()}",
        _openssh(),
        packages,
    ]
    return "; ".join(part for part in parts if part)


def _processor() -> str:
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            return " ".join(text.partition(":")[2].split())
    return platform.machine()


def _openssh() -> str:
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr
    return said.partition(",")[0].partition(" ")[0].replace("_", " ").strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
