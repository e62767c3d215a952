"""Equal pages of idle environments are merged where the operator asks for it, and nowhere else: ADR 11."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.merging import KSM, can_merge, count, merging_kernel
from tests.sandbox_harness import TIMEOUT_S, Function, Lab, config, processes_of, until, used_memory_bytes

from lambent_node_agent.isolation import Level, Protection
from lambent_node_agent.sandbox import SandboxError, SandboxHost

pytestmark = pytest.mark.usefixtures("mount_namespace")

OWN_MIB = 32
KEEPS_ITS_OWN = f"""
import mmap
kept = mmap.mmap(-1, {OWN_MIB} << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, len(kept), mmap.PAGESIZE):
    kept[page:page + 8] = page.to_bytes(8, "big")

def handler(event, context):
    return sum(kept[page + 7] for page in range(0, len(kept), mmap.PAGESIZE))
"""
"""Has the same large data in every environment, no two pages of it alike."""


INTERPRETER_MIB = 1.5
"""Of what an environment has written to, and that others have written alike, this much at least."""

_LINES = re.MULTILINE | re.DOTALL


@pytest.fixture
def merging() -> Iterator[None]:
    """A kernel that merges, for the time of the test."""
    if not can_merge():
        pytest.skip("this kernel has no KSM, or it is not ours to set")
    with merging_kernel():
        yield


@contextlib.asynccontextmanager
async def laboratory(place: Path, *, merge_memory: bool) -> AsyncIterator[Lab]:
    async with SandboxHost(replace(config(place, "merging"), merge_memory=merge_memory)) as host:
        yield Lab(host, place)


def merged_mib(function: Function) -> float:
    """What an environment has in pages that are merged, in MiB; told since Linux 5.19."""
    pages = [int(Path(f"/proc/{pid}/ksm_merging_pages").read_text()) for pid in processes_of(function.sandbox)]
    return sum(pages) * resource.getpagesize() / (1 << 20)


def mergeable_mib(function: Function) -> list[float]:
    """Give the sizes of the mappings of an environment that the kernel may merge, in MiB."""
    texts = [Path(f"/proc/{pid}/smaps").read_text() for pid in processes_of(function.sandbox)]
    found = [match for text in texts for match in re.findall(r"^Size: +(\d+) kB$.*?^VmFlags:(.*)$", text, _LINES)]
    return [int(size) / 1024 for size, flags in found if "mg" in flags.split()]


@pytest.mark.usefixtures("merging")
async def test_interpreters_are_merged_and_what_functions_have_is_not(place: Path) -> None:
    """So the limit of a function's memory holds: a merged page stays charged to one of those who had it."""
    async with (
        laboratory(place, merge_memory=True) as lab,
        lab.function(KEEPS_ITS_OWN) as first,
        lab.function(KEEPS_ITS_OWN) as second,
    ):
        both = (first, second)
        answers = [await function.invoke() for function in both]
        async with asyncio.timeout(TIMEOUT_S):
            await until(lambda: min(map(merged_mib, both)) > INTERPRETER_MIB)
        for function in both:
            assert max(mergeable_mib(function)) < OWN_MIB
            assert used_memory_bytes(function.sandbox) > OWN_MIB << 20
        assert [await function.invoke() for function in both] == answers


@pytest.mark.usefixtures("merging")
async def test_nothing_may_be_merged_unless_the_operator_asks_for_it(place: Path) -> None:
    """A machine that merges for its virtual machines does not merge functions."""
    async with laboratory(place, merge_memory=False) as lab, lab.function(KEEPS_ITS_OWN) as function:
        assert mergeable_mib(function) == []


@pytest.mark.usefixtures("merging")
async def test_a_node_that_merges_says_so_and_is_not_fully_isolated(place: Path) -> None:
    """Schedulers and operators see it in the labels; who requires full isolation does not get it."""
    settings = replace(config(place, "merging"), merge_memory=True)
    async with SandboxHost(settings) as host:
        assert host.missing[Protection.OWN_PAGES].startswith("--merge-memory: equal pages are merged")
    with pytest.raises(SandboxError, match=r"standard, below full: .*own-pages is not enforced \(--merge-memory"):
        async with SandboxHost(replace(settings, required=Level.FULL)):
            pass


async def test_an_agent_does_not_start_where_the_kernel_would_not_merge(place: Path) -> None:
    """The message has the command that would help; the machine's setting is left alone."""
    if not can_merge():
        pytest.skip("this kernel has no KSM, or it is not ours to set")
    with merging_kernel():
        (KSM / "run").write_text("0")
        with pytest.raises(SandboxError, match=r"--merge-memory: .* echo 1 \| sudo tee /sys/kernel/mm/ksm/run"):
            async with SandboxHost(replace(config(place, "merging"), merge_memory=True)):
                pass
        assert count("run") == 0
