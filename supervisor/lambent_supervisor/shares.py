"""How the machine is divided among the nodes of a cluster that runs on it alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent_common.machine import DEFAULT_MEMORY_SHARE, MINIMUM_DISK_MIB, default_disk_mib

from .errors import NodeShareError

if TYPE_CHECKING:
    from lambent_common.machine import Machine

# The smallest function: AWS Lambda quotas, memory allocation 128 MB.
MINIMUM_NODE_MEMORY_MIB = 128


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What one node declares: memory and disk in MiB, CPUs, and what is to be said about it, if anything."""

    memory_mib: int
    cpus: float
    disk_mib: int
    remark: str | None = None


def divide(machine: Machine, nodes: int, memory_mib: int | None, free_disk_mib: int) -> NodeShare:
    """Divide memory, disk and CPUs equally; without `memory_mib` 80 % of the machine's memory is used.

    Raises:
        NodeShareError: A node would have less memory than the smallest function.
    """
    total_mib = int(machine.memory_mib * DEFAULT_MEMORY_SHARE) if memory_mib is None else memory_mib
    share_mib = total_mib // nodes
    if share_mib < MINIMUM_NODE_MEMORY_MIB:
        raise NodeShareError(
            f"{total_mib} MiB over {nodes} nodes leaves {share_mib} MiB for each, "
            f"less than the smallest function's {MINIMUM_NODE_MEMORY_MIB} MiB",
            help_="Ask for fewer by --nodes, or declare more by --memory.",
        )
    remark = None
    if total_mib > machine.memory_mib:
        remark = (
            f"{total_mib} MiB are declared, {machine.memory_mib} MiB are there: "
            "functions that really use them will be killed for lack of memory"
        )
    disk_mib = max(default_disk_mib(free_disk_mib) // nodes, MINIMUM_DISK_MIB)
    return NodeShare(share_mib, cpus=round(machine.cpus / nodes, 3), disk_mib=disk_mib, remark=remark)
