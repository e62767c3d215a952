"""What a node still has to give: reservations made before an environment is.

Memory is reserved at the configured size and never overcommitted: an environment may use all of it at any time. CPU and
disk are overcommitted, because an idle environment holds its share and uses none of it, and because a CPU that is asked
for by more than it has is divided by weight. Schedulers place by the same factors; the node has the last word.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from lambent.errors import NoCapacityError

# AWS Lambda: 1,769 MB of memory come with one CPU.
MEMORY_MIB_PER_CPU: Final = 1769
# Machines have 2 to 8 GiB a core where AWS counts 1,769 MB, and most environments are idle: with 16 memory is the
# usual bound.
CPU_OVERCOMMIT: Final = 16
# Most functions write little to /tmp. What all of them write is bounded by the capacity itself: where they fill it,
# each of them finds its /tmp full (EDQUOT) before its own size.
DISK_OVERCOMMIT: Final = 10


def cpu_millis_of(memory_mib: int) -> int:
    """CPU share that comes with a memory size, in thousandths of a CPU."""
    return memory_mib * 1000 // MEMORY_MIB_PER_CPU


class Resources(NamedTuple):
    """An amount of what environments use up."""

    memory_mib: int
    cpu_millis: int
    disk_mib: int

    def as_map(self) -> dict[str, int]:
        """By the names that records and statuses use."""
        return self._asdict()

    def overcommitted(self) -> Resources:
        """What may be reserved where this much is there."""
        return Resources(self.memory_mib, self.cpu_millis * CPU_OVERCOMMIT, self.disk_mib * DISK_OVERCOMMIT)


class Admission:
    """Reservations by environment. Sums are kept, so that neither a grant nor a refusal counts anything.

    Args:
        capacity: What the node has; overcommit comes on top.
    """

    def __init__(self, capacity: Resources) -> None:
        self.capacity = capacity
        self._limit = capacity.overcommitted()
        self._held: dict[str, Resources] = {}
        self._reserved = Resources(0, 0, 0)

    @property
    def reserved(self) -> Resources:
        """Sum of all reservations."""
        return self._reserved

    def reserve(self, environment_id: str, *, memory_mib: int, disk_mib: int) -> None:
        """Reserve what an environment of this size needs.

        Raises:
            NoCapacityError: It does not fit; nothing was reserved. The message names what is short.
        """
        assert environment_id not in self._held, environment_id
        wanted = Resources(memory_mib, cpu_millis_of(memory_mib), disk_mib)
        for name, asked, taken, most in zip(Resources._fields, wanted, self._reserved, self._limit, strict=True):
            if taken + asked > most:
                raise NoCapacityError(f"the node has {most - taken} {name} of {most} left, and {asked} are needed")
        self._held[environment_id] = wanted
        self._reserved = Resources(*(taken + asked for taken, asked in zip(self._reserved, wanted, strict=True)))

    def release(self, environment_id: str) -> None:
        """Give back what an environment has reserved; one that has nothing is no error."""
        if (held := self._held.pop(environment_id, None)) is not None:
            self._reserved = Resources(*(taken - given for taken, given in zip(self._reserved, held, strict=True)))
