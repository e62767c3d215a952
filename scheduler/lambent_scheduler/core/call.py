"""An invocation as the dispatcher sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.version import VersionSpec


class Call:
    """One invocation, from admission to its end.

    Attributes:
        request_id: UUID version 4.
        spec: The version that it runs on.
        payload_bytes: Size of the payload that is kept while the call waits.
        arrived: When it came, in seconds of the dispatcher's clock.
        deadline: When the caller gives up, on the same clock; `math.inf` when it does not.
        context: The shell's own; not looked at here.
        environment: Where it runs; None while it waits and after it ended.
        waiting: True while it stands in the queue.
        held_until: Until then it waits in any case, since an environment is being made for it.
        failed_starts: Starts made for it that failed.
    """

    __slots__ = (
        "arrived",
        "context",
        "deadline",
        "environment",
        "failed_starts",
        "held_until",
        "payload_bytes",
        "request_id",
        "spec",
        "waiting",
    )

    def __init__(
        self,
        request_id: str,
        spec: VersionSpec,
        *,
        payload_bytes: int,
        arrived: float,
        deadline: float,
        context: object = None,
    ) -> None:
        self.request_id = request_id
        self.spec = spec
        self.payload_bytes = payload_bytes
        self.arrived = arrived
        self.deadline = deadline
        self.context = context
        self.environment: Environment | None = None
        self.waiting = False
        self.held_until = arrived
        self.failed_starts = 0

    def __repr__(self) -> str:
        return f"Call({self.request_id!r}, {self.spec.function_name!r})"
