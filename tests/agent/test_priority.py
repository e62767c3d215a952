"""The daemons' place beside functions and clients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import os
from lambent_common.priority import prefer_daemon
prefer_daemon()
print(os.getpriority(os.PRIO_PROCESS, 0))
print(open("/proc/self/autogroup").read().split()[-1])
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="the kernel was built without autogroups")
@pytest.mark.parametrize("own", [True, False])
def test_a_daemon_takes_its_session_along_and_nobody_else_s(own: bool) -> None:
    """Its own niceness counts for nothing against other sessions; that of a shell is its user's business."""
    command = [sys.executable, "-c", _SCRIPT]
    before = Path("/proc/self/autogroup").read_text().split()[-1]
    said = subprocess.run(command, start_new_session=own, capture_output=True, text=True, timeout=30, check=True).stdout
    assert said.split() == ["-10", "-10" if own else before]
