"""When a call may be sent again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lambent import errors
from lambent.errors import ServiceError, ThrottledError, UnavailableError
from lambent.retry import INVOKE, MAP, OUTAGE_S, Retries, RetryPolicy


def _all(cls: type[ServiceError]) -> list[type[ServiceError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _all(child))]


policies = st.builds(RetryPolicy, attempts=st.integers(1, 5), base_s=st.floats(0.001, 1), cap_s=st.floats(0.001, 5))
draws = st.floats(0, 1, exclude_max=True)
failures = st.lists(st.tuples(st.sampled_from(_all(ServiceError)), st.booleans(), draws, st.floats(0, 3)), min_size=1)


@given(policies, st.integers(1, 1000), draws)
def test_wait_stays_under_its_cap(policy: RetryPolicy, attempt: int, draw: float) -> None:
    """However long a client has been failing."""
    assert 0 <= policy.wait_s(attempt, draw) <= policy.cap_s


@given(policies, failures, st.booleans(), st.floats(0, 100))
def test_only_what_is_safe_and_may_help_is_repeated_and_never_past_the_deadline(
    policy: RetryPolicy, failed: list[tuple[type[ServiceError], bool, float, float]], idempotent: bool, time_s: float
) -> None:
    """At most once is a promise; so is an end to retries."""
    retries = Retries(policy, idempotent=idempotent, deadline=time_s)
    now, counted = 0.0, 0
    for kind, dispatched, draw, took_s in failed:
        now += took_s
        wait_s = retries.wait_s(kind("x", dispatched=dispatched), now, draw)
        counted += not issubclass(kind, UnavailableError) or dispatched
        if wait_s is None:
            break
        assert issubclass(kind, ThrottledError | UnavailableError)
        assert idempotent or not dispatched
        assert now + wait_s < time_s
        assert counted < policy.attempts
        now += wait_s


@given(policies, st.lists(draws, min_size=50, max_size=50), st.floats(0, 0.2))
def test_cluster_that_is_away_is_waited_for_by_time(policy: RetryPolicy, drawn: list[float], took_s: float) -> None:
    """However few attempts the policy allows: how many a restart takes is not known."""
    retries = Retries(policy, idempotent=False)
    now, failed = 0.0, 0
    for draw in drawn:
        wait_s = retries.wait_s(UnavailableError("away"), now, draw)
        if wait_s is None:
            assert now > OUTAGE_S - 1.0
            break
        now += wait_s + took_s
        failed += 1
        assert now - took_s < OUTAGE_S
    assert failed > 8


def test_throttle_between_two_outages_ends_the_first() -> None:
    """The cluster answered: what comes next is another outage, which is waited for anew."""
    retries = Retries(MAP, idempotent=False)
    assert retries.wait_s(UnavailableError("away"), 0.0, 0.5) is not None
    assert retries.wait_s(UnavailableError("away"), OUTAGE_S, 0.5) is None
    assert retries.wait_s(ThrottledError("busy"), OUTAGE_S, 0.5) is not None
    assert retries.wait_s(UnavailableError("away"), OUTAGE_S + 1, 0.5) is not None


def test_map_is_more_patient_than_a_single_call() -> None:
    """Its calls throttle each other."""
    assert MAP.attempts > INVOKE.attempts
    assert Retries(MAP, idempotent=True).wait_s(errors.NoCapacityError("no node"), 0.0, 0.5) is None
