"""Counting: whatever is counted in parts is counted alike together."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lambent_load.tally import OTHER_ERRORS, Answer, Tally, interval_s_of

TIMES_S = st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.25])
ANSWERS = st.builds(
    Answer,
    error=st.sampled_from(["", "", "FunctionError KeyError", "ThrottledError"]),
    throttled=st.booleans(),
    cold_start=st.booleans(),
    start_delay_s=st.none() | TIMES_S,
)
Event = Callable[[Tally], None]
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(lambda due_s, delay_s: lambda tally: tally.sent(due_s, delay_s), TIMES_S, TIMES_S),
    st.builds(lambda due_s: lambda tally: tally.dropped(due_s), TIMES_S),
    st.builds(
        lambda end_s, latency_s, answer: lambda tally: tally.answered(end_s, latency_s, answer),
        TIMES_S,
        TIMES_S,
        ANSWERS,
    ),
)


def tally_of(events: list[Event]) -> Tally:
    """Count them all."""
    tally = Tally(1)
    for event in events:
        event(tally)
    return tally


@given(st.lists(EVENTS), st.lists(EVENTS))
def test_merged_tallies_are_the_tally_of_all(one: list[Event], other: list[Event]) -> None:
    """A report twice a second from each of several processes adds up to the run; nothing is lost on the way."""
    merged = Tally(1)
    for part in (other, one):
        merged.merge(Tally.from_json(json.loads(json.dumps(tally_of(part).as_json()))))
    whole = tally_of(one + other)
    assert merged.total().as_json() == whole.total().as_json()
    assert {number: interval.as_json() for number, interval in merged.intervals.items()} == {
        number: interval.as_json() for number, interval in whole.intervals.items()
    }
    assert merged.errors == whole.errors
    assert merged.send_delay.as_json() == whole.send_delay.as_json()
    assert merged.start_delay.as_json() == whole.start_delay.as_json()


def test_failed_calls_have_no_latency() -> None:
    """A refusal is quick, and would make a cluster that refuses look like a fast one."""
    tally = Tally(1)
    tally.answered(0.5, 0.001, Answer("ThrottledError", throttled=True))
    total = tally.total()
    assert (total.answered, total.failed, total.throttled, total.latency.count) == (1, 1, 1, 0)


def test_endless_names_of_errors_are_counted_together() -> None:
    """A function that puts a number into the name of its error does not fill the memory."""
    tally = Tally(1)
    for number in range(1000):
        tally.answered(0.5, 0.001, Answer(f"FunctionError E{number}"))
    assert len(tally.errors) == 101
    assert tally.errors[OTHER_ERRORS] == 900


def test_intervals_of_a_long_run_are_bounded_in_number() -> None:
    """Seconds up to an hour; a week has no more rows than that."""
    assert interval_s_of(0.5) == interval_s_of(3600) == 1
    assert 7 * 86_400 / interval_s_of(7 * 86_400) <= 3600
