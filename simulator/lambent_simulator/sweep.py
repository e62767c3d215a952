"""One scenario many times, with some of its settings varied: the runs behind a trade-off curve."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from lambent.cli.options import Duration
from lambent_common.traces import Arrivals
from lambent_simulator.scenario import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lambent_simulator.scenario import Scenario
    from lambent_simulator.simulation import Outcome

_MOST_RUNS = 1000
"""A typing error is not to keep a machine busy for a week."""


def _seconds(text: str) -> float:
    return Duration().convert(text, None, None)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{text} is less than 1")
    return number


# The names are those of the command's options; each with the field of Scenario and what reads a value of it.
_SETTINGS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "policy": ("policy", str),
    "placement": ("placement", str),
    "eviction": ("eviction", str),
    "nodes": ("nodes", _positive),
    "memory": ("memory_mib", _positive),
    "keep-alive": ("keep_alive_s", _seconds),
    "concurrency": ("account_concurrency", _positive),
    "arrivals": ("arrivals", Arrivals),
    "seed": ("seed", int),
}
NAMED = ("policy", "placement", "eviction", "arrivals")
"""Settings whose values are names, and have no order."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a sweep.

    Attributes:
        settings: What was varied, as it was written.
        scenario: The whole.
        outcome: What came out.
    """

    settings: Mapping[str, str]
    scenario: Scenario
    outcome: Outcome


def parse_sweep(texts: Sequence[str]) -> dict[str, list[str]]:
    """Read settings such as `policy=fixed,hybrid` or `nodes=4,8`.

    Raises:
        ScenarioError: One is not of that form or not known, or there are more combinations than `_MOST_RUNS`.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in _SETTINGS or not all(values.split(",")):
            raise ScenarioError(f"{text!r} is not NAME=VALUE,VALUE with NAME one of {', '.join(_SETTINGS)}")
        if name in found:
            raise ScenarioError(f"{name} is varied twice; write {name}=A,B,C")
        found[name] = values.split(",")
    if (runs := math.prod(map(len, found.values()))) > _MOST_RUNS:
        raise ScenarioError(f"that makes {runs:,} runs; at most {_MOST_RUNS:,} are made at once")
    return found


def combinations(base: Scenario, varied: Mapping[str, Sequence[str]]) -> Iterator[tuple[dict[str, str], Scenario]]:
    """Give each combination of the settings, and the scenario with it; the last setting varies fastest.

    Raises:
        ScenarioError: A value cannot be read, or there is no such policy or placement.
    """
    for values in itertools.product(*varied.values()):
        settings = dict(zip(varied, values, strict=True))
        fields: dict[str, Any] = {}
        for name, text in settings.items():
            field, read = _SETTINGS[name]
            try:
                fields[field] = read(text)
            except (ValueError, click.BadParameter) as error:
                raise ScenarioError(f"{text!r} is no value for {name}: {error}") from error
        yield settings, replace(base, **fields)
