"""Figures for the docs, drawn from saved results as SVG with the standard library alone: `python -m benchmarks plot` draws them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks._numbers import line_through
from benchmarks._report import IMAGES, TIMES, Report, Row, number

WIDTH, LABELS, VALUES = 760, 320, 70
"""Pixels: of a figure, of the labels at its left, of the figures at its right."""
BAR, GAP, TOP, BOTTOM = 16, 10, 56, 42
PANEL, MARGIN = 300, 64
"""Pixels: of a diagram's side, and around it."""
MET, MISSED, PLAIN, MARK, INK, FAINT = "#4477aa", "#cc6677", "#bbbbbb", "#222222", "#333333", "#dddddd"
"""Colors that people who see few of them can tell apart."""
HALO = 'paint-order="stroke" stroke="#ffffff" stroke-width="3"'
"""Around letters, which may stand on a line."""


@dataclass(frozen=True)
class Panel:
    """One diagram: a column of a report's series over its kernels."""

    column: str
    through_zero: bool = False
    """Whether the straight line is drawn, as what is shown should be one."""


PANELS = (
    Panel("launching, s of CPU", True),
    Panel("memory, MB", True),
    Panel("CPU per launch, ms"),
    Panel("idle, % of a core", True),
)


def write_figures() -> list[str]:
    """Draw what there are results for; the names of the files."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in FIGURES.items():
        report = Report.load(name)
        if report is not None and (report.rows or report.series):
            (IMAGES / f"{name}.svg").write_text(draw(report), encoding="utf-8")
            written.append(f"{name}.svg")
    return written


def launch(report: Report) -> str:
    return bars("Launch, as a multiple of a local one", [*ratios(report), *of_rivals("launch")], report)


def burst(report: Report) -> str:
    rows = [*ratios(report), *of_rivals("at once, wall time"), *of_rivals("at once, longest stall")]
    return bars("30 launches at once, as a multiple of 30 local ones", rows, report)


def roundtrip(report: Report) -> str:
    rows = [row for row in ratios(report) if row.what.endswith("/ local tcp")]
    return bars("Traffic: time, as a multiple of a local kernel's on TCP", rows, report)


def scale(report: Report) -> str:
    return diagrams("One server, stub kernels, ten on each host", report)


FIGURES: dict[str, Callable[[Report], str]] = {
    "launch": launch,
    "burst": burst,
    "roundtrip": roundtrip,
    "scale": scale,
}


def ratios(report: Report) -> list[Row]:
    return [row for row in report.rows if row.unit == TIMES]


def of_rivals(what: str) -> list[Row]:
    """The other provisioners' rows on the same matter, where they were measured. Ours are another run's there, and left out."""
    report = Report.load("rivals")
    return (
        [row for row in ratios(report) if what in row.what and "distributed" not in row.what]
        if report
        else []
    )


def bars(title: str, rows: Sequence[Row], report: Report) -> str:
    """A bar for each row, with a line from quartile to quartile and a mark where the budget is."""
    height = TOP + len(rows) * (BAR + GAP) + BOTTOM
    largest = 1.1 * max([1.0, *(max(row.value, row.budget or 0.0) for row in rows)])
    span = WIDTH - LABELS - VALUES

    def x(value: float) -> float:
        return LABELS + span * min(value / largest, 1.0)  # a quartile may lie far out

    bottom = TOP + len(rows) * (BAR + GAP)
    parts = [text(x(1.0), TOP - 10, "local", anchor="middle", size=11)]
    words = []
    for place, row in enumerate(rows):
        y = TOP + place * (BAR + GAP)
        color = {None: PLAIN, True: MET, False: MISSED}[row.met]
        parts.append(text(LABELS - 8, y + BAR - 4, row.what.partition(" / local")[0], anchor="end"))
        parts.append(rectangle(LABELS, y, x(row.value) - LABELS, BAR, color))
        end = x(row.value)
        if row.low is not None and row.high is not None:
            parts.append(stroke(x(row.low), y + BAR / 2, x(row.high), y + BAR / 2, MARK, 1.5))
            end = max(end, x(row.high))
        if row.budget is not None:
            parts.append(stroke(x(row.budget), y - 3, x(row.budget), y + BAR + 3, MARK, 2))
            end = max(end, x(row.budget))
        words.append(text(end + 6, y + BAR - 4, f"{number(row.value)} {TIMES}"))
    parts += [stroke(x(1.0), TOP - 6, x(1.0), bottom, MARK, 1, dashed=True), *words]
    legend = (
        "Bars: medians; thin lines: quartiles; upright marks: budgets (red: missed); gray: for information."
    )
    parts += [text(12, bottom + 16, legend, size=11), text(12, bottom + 31, source(report), size=10)]
    return svg(title, WIDTH, height, parts)


def diagrams(title: str, report: Report) -> str:
    """Each panel's points over the number of kernels, two in a row."""
    width, height = 2 * (PANEL + MARGIN) + 24, TOP + 2 * (PANEL * 0.6 + MARGIN)
    parts: list[str] = []
    for place, panel in enumerate(PANELS):
        left = MARGIN + (place % 2) * (PANEL + MARGIN)
        top = TOP + (place // 2) * (PANEL * 0.6 + MARGIN)
        parts += diagram(panel, report, left, top, PANEL, PANEL * 0.6)
    legend = f"Dashed: a straight line through the points. {source(report)}"
    return svg(title, width, int(height), [*parts, text(12, height - 10, legend, size=10)])


def diagram(panel: Panel, report: Report, left: float, top: float, width: float, height: float) -> list[str]:
    xs = [point["kernels"] for point in report.series]
    ys = [point[panel.column] for point in report.series]
    most_x, most_y = max(xs), rounded_up(max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + width * x / most_x, top + height - height * y / most_y

    parts = [text(left, top - 10, f"{panel.column}, over the number of kernels", size=12)]
    for step in range(5):
        y = at(0, most_y * step / 4)[1]
        parts += [
            stroke(left, y, left + width, y, FAINT, 1),
            text(left - 6, y + 4, number(most_y * step / 4), anchor="end", size=11),
        ]
    parts += [
        text(at(x, 0)[0], top + height + 16, str(int(x)), anchor="middle", size=11) for x in thinned(xs)
    ]
    if panel.through_zero and len(xs) > 1:
        fit = line_through(xs, ys)
        ends = at(0, max(fit.intercept, 0)), at(most_x, fit.intercept + fit.slope * most_x)
        parts.append(stroke(*ends[0], *ends[1], MARK, 1, dashed=True))
    places = [at(x, y) for x, y in zip(xs, ys, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{MET}" stroke-width="2"/>')
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{MET}"/>' for x, y in places]
    return parts


def thinned(values: Sequence[float]) -> list[float]:
    """Those that have room as labels, the last one among them."""
    shown: list[float] = []
    for value in reversed(values):
        if not shown or shown[-1] - value >= 0.08 * values[-1]:
            shown.append(value)
    return shown


def rounded_up(value: float) -> float:
    """To 1, 2, 4 or 8 times a power of ten, so that a quarter of it is a short number."""
    size = 1.0
    while size > value:
        size /= 10
    while size * 10 < value:
        size *= 10
    return next((size * step for step in (1, 2, 4, 8) if size * step >= value), size * 10)


def source(report: Report) -> str:
    return f"{report.command}, {report.date}. {report.machine.partition('; Python')[0]}."


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}" {HALO}>{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" fill="{color}"/>'


def stroke(x1: float, y1: float, x2: float, y2: float, color: str, width: float, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"{dash}/>'


def svg(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
    lines = [f'{head}font-family="sans-serif">', f"<title>{escape(title)}</title>"]
    lines += [
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        text(12, 22, title, size=15),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
