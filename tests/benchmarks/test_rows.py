"""A row of the benchmark is reached only by a measurement."""

from __future__ import annotations

import io
import math

import pytest
from benchmarks.bounds import MIN_ENVIRONMENTS, idle_row, memory_rows, merged_rows, timed_rows
from benchmarks.invocations import Memory
from benchmarks.rows import Row, as_json, as_table
from rich.console import Console


@pytest.mark.parametrize(("value", "reached"), [(3.0, True), (2.0, True), (4.0, True), (4.1, False)])
def test_a_bound_on_the_ratio_is_from_above(value: float, reached: bool) -> None:
    """At most twice the floor, and the floor itself would do."""
    row = Row("latency", value, "ms", "echo", 2.0, must=2.0)
    assert row.ratio == value / 2.0
    assert row.reached is reached
    assert row.verdict == ("reached" if reached else "missed")


@pytest.mark.parametrize(("value", "reached"), [(150.0, True), (149.0, False)])
def test_a_bound_on_a_rate_is_from_below(value: float, reached: bool) -> None:
    """More calls a second are better."""
    assert Row("rate", value, "/s", "echo", 100.0, must=1.5, larger_is_better=True).reached is reached


@pytest.mark.parametrize(("value", "reached"), [(4.0, True), (4.1, False)])
def test_without_a_floor_the_bound_is_on_the_value(value: float, reached: bool) -> None:
    """Memory has a limit of its own."""
    row = Row("memory", value, "MiB", must=4)
    assert row.ratio is None
    assert row.reached is reached


@pytest.mark.parametrize("floor", [None, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("rate", [False, True])
def test_a_missing_floor_is_a_miss_that_says_why(floor: float | None, rate: bool) -> None:
    """A machine that cannot run the floor does not make every figure good."""
    row = Row("cold", 5.0, "ms", "bwrap", floor, must=1.2, larger_is_better=rate, missing="bubblewrap is not installed")
    assert not row.reached
    assert row.ratio is None
    assert row.verdict == "missed: bubblewrap is not installed"


@pytest.mark.parametrize("value", [None, 0.0, math.nan])
@pytest.mark.parametrize("floor_name", ["", "echo"])
def test_a_missing_value_is_a_miss(value: float | None, floor_name: str) -> None:
    """A process that nobody found takes no memory, and that is no success."""
    row = Row("memory", value, "MiB", floor_name, 1.0 if floor_name else None, must=4)
    assert not row.reached
    assert row.verdict == "missed: not measured"


def test_a_figure_that_is_only_reported_cannot_be_missed() -> None:
    """It still says when it could not be taken."""
    assert Row("memory", 9.0, "MiB").verdict == ""
    assert Row("cold", 9.0, "ms", "bwrap", None).reached
    assert Row("cold", 9.0, "ms", "bwrap", None).verdict == "no floor: bwrap was not measured"


def test_a_run_without_any_sample_misses_every_bound() -> None:
    """No row with a bound is built in a way that lets nothing pass."""
    nothing = Memory(None, None, None, None, None, 0)
    rows = [*timed_rows({}, "bubblewrap is not installed"), *memory_rows(nothing), idle_row(nothing, 3.0)]
    rows += merged_rows(None, None, None, "this kernel cannot merge pages")
    bounded = [row for row in rows if row.must is not None]
    assert len(bounded) == 12
    assert not any(row.reached for row in bounded)


def test_what_bubblewrap_is_the_floor_of_is_missed_without_it() -> None:
    """The other figures have their own floors."""
    good = {
        "warm": 1.0,
        "echo": 1.0,
        "p99 beside": 1.0,
        "p99": 1.0,
        "invocations rate": 9.0,
        "echo rate": 1.0,
        "cold": 1.0,
        "exhausted": 1.0,
        "sandbox": 1.0,
        "bare sandbox": 1.0,
        "sandbox rate": 9.0,
    }
    rows = timed_rows({name: [value] for name, value in good.items()}, "bubblewrap is not installed")
    missed = {row.figure: row.verdict for row in rows if not row.reached}
    assert set(missed.values()) == {"missed: bubblewrap is not installed"}
    assert list(missed) == [
        "cold start p50, 1,769 MB, 200 ms apart",
        "cold start p50, the 51st of 50 at once",
        "sandboxes made and ended, sustained",
    ]


def test_few_environments_do_not_give_the_memory_of_one() -> None:
    """What they share with the zygote is divided among them: the memory of the only one would be another figure."""
    few, enough = (
        memory_rows(Memory(50.0, 50.0, 2.0, 9.0, 3.0, n))[-1] for n in (MIN_ENVIRONMENTS - 1, MIN_ENVIRONMENTS)
    )
    assert enough.reached
    assert few.verdict == f"missed: only {MIN_ENVIRONMENTS - 1} are alive"


def test_idle_environments_are_compared_when_there_are_enough() -> None:
    """Half of what a bare interpreter takes, of two hundred."""
    many, few = (idle_row(Memory(None, None, None, None, 1.5, count), 3.0) for count in (200, 199))
    assert many.reached
    assert few.verdict == "missed: only 199 are alive"


def test_merged_environments_are_compared_when_there_are_enough() -> None:
    """What the kernel keeps for it is told, and no part of the bound."""
    [many, kept], [few, _] = (merged_rows(Memory(None, None, None, None, 0.5, n), 3.0, 0.6) for n in (200, 199))
    assert many.reached
    assert (kept.value, kept.verdict) == (0.6, "")
    assert few.verdict == "missed: only 199 are alive"


def test_table_and_json_tell_the_same() -> None:
    """What is missing is to be read in both."""
    rows = [Row("cold", 5.0, "ms", "bwrap", None, must=1.2, missing="no bubblewrap"), Row("rate", 4000.0, "/s")]
    output = io.StringIO()
    Console(file=output, width=120).print(as_table(rows, "what it is compared with"))
    assert "missed: no bubblewrap" in output.getvalue()
    assert "4,000 /s" in output.getvalue()
    assert "what it is compared with" in output.getvalue()
    cold = as_json(rows)[0]
    assert (cold["floor"], cold["ratio"], cold["reached"], cold["verdict"]) == (
        None,
        None,
        False,
        "missed: no bubblewrap",
    )
