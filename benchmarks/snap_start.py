"""First calls of versions whose code imports numpy and pandas, with SnapStart; and these imports by themselves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.floors import FloorMissingError, run_ms
from benchmarks.measure import sequential_ms
from lambent import AsyncClient

PACKAGES = ("numpy==2.2.6", "pandas==2.2.3")

_MODULE = "import numpy, pandas\ndef handler(event, context): return int(pandas.Series([1, 2]).sum())\n"
_MEMORY_MIB = 1769
_SPACING_S = 0.2
_INSTALL_TIMEOUT_S = 300


@dataclass(frozen=True)
class SnapStart:
    """Times in milliseconds.

    Attributes:
        first_calls: Of versions that had just become ACTIVE, the whole path from the SDK.
        imports: Of the same two packages in a fresh interpreter, from start to end.
    """

    first_calls: list[float]
    imports: list[float]


async def snap_start(client: AsyncClient, python: str, directory: Path, count: int) -> SnapStart:
    """Publish so many versions, call each once, and import between them.

    Args:
        client: Of a cluster.
        python: The interpreter that its functions run on.
        directory: Empty; for the packages.
        count: Versions.

    Raises:
        FloorMissingError: The packages cannot be had.
    """
    await asyncio.to_thread(_install, directory)
    (directory / "app.py").write_text(_MODULE)
    fresh = [python, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(directory)!r}); import numpy, pandas"]
    found = SnapStart([], [])
    for number in range(count):
        version = await client.deploy(
            "snap-start",
            directory,
            handler="app.handler",
            memory_mib=_MEMORY_MIB,
            timeout_s=60,
            description=f"version {number}",
            snap_start=True,
            publish=True,
        )
        await asyncio.sleep(_SPACING_S)

        async def first_call(qualifier: str = version.version) -> None:
            result = await client.invoke("snap-start", {}, qualifier=qualifier)
            assert result.cold_start, "the version had been called before"

        found.first_calls.extend(await sequential_ms(first_call, 1))
        found.imports.append(await asyncio.to_thread(run_ms, fresh))
    await client.functions.delete("snap-start")
    return found


def _install(directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(directory), *PACKAGES]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise FloorMissingError(f"{' and '.join(PACKAGES)} cannot be installed: {error}") from error
