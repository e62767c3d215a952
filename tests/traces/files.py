"""Small traces in the Azure schema, written to a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

PERCENTILES = (0, 1, 25, 50, 75, 99, 100)


def write_trace(
    folder: Path,
    counts: Mapping[str, Sequence[int]],
    *,
    duration_ms: float = 100,
    memory_mib: float = 128,
    minute_column: str = "{}",
    first_minute: int = 1,
) -> Path:
    """Write a trace whose functions all run equally long and hold equally much."""
    minutes = max(len(row) for row in counts.values())
    columns = ",".join(minute_column.format(first_minute + minute) for minute in range(minutes))
    lines = [f"owner,app-{name},{name},http,{','.join(map(str, row))}" for name, row in counts.items()]
    write(folder / "invocations.csv", f"HashOwner,HashApp,HashFunction,Trigger,{columns}", *lines)
    columns = ",".join(f"percentile_Average_{percent}" for percent in PERCENTILES)
    times = ",".join([str(duration_ms)] * len(PERCENTILES))
    write(folder / "durations.csv", f"HashFunction,Average,{columns}", *[f"{name},1,{times}" for name in counts])
    header = "HashApp,SampleCount,AverageAllocatedMb,AverageAllocatedMb_pct50,AverageAllocatedMb_pct100"
    write(folder / "memory.csv", header, *[f"app-{name},1,1,1,{memory_mib}" for name in counts])
    return folder


def write(path: Path, *lines: str) -> None:
    """Write lines to a file whose folder may not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
