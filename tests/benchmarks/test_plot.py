"""The figures of the page."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks._plot import MET, MISSED, PANELS, bars, diagrams
from benchmarks._report import TIMES, Report, Row

SVG = "{http://www.w3.org/2000/svg}"


def test_each_ratio_has_a_bar_and_a_missed_budget_is_seen() -> None:
    """A reader sees a budget as met that was missed, or a name with < in it breaks the figure."""
    shown = [
        Row("<one> & two / local", 1.5, TIMES, 2.0, 1.4, 1.6, 9),
        Row("three / local", 3.0, TIMES, 2.0, 2.0, 99.0, 9),
    ]
    figure = ElementTree.fromstring(bars("title", shown, Report("launch", "", "")))
    met, missed = (
        [bar for bar in figure.iter(f"{SVG}rect") if bar.get("fill") == color] for color in (MET, MISSED)
    )
    assert len(met) == len(missed) == 1
    assert float(missed[0].get("width") or 0) == 2 * float(met[0].get("width") or 0)
    assert "<one> & two" in {text.text for text in figure.iter(f"{SVG}text")}
    assert all(float(line.get("x2") or 0) <= 760 for line in figure.iter(f"{SVG}line"))


def test_each_panel_has_all_points() -> None:
    """A size that does not fit the line is left out."""
    series = [{"kernels": float(x), **{panel.column: 2.0 * x for panel in PANELS}} for x in (10, 20, 40)]
    figure = ElementTree.fromstring(diagrams("title", Report("scale", "", "", series=series)))
    assert len(list(figure.iter(f"{SVG}circle"))) == 3 * len(PANELS)
