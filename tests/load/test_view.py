"""What is seen of a run while it goes on: on a terminal, and in a log."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.cluster import LAMBENT, command_environment

from lambent_load.nodes import NodeSample
from lambent_load.plan import OpenLoop, Plan
from lambent_load.run import Progress
from lambent_load.tally import Answer, Tally
from lambent_load.view import PlainView, SilentView, bars, glance, line, make_view, table

PLAN = Plan("null", "f", b"", OpenLoop("constant", 10), duration_s=30.0)


def progress() -> Progress:
    """Three seconds of 10 calls each; in the third one half are throttled, and one is not answered yet."""
    tally = Tally(1)
    for number in range(30):
        tally.sent(number / 10, 0.0)
        if number < 29:
            throttled = number >= 20 and number % 2 == 0
            answer = Answer("ThrottledError", throttled=True) if throttled else Answer(cold_start=number == 0)
            tally.answered(number / 10, 0.005, answer)
    samples = [NodeSample(float(second), 2, 3 + second, 256 * second, 1024, 100 * second, 2000) for second in range(3)]
    return Progress(PLAN, 100.0, tally, samples)


def test_glance_has_the_figures_of_now() -> None:
    """Rates are those of the last whole second, counts those of the run."""
    seen = glance(progress(), 103.7)
    assert (seen.sent_per_s, seen.answered_per_s, seen.in_flight) == (10, 9, 1)
    assert (seen.counts["sent"], seen.counts["throttled"], seen.counts["cold_starts"]) == (30, 5, 1)
    assert seen.rates == (10, 10, 9)


def test_line_has_what_matters_and_nothing_that_is_zero() -> None:
    """For a log of a CI server."""
    said = line(glance(progress(), 103.7))
    assert said.startswith("4 of 30 s, 29 answered, 9/s, 1 in flight, p50 5.0")
    assert "5 throttled, 1 cold starts" in said
    assert "5 environments" in said
    assert "dropped" not in said
    assert line(glance(progress(), 131.0)).startswith("30 s, the last calls run")


def test_table_shows_rates_latencies_and_nodes() -> None:
    """Everything that is promised to be seen, with its history."""
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    with console.capture() as captured:
        console.print(table(glance(progress(), 103.7)))
    rows = dict(re.findall(r"^(\S.*?)  +(.+?)\s*$", captured.get(), re.MULTILINE))
    assert rows["rate"].startswith("9/s of 10/s")
    assert rows["in flight"] == "1"
    assert rows["throttled"] == "5"
    assert rows["cold starts"] == "1"
    assert {"p50", "p99", "failed"} <= rows.keys()
    assert rows["environments"].split()[0] == "5"
    assert rows["memory, 2 nodes"].startswith("512 of 1,024 MiB")
    assert rows["CPU reserved"].startswith("0.2 of 2.0")


def test_table_of_a_run_that_has_just_begun_is_whole() -> None:
    """There is no figure yet, and no error either."""
    console = Console(file=io.StringIO(), width=110)
    console.print(table(glance(Progress(PLAN, 100.0, Tally(1)), 100.0)))


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=80))
def test_bars_are_one_character_for_each_value(values: list[float | None]) -> None:
    """A history is as wide as what it shows; the greatest is the highest."""
    drawn = bars(values)
    if any(values):
        assert len(drawn) == len(values)
        assert "█" in drawn
    else:
        assert drawn == ""


def test_view_follows_what_standard_error_is(capfd: pytest.CaptureFixture[str]) -> None:
    """No escape codes in a file."""
    assert isinstance(make_view("none"), SilentView)
    assert isinstance(make_view("auto"), PlainView)


def test_terminal_shows_the_table_and_keeps_the_result() -> None:
    """On a real terminal: the live view while it runs, then the summary with colours and nothing of the view."""
    ours, theirs = pty.openpty()
    command = [LAMBENT, "load", "--target", "null", "--rate", "200", "--duration", "2s"]
    environment = command_environment() | {"TERM": "xterm-256color", "COLUMNS": "100"}
    with (
        open(ours, "rb", buffering=0) as screen,
        subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process,
    ):
        os.close(theirs)
        shown = _all(screen)
        assert process.wait() == 0
    text = shown.decode()
    assert "rate" in text
    assert "Ctrl-C stops" in text
    summary = text[text.rindex("Ctrl-C stops") :]
    assert "\x1b[1mcalls" in summary
    assert "400 in 2.0 s" in summary


def _all(screen: io.FileIO) -> bytes:
    """Read a terminal until the command at its other end has gone."""
    read = b""
    try:
        while piece := screen.read(4096):
            read += piece
    except OSError:  # Linux says so in place of an end.
        pass
    return read
