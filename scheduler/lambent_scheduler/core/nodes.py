"""A node as the scheduler sees it: what it has, and what is reserved on it."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from lambent_scheduler.core.environments import Phase
from lambent_scheduler.core.heaps import LazyHeap
from lambent_scheduler.core.version import MEMORY_MIB_PER_CPU

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.headroom import Pool
    from lambent_scheduler.core.policies import Eviction
    from lambent_scheduler.core.version import VersionSpec

# A resource that a node does not state is no bound.
UNSTATED = 1 << 40
# Packages remembered for one node; its own cache drops the oldest as well.
_PACKAGES_REMEMBERED = 1024


class Resources:
    """Amounts of the three resources that environments reserve."""

    __slots__ = ("cpu_millis", "disk_mib", "memory_mib")

    def __init__(self, memory_mib: int = 0, cpu_millis: int = 0, disk_mib: int = 0) -> None:
        self.memory_mib = memory_mib
        self.cpu_millis = cpu_millis
        self.disk_mib = disk_mib

    def add(self, spec: VersionSpec) -> None:
        """Add what one environment of the version takes."""
        self.memory_mib += spec.memory_mib
        self.cpu_millis += spec.cpu_millis
        self.disk_mib += spec.ephemeral_storage_mib

    def subtract(self, spec: VersionSpec) -> None:
        """Take away what one environment of the version takes."""
        self.memory_mib -= spec.memory_mib
        self.cpu_millis -= spec.cpu_millis
        self.disk_mib -= spec.ephemeral_storage_mib

    def __repr__(self) -> str:
        return f"Resources({self.memory_mib}, {self.cpu_millis}, {self.disk_mib})"


def memory_by_cpu(cpu_millis: int) -> int:
    """Give the memory, in MiB, of the largest environment whose CPU share is at most `cpu_millis`."""
    return (MEMORY_MIB_PER_CPU * (cpu_millis + 1) - 1) // 1000


class NodeState:
    """One node. Changed by the node table and the environment pool alone.

    Attributes:
        slot: Small number of the node in its table, reused after the node has left.
        capacity: What environments may reserve, overcommit included.
        cores_millis: CPU that the machine really has.
        foreign: Reserved by other schedulers, as far as the node's last status tells.
        reserved: Reserved by us: environments in any phase, and planned ones.
        promised: The part of `reserved` that planned environments wait for; they start when others are gone.
        stopping: The part of `reserved` that is about to come free.
        idle: The part of `reserved` that eviction would free.
        environments: Alive or stopping, by id.
        planned: Environments that wait for room on this node, first come first served.
        starting: Environments that are planned or ordered here and not ready yet.
        idle_order: Idle and prepared environments, the one that is evicted first in front.
        failures: Starts that failed in a row.
        packages: Code packages that the node has fetched for us, oldest first.
        pools: Indexes that the node stands in.
        reclaim_dirty: True while `idle` or `stopping` changed since the reclaim indexes looked.
    """

    __slots__ = (
        "capacity",
        "cores_millis",
        "draining",
        "environments",
        "failures",
        "foreign",
        "idle",
        "idle_order",
        "labels",
        "node_id",
        "packages",
        "planned",
        "pools",
        "promised",
        "reclaim_dirty",
        "reserved",
        "runtimes",
        "slot",
        "starting",
        "stopping",
    )

    def __init__(self, node_id: str, slot: int, eviction: Eviction) -> None:
        self.node_id = node_id
        self.slot = slot
        self.labels: frozenset[tuple[str, str]] = frozenset()
        self.runtimes: frozenset[str] = frozenset()
        self.draining = False
        self.capacity = Resources()
        self.cores_millis = 1
        self.foreign = Resources()
        self.reserved = Resources()
        self.promised = Resources()
        self.stopping = Resources()
        self.idle = Resources()
        self.environments: dict[str, Environment] = {}
        self.planned: deque[Environment] = deque()
        self.starting = 0
        self.idle_order: LazyHeap[Environment] = LazyHeap(partial(_value_of_idle, eviction))
        self.failures = 0
        self.packages: dict[str, None] = {}
        self.pools: list[Pool] = []
        self.reclaim_dirty = False

    def describe(
        self,
        capacity: Mapping[str, int],
        labels: Mapping[str, str],
        runtimes: Collection[str],
        cpu_overcommit: float,
        disk_overcommit: float,
    ) -> None:
        """Take what the node's record says. The names of `capacity` are those of NodeRecord.capacity."""
        cpu = capacity.get("cpu_millis", UNSTATED)
        disk = capacity.get("disk_mib", UNSTATED)
        self.cores_millis = max(cpu, 1)
        self.capacity = Resources(capacity.get("memory_mib", 0), int(cpu * cpu_overcommit), int(disk * disk_overcommit))
        self.labels = frozenset(labels.items())
        self.runtimes = frozenset(runtimes)

    def free(self) -> Resources:
        """Give what may still be promised. Negative while planned environments wait for others to end."""
        capacity, foreign, reserved = self.capacity, self.foreign, self.reserved
        return Resources(
            capacity.memory_mib - foreign.memory_mib - reserved.memory_mib,
            capacity.cpu_millis - foreign.cpu_millis - reserved.cpu_millis,
            capacity.disk_mib - foreign.disk_mib - reserved.disk_mib,
        )

    def reclaimable(self) -> Resources:
        """Give what would be free if every idle environment were gone."""
        free, stopping, idle = self.free(), self.stopping, self.idle
        return Resources(
            free.memory_mib + stopping.memory_mib + idle.memory_mib,
            free.cpu_millis + stopping.cpu_millis + idle.cpu_millis,
            free.disk_mib + stopping.disk_mib + idle.disk_mib,
        )

    def missing(self) -> bool:
        """Tell whether more has been promised than will be free when everything that stops has stopped."""
        free, stopping = self.free(), self.stopping
        return (
            free.memory_mib + stopping.memory_mib < 0
            or free.cpu_millis + stopping.cpu_millis < 0
            or free.disk_mib + stopping.disk_mib < 0
        )

    def ordered(self) -> tuple[Resources, Resources]:
        """Give what environments reserve that exist for sure, and what those do that are starting or stopping."""
        settled, unsettled = Resources(), Resources()
        for environment in self.environments.values():
            if environment.phase in (Phase.PREPARED, Phase.IDLE, Phase.BUSY):
                settled.add(environment.spec)
            elif environment.phase is not Phase.PLANNED:
                unsettled.add(environment.spec)
        return settled, unsettled

    def fits_now(self, spec: VersionSpec) -> bool:
        """Tell whether a planned environment can be ordered without exceeding the node."""
        free, promised = self.free(), self.promised
        return (
            free.memory_mib + promised.memory_mib >= spec.memory_mib
            and free.cpu_millis + promised.cpu_millis >= spec.cpu_millis
            and free.disk_mib + promised.disk_mib >= spec.ephemeral_storage_mib
        )

    def remember_package(self, code_sha256: str) -> str | None:
        """Note that the node has a package; give the one that is forgotten for it, if any."""
        self.packages[code_sha256] = None
        if len(self.packages) <= _PACKAGES_REMEMBERED:
            return None
        forgotten = next(iter(self.packages))
        del self.packages[forgotten]
        return forgotten


def _value_of_idle(eviction: Eviction, environment: Environment) -> float | None:
    """Give what an environment is worth, None for one that could not be evicted."""
    return eviction.value(environment) if environment.phase in (Phase.IDLE, Phase.PREPARED) else None
