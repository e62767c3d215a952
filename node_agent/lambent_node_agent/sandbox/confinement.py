"""What an agent without root has to make sandboxes with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Confinement:
    """The user namespace in which an agent without root is root.

    Attributes:
        uids: How many UIDs it has for sandboxes, from `FIRST_UID` on; 0 when they share the agent's own.
        remark: Why they do; empty when they do not.
    """

    uids: int
    remark: str = ""
