"""Reading `--assert`, and what holds of a result."""

from __future__ import annotations

import contextlib
import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_load.assertions import AssertionFormError, parse
from lambent_load.result import Result, make_result
from lambent_load.tally import Answer, Tally


def result_of(latencies_ms: list[float], *, failed: int = 0, dropped: int = 0) -> Result:
    """A run of 10 s."""
    tally = Tally(1)
    for latency_ms in latencies_ms:
        tally.sent(0.0, 0.0)
        tally.answered(1.0, latency_ms / 1000, Answer())
    for _ in range(failed):
        tally.sent(0.0, 0.0)
        tally.answered(1.0, 0.001, Answer("ThrottledError", throttled=True))
    for _ in range(dropped):
        tally.dropped(0.0)
    return make_result(
        tally,
        [],
        started=dt.datetime.now(dt.UTC),
        settings={},
        interrupted=False,
        duration_s=10.0,
        elapsed_s=10.0,
        processes=1,
        cpu_s=1.0,
    )


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p50<50ms", True),
        ("p99<50ms", False),
        ("p99.9 <= 1 s", True),
        ("max<100500us", True),
        ("max<99ms", False),
        ("mean>5ms", True),
        ("errors<1%", False),
        ("errors<=1", True),
        ("throttles=1", True),
        ("dropped<1%", False),
        ("dropped<2%", True),
        ("late=0", True),
        ("cold_starts=0", True),
        ("answered>=98", True),
        ("answered_per_s>9.7", True),
        ("answered_per_s>9.9", False),
    ],
)
def test_assertion_holds_or_not(text: str, holds: bool) -> None:
    """Of 98 answers, 2 of them slow, and one refusal; one call more was never sent."""
    result = result_of([10.0] * 96 + [100.0] * 2, failed=1, dropped=1)
    assert parse(text).holds(result) is holds


def test_nothing_holds_of_what_was_not_measured() -> None:
    """A run without answers has no p99 that could be below a bound."""
    empty = result_of([])
    assert not any(parse(text).holds(empty) for text in ("p99<50ms", "mean<1s", "max<1s", "errors<1%"))
    assert parse("p99<1s").found(empty) == "nothing to measure"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has not the form"),
        ("p99", "has not the form"),
        ("p99<", "has not the form"),
        ("p99<<5ms", "has not the form"),
        ("p99<-5ms", "has not the form"),
        ("p99<5", "its unit is us, ms or s, and has none"),
        ("p99<5%", "not '%'"),
        ("p0<5ms", "'p0' is none of"),
        ("p100.5<5ms", "'p100.5' is none of"),
        ("speed<5ms", "'speed' is none of"),
        ("errors<5ms", "errors is a count"),
        ("answered_per_s>5s", "no unit"),
    ],
)
def test_wrong_assertion_is_refused_with_what_is_wrong(text: str, says: str) -> None:
    """Before the load, not after it."""
    with pytest.raises(AssertionFormError) as refused:
        parse(text)
    assert says in refused.value.message
    assert repr(text) in refused.value.message


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    """There is no third way."""
    with contextlib.suppress(AssertionFormError):
        assert parse(text).text == text
