"""Which policies there are, by the names that the command line knows: the scheduler's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lambent_scheduler.core import Limits, policies

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT: Final = Limits()

POLICIES: Final[tuple[str, ...]] = tuple(policies.KEEP_ALIVE)
"""How long environments stay idle, and which are started ahead of calls."""

EVICTIONS: Final[tuple[str, ...]] = tuple(policies.EVICTION)
"""Which idle environment makes room for another one."""

PLACEMENTS: Final[Mapping[str, str]] = {"default": _DEFAULT.placement} | {name: name for name in policies.PLACEMENT}
"""Which node gets a new environment; each with the scheduler's name of it."""
