"""Environments that are initialised before calls come for them: what SnapStart is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent.errors import NoCapacityError
from lambent_scheduler.core.actions import Prepared, Start, Stop
from lambent_scheduler.core.placement import Placement, place

if TYPE_CHECKING:
    from collections.abc import Collection

    from lambent.errors import ServiceError
    from lambent_scheduler.core.actions import Action
    from lambent_scheduler.core.concurrency import FunctionState
    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.fleet import Fleet
    from lambent_scheduler.core.limits import Limits
    from lambent_scheduler.core.version import VersionSpec
    from lambent_scheduler.core.version_state import VersionState
    from lambent_scheduler.core.waiting import MemoryLine

# Starts ahead of calls of one version at once: an init takes a whole CPU, which the calls that run want, too.
_STARTS_AT_ONCE = 2


class Preparation:
    """Keeps environments prepared for versions with SnapStart.

    A version that is *kept* (the newest, and those that aliases lead to) has at least one, as long as there is memory;
    any other one has them while it is used. Each call that finds none prepared raises the number by one, up to
    `Limits.prepared_most`; each that is not needed for `Limits.keep_alive_s` is stopped, and takes the number down.

    They get only memory that is free and that nobody waits for, and are evicted as idle ones are.

    Args:
        fleet: All environments.
        limits: The bounds to keep.
        actions: What the shell has to do.
        line: Versions whose calls wait for memory.
    """

    def __init__(self, fleet: Fleet, limits: Limits, actions: list[Action], line: MemoryLine) -> None:
        self._fleet = fleet
        self._limits = limits
        self._actions = actions
        self._line = line
        self._due: dict[VersionState, None] = {}  # to be looked at in the next tick
        self._lacking: dict[VersionState, float] = {}  # found no room; to be looked at again then, the next one first

    def keep(self, function: FunctionState | None, specs: Collection[VersionSpec]) -> None:
        """Keep these versions of a function from now on, and no other ones of it.

        `Prepared` follows for each that was not kept: at once, or when room has been looked for a second time.
        """
        wanted = {spec.key for spec in specs}
        for version in list(function.versions.values() if function is not None else ()):
            if version.kept and version.spec.key not in wanted:
                version.kept = version.announce = False
                self._fleet.forget_unused(version)
        for spec in specs:
            version = self._fleet.version(spec)
            if not version.kept:
                version.kept = version.announce = True
                version.failed_preparations = 0
                version.prepared_target = max(version.prepared_target, 1)
                self._due[version] = None
                if version.prepared:
                    self._announce(version, None)

    def look_at(self, version: VersionState) -> None:
        """Its environments or calls became more or fewer: what is missing is started in the next tick.

        Not at once, since the first milliseconds of a call that has just come are its own.
        """
        if version.prepared_target:
            self._due[version] = None

    def _top_up(self, version: VersionState, now: float) -> None:
        if self._start_missing(version):
            self._lacking.pop(version, None)
        else:
            self._lacking.setdefault(version, now + self._limits.prepare_retry_s)

    def _start_missing(self, version: VersionState) -> bool:
        """Start what a version lacks, a few at a time; False when there is no room for it."""
        if version.retired or version.waiting or not (version.kept or version.environments):
            return True  # calls come first: what starts now starts for them
        while len(version.prepared) + version.starting < version.prepared_target and version.starting < _STARTS_AT_ONCE:
            placed = None if self._line else place(self._fleet.nodes, version.request, self._fleet.draw())
            if not isinstance(placed, Placement):
                return False
            self._actions.append(Start(self._fleet.start(version, self._fleet.nodes.node(placed.node_id))))
        return True

    def missed(self, version: VersionState) -> None:
        """A call found no environment, prepared or idle."""
        version.prepared_target = min(version.prepared_target + 1, self._limits.prepared_most)

    def prepared(self, environment: Environment, now: float) -> None:
        """A new environment can serve, and no call waits for it."""
        version = environment.version
        self._fleet.set_prepared(environment, now)
        version.failed_preparations = 0
        self._announce(version, None)
        self.look_at(version)

    def failed(self, version: VersionState, error: ServiceError) -> None:
        """An environment that no call waits for could not be made, or its init failed."""
        version.failed_preparations += 1
        if version.failed_preparations >= self._limits.start_attempts:
            version.prepared_target = 0  # until a call shows that it is wanted, or the function changes
            version.kept = False
            self._announce(version, error)

    def retire(self, version: VersionState) -> None:
        """A version is to have no environments any more."""
        version.kept = version.announce = False
        version.prepared_target = 0
        self._lacking.pop(version, None)
        self._due.pop(version, None)

    def tick(self, now: float) -> None:
        """Stop what has not been needed for long, and look again for room."""
        while (environment := self._fleet.prepared.first()) is not None and self._end(environment) <= now:
            version = environment.version
            if version.kept and len(version.prepared) == 1:
                environment.last_used = now  # looked at again when this time has passed once more
                continue
            version.prepared_target = max(version.prepared_target - 1, int(version.kept))
            self._fleet.stop(environment)
            self._actions.append(Stop(environment, "idle"))
        due, self._due = self._due, {}
        for version in due:
            self._top_up(version, now)
        while (lacking := next(iter(self._lacking), None)) is not None and self._lacking[lacking] <= now:
            del self._lacking[lacking]
            self._top_up(lacking, now)
            if lacking in self._lacking:
                self._announce(lacking, NoCapacityError("no node has memory to spare for a prepared environment"))

    def next_deadline(self) -> float | None:
        """Give the time at which `tick` has something to do; None when it has nothing."""
        if self._due:
            return 0.0
        first = self._fleet.prepared.first()
        times = [self._end(first)] if first is not None else []
        return min([*times, *list(self._lacking.values())[:1]], default=None)

    def _end(self, environment: Environment) -> float:
        return environment.last_used + self._limits.keep_alive_s

    def _announce(self, version: VersionState, error: ServiceError | None) -> None:
        if version.announce:
            version.announce = False
            self._actions.append(Prepared(version.spec, error))
