"""The command, as tests of the CLI run it, and a small trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Ran, Run, lambent

__all__ = ["Ran", "Run", "lambent"]


@pytest.fixture
def trace_folder(tmp_path: Path) -> Path:
    """Two minutes of three functions, of which the last is called in the second one alone."""
    folder = tmp_path / "trace"
    folder.mkdir()
    (folder / "invocations.csv").write_text("HashFunction,0,1\nabc123def,60,30\nfed321cba,6,6\n777,0,3\n")
    (folder / "durations.csv").write_text(
        "HashFunction,percentile_Average_0,percentile_Average_50,percentile_Average_100\n"
        "abc123def,1,10,50\nfed321cba,20,20,20\n777,5,5,5\n"
    )
    (folder / "memory.csv").write_text(
        "HashFunction,AverageAllocatedMb_pct50,AverageAllocatedMb_pct100\nabc123def,100,120\nfed321cba,130,150\n777,64,64\n"
    )
    return folder
