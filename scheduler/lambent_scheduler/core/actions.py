"""What the dispatcher asks its shell to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from lambent.errors import ServiceError
    from lambent_scheduler.core.call import Call
    from lambent_scheduler.core.environments import Environment
    from lambent_scheduler.core.version import VersionSpec


class Start(NamedTuple):
    """Order the environment from its node. Its memory is already reserved."""

    environment: Environment


class Stop(NamedTuple):
    """Order the end of an environment. Its memory stays reserved until `Dispatcher.stopped`.

    `reason` is "idle", "evicted", "shutdown" (its node drains), "superseded", "deleted" or "exited" (it takes
    no calls) or "failed" (it was to be prepared, and its init failed).
    """

    environment: Environment
    reason: str


class Bind(NamedTuple):
    """Send a call that waited to its environment, which is BUSY from now on."""

    call: Call
    environment: Environment


class Fail(NamedTuple):
    """End a call that was admitted. The dispatcher has forgotten it; its concurrency is free again."""

    call: Call
    error: ServiceError


class Prepared(NamedTuple):
    """Tell who waits for it that a version has a prepared environment.

    `error` says why it has none: NoCapacityError, no node has room or can make one now; any other, its init fails.
    """

    spec: VersionSpec
    error: ServiceError | None


Action: TypeAlias = Start | Stop | Bind | Fail | Prepared
