"""What protects a machine from its functions, and the levels that an operator can require; pure.

What every sandbox has is no part of it: without its namespaces, its root, its dropped capabilities and masked /proc the
agent makes none. Here is what some machines lack.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LEVEL_LABEL = "lambent.isolation"
MISSING_LABEL = "lambent.not-enforced"
RESERVED_LABELS = "lambent."
"""What the labels begin with that an agent gives itself."""


class Protection(enum.Enum):
    """One of them, by the name that flags and labels use, in the order in which they are told."""

    MEMORY = "memory"  # a function gets the memory of its configuration and no more
    PIDS = "pids"  # it has 1,024 processes and threads at most, or 742 where only rlimits count them
    SECCOMP = "seccomp"  # system calls that no function needs are refused
    DISK = "disk"  # its /tmp has a hard size, on the disk
    OWN_UID = "own-uid"  # it shares its UID with nobody
    USER_NAMESPACE = "user-namespace"  # a capability, however got hold of, counts over nothing
    CPU = "cpu"  # it gets the CPU share of its memory, whatever others want
    FREEZER = "freezer"  # idle, it does not run
    OWN_PAGES = "own-pages"  # its pages are no other function's, so that what it writes to tells it of no other
    SWAP = "swap"  # its memory is not swapped out, which would let it use more, and slow down others

    @property
    def without(self) -> str:
        """What is so where it is missing."""
        return _WITHOUT[self]


_WITHOUT = {
    Protection.MEMORY: "a function may take all of the machine's memory",
    Protection.PIDS: "a function may start processes without end",
    Protection.SECCOMP: "functions may make every system call",
    Protection.DISK: "a function's /tmp is its memory",
    Protection.OWN_UID: "functions run under one UID, the agent's own",
    Protection.USER_NAMESPACE: "functions' UIDs are the machine's",
    Protection.CPU: "functions share CPUs unfairly",
    Protection.FREEZER: "idle functions go on running",
    Protection.OWN_PAGES: "equal pages are merged: the time of a write may tell what others have in memory",
    Protection.SWAP: "functions may swap beyond their memory",
}


class Level(enum.Enum):
    """How well a machine protects itself; each has what the ones after it have."""

    FULL = "full"
    STANDARD = "standard"
    REDUCED = "reduced"

    @property
    def protections(self) -> frozenset[Protection]:
        """What a machine of this level has."""
        return _OF_LEVEL[self]


_OF_LEVEL = {
    # All that one function could do to others: a /tmp in memory is its own.
    Level.FULL: frozenset(Protection) - {Protection.DISK},
    # Neither can a function take the machine down, nor does one broken layer show it the files of others.
    Level.STANDARD: frozenset({Protection.MEMORY, Protection.PIDS, Protection.SECCOMP, Protection.OWN_UID}),
    Level.REDUCED: frozenset(),
}

NEEDED = (Protection.MEMORY, Protection.PIDS, Protection.SECCOMP, Protection.DISK)
"""Without one of these functions run only where the operator says so by name."""


def accepted(allowed: frozenset[str], *, confined: bool) -> frozenset[str]:
    """Return the names of what an agent does without: what the operator allows, and what no agent without root has."""
    return allowed | {Protection.DISK.value} if confined else allowed


def level_of(missing: Iterable[Protection]) -> Level:
    """Return the best level whose protections are all there."""
    lacking = frozenset(missing)
    return next(level for level in Level if not level.protections & lacking)


def in_order(protections: Iterable[Protection]) -> list[Protection]:
    """Sort them as they are told."""
    given = frozenset(protections)
    return [protection for protection in Protection if protection in given]


def names(protections: Iterable[Protection]) -> str:
    """Return their names between commas."""
    return ",".join(protection.value for protection in in_order(protections))


def refusal(missing: Mapping[Protection, str], allowed: frozenset[str], required: Level) -> str | None:
    """Say why functions must not run here; None when they may.

    Args:
        missing: What the machine lacks, each with its reason.
        allowed: Names of what the operator does without.
        required: Level that the operator asks for, whatever is allowed.
    """
    if below := required.protections.intersection(missing):
        return f"the isolation of this machine is {level_of(missing).value}, below {required.value}: " + _told(
            below, missing
        )
    if refused := [protection for protection in NEEDED if protection in missing and protection.value not in allowed]:
        return f"{_told(refused, missing)}; mend that, or accept it with --allow-missing {names(refused)}"
    return None


def _told(protections: Iterable[Protection], missing: Mapping[Protection, str]) -> str:
    return "; ".join(f"{one.value} is not enforced ({missing[one]})" for one in in_order(protections))


def labels(missing: Iterable[Protection]) -> Mapping[str, str]:
    """Return what a node says of itself: its level, and what it lacks, if anything."""
    lacking = frozenset(missing)
    told = {LEVEL_LABEL: level_of(lacking).value}
    return told | {MISSING_LABEL: names(lacking)} if lacking else told
