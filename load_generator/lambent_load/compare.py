"""Two results side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NOTABLE = 0.05
"""Changes below it are drawn as none: two runs of the same load on a quiet machine differ by some percent."""

_DURATIONS = ("mean", "p50", "p90", "p99", "p99_9", "max")


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both results.

    Attributes:
        name: With its unit.
        before: Of the first; None where it has none.
        after: Of the second.
        more_is_better: None where it is neither.
    """

    name: str
    before: float | None
    after: float | None
    more_is_better: bool | None

    @property
    def change(self) -> float | None:
        """The change as a share of the first; None where there is nothing to divide by."""
        if self.before is None or self.after is None or self.before == 0:
            return 0.0 if self.before == self.after == 0 else None
        return self.after / self.before - 1

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or empty where it is neither, or too little to say."""
        if self.more_is_better is None or self.before is None or self.after is None:
            return ""
        if self.change is not None and abs(self.change) < _NOTABLE:
            return ""
        return "better" if (self.after > self.before) is self.more_is_better else "worse"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    """Give the figures of two results, in the order of their importance."""
    # An open loop is answered as often as it asks; what callers in a closed loop get says how quick a cluster is.
    closed = all("callers" in result["settings"] for result in (before, after))
    for name, more_is_better in (("scheduled_per_s", None), ("answered_per_s", True if closed else None)):
        yield Difference(name.replace("_per_s", ", per s"), before[name], after[name], more_is_better)
    yield Difference("answered, %", _percent(before, "answered"), _percent(after, "answered"), more_is_better=True)
    for kind in ("latency_ms", "start_delay_ms"):
        for point in _DURATIONS:
            name = f"{kind.removesuffix('_ms').replace('_', ' ')} {point.replace('_', '.')}, ms"
            yield Difference(name, before[kind][point], after[kind][point], more_is_better=False)
    for name in ("failed", "throttled", "cold_starts", "dropped", "late"):
        yield Difference(
            f"{name.replace('_', ' ')}, %", _percent(before, name), _percent(after, name), more_is_better=False
        )


def _percent(result: Mapping[str, Any], name: str) -> float | None:
    whole = result["scheduled"]
    return 100 * result[name] / whole if whole else None
