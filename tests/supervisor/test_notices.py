"""What the operator is told reaches somebody, and harms nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 20

TELL = """
import sys
from pathlib import Path
from lambent_supervisor.notices import tell
for number in range(3):
    tell(f"line {number}", Path(sys.argv[1]), err=sys.argv[2] == "stderr")
"""


def told(log: Path, stream: str, into: int) -> int:
    """Exit status of a process that tells three lines to one of its streams, which is this descriptor."""
    command = [sys.executable, "-c", TELL, str(log), stream]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: into}
    return subprocess.run(
        command, stdout=streams["stdout"], stderr=streams["stderr"], timeout=TIMEOUT_S, check=False
    ).returncode


def test_lines_that_nobody_reads_go_into_the_log(tmp_path: Path) -> None:
    """As when `lambent up | tee` has lost its tee; each line once, and the cluster goes on."""
    for stream in ("stdout", "stderr"):
        log = tmp_path / f"{stream}.log"
        read_end, write_end = os.pipe()
        os.close(read_end)
        assert told(log, stream, write_end) == 0
        os.close(write_end)
        assert log.read_text() == "line 0\nline 1\nline 2\n"


def test_lines_for_which_there_is_no_room_are_dropped(tmp_path: Path) -> None:
    """A full disk shall not end a cluster that serves."""
    (tmp_path / "log").symlink_to("/dev/full")
    with Path("/dev/full").open("wb") as full:
        assert told(tmp_path / "log", "stderr", full.fileno()) == 0
