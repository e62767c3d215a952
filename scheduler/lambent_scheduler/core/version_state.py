"""The environments of one function version, and the calls that wait for one."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from lambent_scheduler.core.headroom import Shape
from lambent_scheduler.core.placement import PlacementRequest

if TYPE_CHECKING:
    from lambent_scheduler.core.call import Call
    from lambent_scheduler.core.concurrency import FunctionState
    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.version import VersionSpec


class VersionState:
    """The environments and waiting calls of one version.

    Attributes:
        request: What a new environment needs.
        idle: Idle environments, the most recently used last.
        prepared: Prepared environments, oldest first.
        prepared_target: How many are to be prepared; see `Preparation`.
        kept: True while at least one is to be prepared, used or not.
        announce: True while somebody waits to hear that one is prepared, or cannot be.
        failed_preparations: In a row.
        waiting: Calls that wait, first come first served.
        starting: Environments that are planned or ordered and not ready yet.
        planned: The planned ones of those, oldest first.
        environments: Environments in any phase, planned ones included.
        retired: Why its environments are to stop after their call; empty while they are wanted.
        refused_until: Nodes that refused it, and until when they are left alone.
        queued: True while it stands in the line for memory.
    """

    __slots__ = (
        "announce",
        "environments",
        "failed_preparations",
        "function",
        "idle",
        "kept",
        "planned",
        "prepared",
        "prepared_target",
        "queued",
        "refused_until",
        "request",
        "retired",
        "spec",
        "starting",
        "waiting",
    )

    def __init__(self, spec: VersionSpec, function: FunctionState) -> None:
        self.spec = spec
        self.function = function
        self.refused_until: dict[str, float] = {}
        # The request sees the refusals of the moment: it holds the same dictionary.
        self.request = PlacementRequest(
            Shape(spec.runtime, spec.ephemeral_storage_mib, spec.labels),
            spec.memory_mib,
            spec.code_sha256,
            self.refused_until,
        )
        self.idle: dict[Environment, None] = {}
        self.prepared: dict[Environment, None] = {}
        self.prepared_target = 0
        self.kept = False
        self.announce = False
        self.failed_preparations = 0
        self.waiting: OrderedDict[Call, None] = OrderedDict()
        self.starting = 0
        self.planned: dict[Environment, None] = {}
        self.environments = 0
        self.retired = ""
        self.queued = False

    @property
    def has_free(self) -> bool:
        """True when an environment waits for a call."""
        return bool(self.idle or self.prepared)

    def unmet(self) -> int:
        """Give the number of waiting calls for which no environment is on its way; negative when more are."""
        return len(self.waiting) - self.starting
