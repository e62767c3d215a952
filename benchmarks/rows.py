"""The rows of the result: figure, floor, ratio and bounds; as a table and as JSON."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass

from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        figure: What is measured.
        value: The measurement; None when it could not be taken.
        unit: Of value and floor.
        floor_name: What the floor is; empty when the figure has none.
        floor: What the machine can do at best; None when it could not be taken.
        must: Bound of the ratio, or of the value when the figure has no floor: from below when larger is better,
            otherwise from above. None when the figure is only reported.
        aim: The bound that comes after `must`.
        larger_is_better: True for a rate.
        missing: Why value or floor could not be taken.
    """

    figure: str
    value: float | None
    unit: str
    floor_name: str = ""
    floor: float | None = None
    must: float | None = None
    aim: float | None = None
    larger_is_better: bool = False
    missing: str = ""

    @property
    def ratio(self) -> float | None:
        """Value over floor; None unless both were taken."""
        if self.value is None or self.floor is None or not (_is_taken(self.value) and _is_taken(self.floor)):
            return None
        return self.value / self.floor

    @property
    def lack(self) -> str:
        """Say why there is no figure to compare; empty when there is one."""
        if not _is_taken(self.value):
            return self.missing or "not measured"
        if self.floor_name and not _is_taken(self.floor):
            return self.missing or f"no floor: {self.floor_name} was not measured"
        return ""

    @property
    def reached(self) -> bool:
        """True when nothing must be reached, or it was measured and is reached."""
        if self.must is None:
            return True
        measured = self.ratio if self.floor_name else self.value
        if self.lack or measured is None:
            return False
        return measured >= self.must if self.larger_is_better else measured <= self.must

    @property
    def verdict(self) -> str:
        """The last column: whether it is reached, and what is missing."""
        words = [] if self.must is None else ["reached" if self.reached else "missed"]
        return ": ".join(words + ([self.lack] if self.lack else []))


def as_table(rows: list[Row], caption: str) -> Table:
    """Lay the rows out for a terminal."""
    table = Table(title=f"Lambent on {os.cpu_count()} cores", caption=caption, caption_justify="left")
    for name in ("figure", "value", "floor", "ratio", "must", "aim", ""):
        table.add_column(name, justify="left" if name in {"figure", ""} else "right")
    for row in rows:
        colour = "green" if row.reached else "red"
        table.add_row(
            row.figure,
            _number(row.value, row.unit),
            _number(row.floor, row.unit) if row.floor_name else "",
            "" if row.ratio is None else f"{row.ratio:.2f} x",
            "" if row.must is None else f"{row.must:g}",
            "" if row.aim is None else f"{row.aim:g}",
            row.verdict if row.must is None else f"[{colour}]{row.verdict}[/]",
        )
    return table


def as_json(rows: list[Row]) -> list[dict[str, object]]:
    """Give the rows with their ratios and verdicts."""
    return [asdict(row) | {"ratio": row.ratio, "reached": row.reached, "verdict": row.verdict} for row in rows]


def _is_taken(figure: float | None) -> bool:
    """Tell a measurement from what stands for none: no time, memory or rate here can be zero."""
    return figure is not None and math.isfinite(figure) and figure > 0


def _number(figure: float | None, unit: str) -> str:
    if figure is None:
        return "-"
    return f"{figure:,.2f} {unit}" if figure < 1_000 else f"{figure:,.0f} {unit}"
