"""When a call may be sent again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lambent import errors
from lambent.errors import ServiceError, ThrottledError, UnavailableError
from lambent.retry import INVOKE, MAP, RetryPolicy


def _all(cls: type[ServiceError]) -> list[type[ServiceError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _all(child))]


policies = st.builds(RetryPolicy, attempts=st.integers(1, 5), base_s=st.floats(0.001, 1), cap_s=st.floats(0.001, 5))


@given(policies, st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_wait_stays_under_its_cap(policy: RetryPolicy, attempt: int, draw: float) -> None:
    """However long a client has been failing."""
    assert 0 <= policy.wait_s(attempt, draw) <= policy.cap_s


@given(policies, st.sampled_from(_all(ServiceError)), st.booleans(), st.booleans(), st.integers(1, 6))
def test_only_what_is_safe_and_may_help_is_repeated(
    policy: RetryPolicy, kind: type[ServiceError], dispatched: bool, idempotent: bool, attempt: int
) -> None:
    """At most once is a promise; so is an end to retries."""
    error = kind("x", dispatched=dispatched)
    if policy.may_retry(error, attempt, idempotent=idempotent):
        assert attempt < policy.attempts
        assert isinstance(error, ThrottledError | UnavailableError)
        assert idempotent or not dispatched


def test_map_is_more_patient_than_a_single_call() -> None:
    """Its calls throttle each other."""
    assert MAP.attempts > INVOKE.attempts
    assert not INVOKE.may_retry(errors.NoCapacityError("no node"), 1, idempotent=True)
