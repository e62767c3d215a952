"""The scheduler's decisions: pure, indexed, with one writer.

Time and seed are arguments. The shell around it asks and carries out; a simulator can do the same.
"""

from __future__ import annotations

from lambent_scheduler.core.actions import Action, Bind, Fail, Prepared, Start, Stop
from lambent_scheduler.core.call import Call
from lambent_scheduler.core.concurrency import FunctionCounts
from lambent_scheduler.core.dispatch import Dispatcher
from lambent_scheduler.core.environments import Environment, Phase
from lambent_scheduler.core.headroom import Shape
from lambent_scheduler.core.limits import Limits
from lambent_scheduler.core.placement import NodeTable, Placement, PlacementRequest, Unplaceable, place
from lambent_scheduler.core.version import VersionKey, VersionSpec

__all__ = [
    "Dispatcher",
    "Limits",
    "Call",
    "VersionSpec",
    "VersionKey",
    "Environment",
    "Phase",
    "FunctionCounts",
    "Action",
    "Start",
    "Stop",
    "Bind",
    "Fail",
    "Prepared",
    "NodeTable",
    "PlacementRequest",
    "Shape",
    "Placement",
    "Unplaceable",
    "place",
]
