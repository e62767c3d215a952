"""What is simulated, besides the trace."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lambent.errors import LambentError
from lambent_common.traces import Arrivals, Durations
from lambent_scheduler.core import Limits
from lambent_simulator.policies import EVICTIONS, PLACEMENTS, POLICIES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lambent_simulator.faults import Fault

COLD_START_MS = 4.0
"""What a start costs beside the function's own init: README, "Measured", first call against warm call."""

CALL_MS = 0.4
"""What a call costs beside its run, both ways together: README, "Measured", warm call of an empty handler."""

_MIB_PER_CORE = 4096
"""A core for each so many MiB, where cores are not stated: machines have 2 to 8 GiB a core."""


class ScenarioError(LambentError):
    """A simulation is asked for that there is none of."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A cluster, its policies and what befalls it.

    Attributes:
        nodes: Machines.
        memory_mib: Memory for functions of each.
        cores: Of each; 0: one for each 4,096 MiB.
        policy: A name of POLICIES.
        eviction: A name of EVICTIONS.
        placement: A name of PLACEMENTS.
        seed: Makes arrivals, run times, samples and who is hit by faults. Two runs that differ in policy, placement or
            nodes alone have the same calls at the same times with the same run times.
        arrivals: Where in its minute a call comes.
        first_minute: Where in the trace the simulation begins.
        minutes: How much of the trace is simulated; None: to its end.
        cold_start: How long a start takes, init of the function included.
        call_ms: What a call costs beside its run.
        account_concurrency: Calls that run or wait at once; more are throttled. None: as the scheduler has it.
        keep_alive_s: How long an environment may be idle; with a policy that learns, until it knows better. None: as
            the scheduler has it.
        lease_s: How long a node is silent before it counts as lost.
        faults: What befalls nodes.
    """

    nodes: int = 10
    memory_mib: int = 16_384
    cores: int = 0
    policy: str = "fixed"
    eviction: str = "least-recently-used"
    placement: str = "default"
    seed: int = 0
    arrivals: Arrivals = Arrivals.POISSON
    first_minute: int = 0
    minutes: int | None = None
    cold_start: Durations = field(default_factory=lambda: Durations.constant(COLD_START_MS))
    call_ms: float = CALL_MS
    account_concurrency: int | None = None
    keep_alive_s: float | None = None
    lease_s: float = 5.0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        _check_name("policy", self.policy, POLICIES)
        _check_name("eviction policy", self.eviction, EVICTIONS)
        _check_name("placement", self.placement, PLACEMENTS)
        for fault in self.faults:
            if fault.nodes > self.nodes:
                raise ScenarioError(f"{fault.nodes} nodes are to be {fault.kind.value}, and there are {self.nodes}")

    @property
    def capacity(self) -> dict[str, int]:
        """What each node offers, as NodeRecord has it."""
        cores = self.cores or math.ceil(self.memory_mib / _MIB_PER_CORE)
        return {"memory_mib": self.memory_mib, "cpu_millis": 1000 * cores}

    @property
    def limits(self) -> Limits:
        """What the dispatcher is given."""
        limits = Limits(keep_alive=self.policy, eviction=self.eviction, placement=PLACEMENTS[self.placement])
        if self.account_concurrency is not None:
            limits = replace(limits, account_concurrency=self.account_concurrency)
        if self.keep_alive_s is not None:
            limits = replace(limits, keep_alive_s=self.keep_alive_s)
        return limits


def read_percentiles(path: Path) -> Durations:
    """Read how long starts take: lines of a percentile, a comma and milliseconds, such as `99,12.5`.

    The 100th is needed; below the lowest the line is level. Blank lines and lines that begin with # are passed over.

    Raises:
        ScenarioError: The file cannot be read, or is not of that form.
    """
    points: dict[float, float] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            percent, time_ms = map(float, line.split(","))
        except ValueError:
            percent = time_ms = math.nan
        if not (0 <= percent <= 100 and 0 <= time_ms < math.inf):
            raise ScenarioError(f"{path}, line {number}: {line[:40]!r} is not PERCENTILE,MILLISECONDS such as 99,12.5")
        points[percent / 100] = max(time_ms, 0.001)
    shares = sorted(points)
    if not shares or shares[-1] != 1.0 or any(points[a] > points[b] for a, b in itertools.pairwise(shares)):
        raise ScenarioError(f"{path}: needs the 100th percentile, and no percentile below a lower one")
    points.setdefault(0.0, points[shares[0]])
    return Durations(tuple(sorted(points)), tuple(points[share] for share in sorted(points)))


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ScenarioError(f"there is no {kind} {name!r}; there is: {', '.join(sorted(known))}")
