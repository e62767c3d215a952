"""Which policies there are, by the names that the command line knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent_scheduler.core import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

POLICIES: Mapping[str, Limits] = {
    "fixed": Limits(),
}
"""When environments are made and how long they are kept: what the dispatcher is to be given for each."""

PLACEMENTS: Mapping[str, Mapping[str, object]] = {
    "default": {},
}
"""Which node gets a new environment: fields of Limits to be replaced for each."""
