"""A node as it really is, which the scheduler learns only by its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambent_scheduler.core import Environment


class SimulatedNode:
    """One machine with an agent.

    Attributes:
        node_id: As in the cluster.
        slowness: How many times as long starts and runs take.
        cut: True while no message passes, because it is dead or partitioned.
        dead: True while it is gone with all that ran on it.
        given_up: True from the end of its lease until it joins again.
        environments: What exists on it, by id, as the scheduler last knew it.
        serving: Ids of those that are being made or serve a call. Kept only while it is partitioned, and for those that
            the scheduler has taken back without knowing their call.
        held_back: Messages that wait for the partition's end, in both directions.
    """

    __slots__ = ("cut", "dead", "environments", "given_up", "held_back", "node_id", "serving", "slowness")

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.slowness = 1.0
        self.cut = False
        self.dead = False
        self.given_up = False
        self.environments: dict[str, Environment] = {}
        self.serving: set[str] = set()
        self.held_back: list[Callable[[], None]] = []
