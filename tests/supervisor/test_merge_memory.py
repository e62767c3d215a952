"""`lambent up --merge-memory` reaches the agents, in the background too."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.merging import KSM, can_merge, merging_kernel

from tests.cluster import lambent


def test_a_cluster_does_not_start_where_the_kernel_would_not_merge(tmp_path: Path) -> None:
    """The operator reads what the agent says: the command that would help."""
    if not can_merge():
        pytest.skip("this kernel has no KSM, or it is not ours to set")
    ports = ("--grpc-port=0", "--http-port=0")
    with merging_kernel():
        (KSM / "run").write_text("0")
        done = lambent("up", f"--data-dir={tmp_path}", *ports, "--merge-memory", "--detach", check=False)
    assert done.returncode == 1
    assert "--merge-memory: the kernel merges no pages now" in done.stderr
    assert "echo 1 | sudo tee /sys/kernel/mm/ksm/run" in done.stderr
