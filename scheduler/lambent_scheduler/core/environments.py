"""Execution environments as the scheduler sees them."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambent_scheduler.core.call import Call
    from lambent_scheduler.core.cold_start import EnvironmentStart
    from lambent_scheduler.core.concurrency import Gone
    from lambent_scheduler.core.nodes import NodeState
    from lambent_scheduler.core.version import VersionSpec
    from lambent_scheduler.core.version_state import VersionState


class Phase(Enum):
    """Where an environment is in its life, in this order; IDLE and BUSY alternate."""

    PLANNED = "planned"
    """Its memory is promised, and it is ordered when others have gone from the node."""
    STARTING = "starting"
    PREPARED = "prepared"
    """With SnapStart: it can serve, and has served nothing yet."""
    IDLE = "idle"
    BUSY = "busy"
    STOPPING = "stopping"


class Environment:
    """One execution environment. Changed by the dispatcher alone.

    Attributes:
        environment_id: UUID version 4.
        spec: The version that it serves.
        node_id: Where it lives.
        phase: See Phase. STOPPING from the order to the node's word that it is gone.
        ready_at: When it could serve for the first time.
        last_used: When its last call ended, or it became ready; of a prepared one, when it was last found to be wanted;
            of one that was started ahead of calls, when that was last used whose place it takes.
        in_place_of: That one; None when it was started for a call, or has served one.
        served: Calls bound to it so far, the present one included: 1 means that this one is a cold start.
        start: How it was made, until its first call has it; None too when that was for a scheduler that is gone. The
            shell's own but for `Dispatcher.stopped`.
        spent: It is to stop when its call has ended: it has served as long as its node wants.
        call: The call it serves; None when it serves none, or one of a scheduler that is gone.
        version: Its siblings. Set when the dispatcher takes the environment, as is `node`.
    """

    __slots__ = (
        "call",
        "environment_id",
        "in_place_of",
        "last_used",
        "node",
        "node_id",
        "phase",
        "ready_at",
        "served",
        "spec",
        "spent",
        "start",
        "version",
    )

    version: VersionState
    node: NodeState

    def __init__(self, environment_id: str, spec: VersionSpec, node_id: str, *, served: int = 0) -> None:
        self.environment_id = environment_id
        self.spec = spec
        self.node_id = node_id
        self.phase = Phase.STARTING
        self.ready_at = 0.0
        self.last_used = 0.0
        self.in_place_of: Gone | None = None
        self.served = served
        self.start: EnvironmentStart | None = None
        self.spent = False
        self.call: Call | None = None

    def __repr__(self) -> str:
        return f"Environment({self.environment_id!r}, {self.spec.function_name!r}, {self.phase.name})"


def idle_since(environment: Environment) -> float | None:
    """Give the time since when an environment is idle or prepared; None when it is neither."""
    return environment.last_used if environment.phase in (Phase.IDLE, Phase.PREPARED) else None
