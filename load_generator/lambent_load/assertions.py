"""What a run must reach, as `--assert` has it: `p99<50ms`, `errors<0.1%`, `answered_per_s>=190`."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent.errors import InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambent_load.result import Result

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}

_TIME_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}

_COUNTS = ("errors", "throttles", "cold_starts", "dropped", "late", "answered")

_KNOWN = f"p50, p99.9 or any other percentile, mean, max, answered_per_s, {', '.join(_COUNTS)}"

_FORM = re.compile(r"\s*([a-z_]+|p\d+(?:\.\d+)?)\s*(<=|>=|<|>|=)\s*(\d+(?:\.\d+)?)\s*([a-z%]*)\s*")


class AssertionFormError(InvalidParameterError):
    """An assertion cannot be read."""


@dataclass(frozen=True, slots=True)
class Assertion:
    """One bound. Made by `parse`.

    Attributes:
        text: As it was given.
        metric: A percentile of the latency such as `p99`, `mean`, `max`, or the name of a count or rate.
        relation: Of _OPERATORS.
        bound: Milliseconds of a time, a share in [0, 1] when `share`, else a count or calls per second.
        share: True when a count is compared as a share: dropped of the calls that were due, the others of those sent.
    """

    text: str
    metric: str
    relation: str
    bound: float
    share: bool = False

    def value(self, result: Result) -> float | None:
        """Give what the run reached; None where it has no such value, as a percentile without answers."""
        if self.metric == "answered_per_s":
            return result.rate_per_s
        if self.metric in _COUNTS:
            count = float(getattr(result, {"errors": "failed", "throttles": "throttled"}.get(self.metric, self.metric)))
            if not self.share:
                return count
            whole = result.scheduled if self.metric == "dropped" else result.sent
            return count / whole if whole else None
        if self.metric == "mean":
            value_us = result.latency.mean_us
        elif self.metric == "max":
            value_us = result.latency.max_us if result.latency.count else None
        else:
            value_us = result.latency.percentile_us(float(self.metric[1:]))
        return None if value_us is None else value_us / 1000

    def holds(self, result: Result) -> bool:
        """Tell whether the run reached it; what has no value has not."""
        value = self.value(result)
        return value is not None and _OPERATORS[self.relation](value, self.bound)

    def found(self, result: Result) -> str:
        """Say the value that the run reached, in the assertion's kind of unit."""
        value = self.value(result)
        if value is None:
            return "nothing to measure"
        if self.share:
            return f"{value:.3%}"
        if self.metric in _COUNTS:
            return f"{value:,.0f}"
        return f"{value:,.1f}/s" if self.metric == "answered_per_s" else f"{value:,.3f} ms"


def parse(text: str) -> Assertion:
    """Read an assertion: a metric, one of `< <= > >= =`, a number and its unit.

    Times need a unit (us, ms, s); counts may have %, of the calls sent; a rate may have /s left out only.

    Raises:
        AssertionFormError: It is none; the message says what is wrong.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise AssertionFormError(f"assertion {text!r} has not the form of 'p99<50ms', 'errors<0.1%' or 'dropped=0'")
    metric, relation, number, unit = match.groups()
    bound = float(number)
    if metric in _COUNTS:
        if unit not in {"", "%"}:
            raise AssertionFormError(f"assertion {text!r}: {metric} is a count; its unit is % or none, not {unit!r}")
        return Assertion(text, metric, relation, bound / 100 if unit else bound, share=bool(unit))
    if metric == "answered_per_s":
        if unit:
            raise AssertionFormError(f"assertion {text!r}: answered_per_s has no unit but its own, not {unit!r}")
        return Assertion(text, metric, relation, bound)
    if metric not in {"mean", "max"} and not _is_percentile(metric):
        raise AssertionFormError(f"assertion {text!r}: {metric!r} is none of {_KNOWN}")
    if unit not in _TIME_UNITS_MS:
        given = f"not {unit!r}" if unit else "and has none"
        raise AssertionFormError(f"assertion {text!r}: {metric} is a time; its unit is us, ms or s, {given}")
    return Assertion(text, metric, relation, bound * _TIME_UNITS_MS[unit])


def _is_percentile(metric: str) -> bool:
    return bool(re.fullmatch(r"p\d+(\.\d+)?", metric)) and 0 < float(metric[1:]) <= 100
