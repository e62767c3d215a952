"""Environments leave nothing behind: a short leak run, and that it would tell."""

from __future__ import annotations

import os

import pytest
from benchmarks.leak_run import Batch, Result, leak_run, worker

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root")


async def test_hundreds_of_environments_leave_nothing_behind() -> None:
    """No process, thread, mount, control group, namespace, descriptor or file of hundreds."""
    result = await leak_run(environments=80, batch=40, alive=20, warm_up=20)
    assert result.leaked == {}
    assert len(result.counts) == len(result.machine) == len(result.resident) == 4
    assert [len(batch.ready_ms) for batch in result.batches.values()] == [40, 40, 20, 40, 20, 40]
    first, *_, last = (look["agent"] for look in result.resident)
    assert last < first + 4096


async def test_what_stays_is_counted() -> None:
    """Environments that live have something of each kind."""
    async with worker() as running:
        before = await running.count()
        await running.order("hold", 3)
        during = await running.count()
        result = Result([before, during], [], [], {})
        expected = {"processes", "mounts of the agent", "control groups", "namespaces", "descriptors of the agent"}
        assert expected | {"files and directories"} <= set(result.leaked)
        assert result.leaked["processes"] == 6


def test_more_interfaces_and_rules_are_a_leak_where_nobody_else_makes_them() -> None:
    """Kernel objects that are freed later are only shown."""
    before = {"network interfaces": 2, "lines of nftables rules": 0, "net_namespace": 40}
    result = Result([], [before, {name: number + 1 for name, number in before.items()}], [], {})
    assert result.leaked_on_machine == {"network interfaces": 1, "lines of nftables rules": 1}


def test_growth_is_beside_the_floor_of_the_same_time() -> None:
    """A machine that others make half as fast makes the floor slower as well."""
    batches = {"first": Batch([2.0], [10.0]), "busy": Batch([4.0], [20.0]), "slow": Batch([3.0], [10.0])}
    assert Result([], [], [], batches).growth == pytest.approx(1.5)
