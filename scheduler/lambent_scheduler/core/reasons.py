"""Why a call gets no environment: the errors that say what the nodes lack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent.errors import DeadlineExceededError, NoCapacityError

if TYPE_CHECKING:
    from lambent_scheduler.core.call import Call
    from lambent_scheduler.core.placement import NodeTable
    from lambent_scheduler.core.version_state import VersionState


def impossible(nodes: NodeTable, version: VersionState) -> NoCapacityError | None:
    """Give the refusal of what no node could hold were it empty. A cluster without nodes may get some soon."""
    request = version.request
    largest_mib = nodes.pool(request.shape).largest_possible_mib()
    if largest_mib >= request.memory_mib or not len(nodes):
        return None
    name, memory_mib, disk_mib = version.spec.function_name, request.memory_mib, request.shape.disk_mib
    if largest_mib:
        return NoCapacityError(
            f"function {name} needs {memory_mib} MiB and the largest node has room for {largest_mib} MiB"
        )
    labels = "".join(f" and label {key}" for key, _value in sorted(request.shape.labels))
    return NoCapacityError(
        f"no node takes environments with runtime {request.shape.runtime} and {disk_mib} MiB of /tmp{labels}, "
        f"as function {name} needs: {_rejections(nodes, version)}"
    )


def expired(nodes: NodeTable, call: Call, version: VersionState, now: float) -> DeadlineExceededError | NoCapacityError:
    """Give the error of a call that has waited long enough."""
    waited_s = now - call.arrived
    if call.deadline <= now:
        return DeadlineExceededError(f"the caller's time ran out after {waited_s:.3f} s in the queue")
    return NoCapacityError(
        f"no environment for {version.spec.memory_mib} MiB came free within {waited_s:.1f} s: "
        f"{_rejections(nodes, version)}"
    )


def _rejections(nodes: NodeTable, version: VersionState) -> str:
    rejected = nodes.rejections(version.request)
    reasons = ", ".join(f"{count} for {reason}" for reason, count in rejected.rejections.items())
    return f"{rejected.nodes} nodes, rejected {reasons or 'none'}"
