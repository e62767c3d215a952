"""Symlink games, names that lead elsewhere and devices in code packages."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import pytest

import lambent
from tests.security.target import Target


def zip_of(*entries: tuple[str, int, str]) -> bytes:
    """Make a zip of a handler and of entries given by name, Unix mode and content."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr("attack.py", "def handler(event, context): return open(event).read()\n")
        for name, mode, content in entries:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            file.writestr(info, content)
    return written.getvalue()


FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([("shadow", LINK, "/etc/shadow")], id="link to a file of the host"),
        pytest.param([("shadow", LINK, "../" * 20 + "etc/shadow")], id="link that climbs"),
        pytest.param([("d", LINK, "PLACE"), ("d/attacker", FILE, "x")], id="file through a link"),
        pytest.param([("../" * 20 + "PLACE/attacker", FILE, "x")], id="name that climbs"),
        pytest.param([("d/../../attacker", FILE, "x")], id="name that climbs behind a folder"),
        pytest.param([("PLACE/attacker", FILE, "x")], id="absolute name"),
        pytest.param([("..\\..\\attacker", FILE, "x")], id="backslashes"),
        pytest.param([("attacker", stat.S_IFBLK | 0o666, "")], id="block device"),
        pytest.param([("attacker", stat.S_IFCHR | 0o666, "")], id="character device"),
        pytest.param([("attacker", stat.S_IFIFO | 0o666, "")], id="named pipe"),
        pytest.param([("attacker", FILE, "x"), ("./attacker", LINK, "/etc/shadow")], id="two entries of one name"),
    ],
)
async def test_packages_that_lead_out_of_their_folder_are_refused(
    target: Target, tmp_path: Path, entries: list[tuple[str, int, str]]
) -> None:
    """The agent unpacks them as root; at deployment nothing may be written, or linked, elsewhere."""
    place = str(tmp_path)
    made = [(name.replace("PLACE", place), mode, text.replace("PLACE", place)) for name, mode, text in entries]
    with pytest.raises(lambent.InvalidCodeError):
        await target.deploy(zip_of(*made))
    assert os.listdir(tmp_path) == []
    node = [path for path in target.data_dir.rglob("*") if path.is_symlink() or path.name == "attacker"]
    assert node == []


async def test_set_id_bits_of_a_package_are_taken_away(target: Target) -> None:
    """A program of root's with that bit would be one more thing for nosuid alone to stop."""
    programs = zip_of(("program", stat.S_IFREG | stat.S_ISUID | stat.S_ISGID | 0o755, "#!/bin/sh\n"))
    name = await target.deploy(programs)
    await target.client.invoke(name, "/var/task/program")
    [unpacked] = (target.data_dir / "nodes/1/code").rglob("program")
    assert stat.S_IMODE(unpacked.stat().st_mode) == 0o755
