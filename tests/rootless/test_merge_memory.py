"""`lambent up --merge-memory` by an ordinary user: marking memory as mergeable asks for no privilege."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks.merging import can_merge, merging_kernel

import lambent
from tests.rootless.ordinary_user import UID, ordinary_user
from tests.rootless.test_up import processes_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a user for tests needs root")


def test_a_node_of_an_ordinary_user_merges_and_says_so() -> None:
    """The label names what is given up, and the processes of its sandboxes are marked."""
    if not can_merge():
        pytest.skip("this kernel has no KSM, or it is not ours to set")
    with merging_kernel(), ordinary_user() as user:
        checks, _ = user.doctor()
        if checks["user"]["status"] == "missing":
            pytest.skip(checks["user"]["help"])
        assert checks["merging"]["detail"].endswith("the kernel merges equal pages")
        cluster = user.start_cluster("--allow-missing=memory", "--merge-memory")
        try:
            with lambent.Client(data_dir=cluster.data_dir) as client:
                (node,) = client.nodes()
            assert "own-pages" in node.labels["lambent.not-enforced"].split(",")
            [reaper, *_] = [one for one in processes_of(UID) if one.info["name"] == "lambent-reaper"]
            marks = Path(f"/proc/{reaper.pid}/smaps").read_text().splitlines()
            assert any("mg" in line.split() for line in marks if line.startswith("VmFlags:"))
        finally:
            assert user.lambent("down").returncode == 0
