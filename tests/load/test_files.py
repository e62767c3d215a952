"""What a run leaves: a page, its figures as JSON, its series as CSV, and the comparison of two."""

from __future__ import annotations

import csv
import html.parser
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cli.conftest import Run
from tests.load.test_assertions import result_of

from lambent_load.compare import Difference, differences
from lambent_load.report import as_csv, as_html
from lambent_load.svg import Line, nice_ticks, pieces, plot, thinned, time_axis

POINTS = st.lists(st.tuples(st.floats(0, 100), st.none() | st.floats(0, 1e6)), max_size=2000)


def test_run_leaves_a_page_with_json_and_csv_beside_it(lambent: Run, tmp_path: Path) -> None:
    """One name for the three; the rows of both add up to the run."""
    page = tmp_path / "out.html"
    ran = lambent("load", "--target", "null", "--rate", "300", "--duration", "1s", "--report", str(page))
    assert ran.code == 0
    assert f"written: {page}, {tmp_path}/out.json, {tmp_path}/out.csv" in ran.err
    found = json.loads((tmp_path / "out.json").read_text())
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["sent"]) for row in rows) == found["sent"] == 300
    assert [float(row["p99_ms"]) for row in rows if row["p99_ms"]] == [
        row["p99_ms"] for row in found["series"] if row["p99_ms"] is not None
    ]
    assert page.read_text().count("<svg") == 5


@pytest.mark.parametrize("path", ["out.htm", "nowhere/out.html"])
def test_report_that_cannot_be_written_is_refused_before_the_load(lambent: Run, tmp_path: Path, path: str) -> None:
    """Not after an hour of it."""
    ran = lambent("load", "--target", "null", "--rate", "1", "--report", str(tmp_path / path))
    assert ran.code == 2
    assert path.partition("/")[0] in ran.err


class Page(html.parser.HTMLParser):
    """Names of the elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_page_needs_no_network_and_no_script() -> None:
    """It is read from a mail or a CI server's files."""
    page = Page(as_html(result_of([1.0, 2.0], failed=1, dropped=1)))
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert not page.attributes & {"src", "href", "onload", "onclick"}


def test_names_from_functions_are_text_on_the_page() -> None:
    """A function's error may be called anything."""
    result = result_of([1.0])
    tricky = "<script>alert(1)</script>"
    hostile = as_html(result.__class__(**_fields(result) | {"errors": {tricky: 1}, "settings": {"function": tricky}}))
    assert "script" not in Page(hostile).tags
    assert "&lt;script&gt;" in hostile


def _fields(result: Any) -> dict[str, Any]:
    return {name: getattr(result, name) for name in result.__dataclass_fields__}


@given(POINTS)
def test_plots_are_whole_whatever_is_drawn(points: list[tuple[float, float | None]]) -> None:
    """Well-formed, and every point within the picture."""
    drawn = ET.fromstring(plot("a < b", "ms", time_axis(100), [Line("x & y", points)]))
    places = [place for line in drawn.iter("polyline") for place in line.attrib["points"].split()]
    assert all(0 <= float(number) <= 640 for place in places for number in place.split(","))


@given(POINTS)
def test_peaks_are_drawn_however_long_the_series(points: list[tuple[float, float | None]]) -> None:
    """Thinning that averages hides what a load test is for."""
    drawn = [y for _, y in thinned(points) if y is not None]
    assert len(thinned(points)) <= 800
    assert max(drawn, default=None) == max((y for _, y in points if y is not None), default=None)


def test_one_high_second_of_an_hour_is_seen() -> None:
    """It is what the run was made for."""
    points: list[tuple[float, float | None]] = [(float(x), 500.0 if x == 1234 else 1.0) for x in range(3600)]
    assert (1234.0, 500.0) in thinned(points)


def test_gaps_stay_gaps() -> None:
    """A second without an answer is not one of a straight line."""
    assert pieces([(0, 1.0), (1, 2.0), (2, None), (3, 1.0)]) == [[(0, 1.0), (1, 2.0)], [(3, 1.0), (3, 1.0)]]


@given(st.floats(1e-6, 1e9), st.integers(1, 10))
def test_ticks_are_few_round_and_within(end: float, most: int) -> None:
    """Numbers that a person reads."""
    ticks = nice_ticks(end, most)
    assert 1 <= len(ticks) <= most + 1
    assert ticks[0] == 0
    assert ticks[-1] <= end * (1 + 1e-9)
    assert all(re.fullmatch(r"[0125]\.?0*e[+-]\d+|[1-9]\.?\d*e[+-]\d+", f"{tick:e}") for tick in ticks)


def test_csv_of_an_empty_run_has_its_heading() -> None:
    """A program that reads it finds the columns."""
    assert as_csv(result_of([])).startswith("time_s,sent,late,dropped,answered,")


def test_comparison_says_what_is_better(lambent: Run, tmp_path: Path) -> None:
    """Of two files, by the figures that matter."""
    for name, latency_ms in (("before", 10.0), ("after", 20.0)):
        described = result_of([latency_ms] * 100).as_json() | {"settings": {}}
        (tmp_path / f"{name}.json").write_text(json.dumps(described))
    paths = [str(tmp_path / f"{name}.json") for name in ("before", "after")]
    lines = lambent("load", "compare", *paths).out.splitlines()
    assert "FIGURE\tbefore\tafter\tCHANGE\t" in lines
    (p99,) = [line for line in lines if line.startswith("latency p99, ms")]
    assert p99.endswith("\tworse")
    found = lambent("load", "compare", *paths, "-o", "json").json()
    assert {one["name"]: one["change"] for one in found}["answered, per s"] == 0


def test_small_changes_are_no_verdict() -> None:
    """Two runs of the same load differ by some percent; one that throttles now does not."""
    assert Difference("p99", 100.0, 104.0, more_is_better=False).verdict == ""
    assert Difference("p99", 100.0, 106.0, more_is_better=False).verdict == "worse"
    assert Difference("p99", 100.0, 94.0, more_is_better=False).verdict == "better"
    assert Difference("answered, %", 99.0, 50.0, more_is_better=True).verdict == "worse"
    assert Difference("throttled, %", 0.0, 1.0, more_is_better=False).verdict == "worse"
    assert Difference("p99", None, 1.0, more_is_better=False).verdict == ""


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": "lambent.load/0"}', None])
def test_what_is_no_result_is_refused_by_name(lambent: Run, tmp_path: Path, content: str | None) -> None:
    """A clear word in place of a KeyError."""
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    ran = lambent("load", "compare", str(path), str(path))
    assert ran.code == 1
    assert str(path) in ran.err


def test_differences_need_nothing_but_the_files() -> None:
    """What `-o json` prints is what is compared."""
    described = json.loads(json.dumps(result_of([1.0], failed=1).as_json()))
    assert {one.name: one.change for one in differences(described, described)}["failed, %"] == 0
