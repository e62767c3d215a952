"""What sandboxes need of the host is used again, or removed and made anew."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest
from tests.sandbox_harness import OWN_RUNTIME, Lab

from lambent_node_agent.cgroups import CgroupError
from lambent_node_agent.sandbox import slots

ENTER = """
import os, sys

for group in sys.argv[1:]:
    os.write(int(group), b"0")
print(flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_slot_that_could_be_removed_only_in_part_is_not_used_again(
    world: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its places are gone. What was in its groups has left them since: it is removed, and another one is made."""
    table = world.host._supplies[OWN_RUNTIME]._slots
    slot = await table.take()
    entrances = slot.group.open_entrances()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ENTER, *map(str, entrances)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=entrances,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"\n"
    with monkeypatch.context() as impatient:
        impatient.setattr(slots, "_REMOVE_TIMEOUT_S", 0.0)
        with pytest.raises(CgroupError):
            await asyncio.to_thread(slot.remove)
    process.stdin.close()
    await process.wait()
    for entrance in entrances:
        os.close(entrance)
    await table.give_back(slot)
    another = await table.take()
    assert another.has_new_tmp
    await table.give_back(another)
