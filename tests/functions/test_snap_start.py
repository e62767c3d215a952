"""Versions with SnapStart, as callers of FunctionService see them; what prepares them is played by the tests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.functions.cluster import Cluster

from lambent.errors import InvalidParameterError, NoCapacityError, ResourceConflictError, UnavailableError
from lambent.v1 import function_pb2 as pb
from lambent.v1 import record_pb2
from lambent_common import keys, records
from lambent_common.etcd import Changes as EtcdChanges
from lambent_common.etcd import KeyValue, Put
from lambent_scheduler.functions.activation import Activator

if TYPE_CHECKING:
    from lambent.errors import ServiceError
    from lambent_scheduler.core import VersionSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")

ON = pb.SnapStart(apply_on=pb.SNAP_START_APPLY_ON_PUBLISHED_VERSIONS)


def wanted(lambent: Cluster, account: str) -> list[str]:
    """Versions of function `f` that are to be prepared."""
    return [spec.version for spec in lambent.table.to_be_prepared(account, "f")]


async def preparing(lambent: Cluster) -> tuple[str, VersionSpec]:
    """Publish a version with SnapStart; give its account, and what is to be prepared."""
    account = lambent.account()
    await lambent.make(account, snap_start=ON)
    published = await lambent.publish(account)
    assert (published.version, published.state) == ("1", pb.FUNCTION_STATE_PENDING)
    (spec,) = lambent.table.to_be_prepared(account, "f")
    assert spec.snap_start
    return account, spec


async def test_a_version_is_pending_until_it_is_prepared(lambent: Cluster) -> None:
    """Who waits for ACTIVE knows that the first call finds an environment."""
    account, spec = await preparing(lambent)
    with pytest.raises(ResourceConflictError, match="Pending"):
        lambent.table.find(account, "f", "1")
    lambent.scheduler.activator.prepared(spec, None)
    version = await lambent.settled(account, qualifier="1")
    assert (version.state, version.snap_start.optimized) == (pb.FUNCTION_STATE_ACTIVE, True)
    assert lambent.table.find(account, "f", "1").primary is spec, "what was prepared serves"
    assert wanted(lambent, account) == ["1"]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (NoCapacityError("no node has memory to spare"), pb.FUNCTION_STATE_ACTIVE, ""),
        (
            UnavailableError("ImportError: no module named x"),
            pb.FUNCTION_STATE_FAILED,
            "ImportError: no module named x",
        ),
    ],
    ids=["no memory", "init fails"],
)
async def test_a_version_that_is_not_prepared(
    lambent: Cluster, error: ServiceError, state: pb.FunctionState.ValueType, reason: str
) -> None:
    """Code that cannot be initialised is no version; one that has no room only starts as others do."""
    account, spec = await preparing(lambent)
    lambent.scheduler.activator.prepared(spec, error)
    version = await lambent.settled(account, qualifier="1")
    assert (version.state, version.state_reason, version.snap_start.optimized) == (state, reason, False)


async def test_a_version_made_with_the_function_waits_for_its_code_first(lambent: Cluster) -> None:
    """`publish` on create gives a version whose code is looked for, and which is then prepared."""
    account = lambent.account()
    await lambent.create(account, snap_start=ON, publish=True)
    latest = await lambent.settled(account)
    assert latest.state == pb.FUNCTION_STATE_ACTIVE
    assert wanted(lambent, account) == ["1"]
    (spec,) = lambent.table.to_be_prepared(account, "f")
    lambent.scheduler.activator.prepared(spec, None)
    assert (await lambent.settled(account, qualifier="1")).snap_start.optimized


async def test_the_newest_version_and_those_of_aliases_are_kept_prepared(lambent: Cluster) -> None:
    """Every deployment publishes a version: old ones that nothing leads to hold no memory."""
    account, spec = await preparing(lambent)
    for number in (2, 3):
        lambent.scheduler.activator.prepared(spec, None)
        await lambent.settled(account, qualifier=spec.version)
        await lambent.change(account, memory_mib=128 + number)
        await lambent.publish(account)
        (spec,) = lambent.table.to_be_prepared(account, "f")
    lambent.scheduler.activator.prepared(spec, None)
    await lambent.settled(account, qualifier="3")
    assert wanted(lambent, account) == ["3"]
    request = pb.CreateAliasRequest(
        account=account, function_name="f", name="live", function_version="1", additional_version_weights={"2": 0.5}
    )
    await lambent.service.CreateAlias(request, None)
    assert wanted(lambent, account) == ["1", "2", "3"]


async def test_a_version_that_waits_is_prepared_though_another_one_follows(lambent: Cluster) -> None:
    """Nothing else would end its PENDING."""
    account, first = await preparing(lambent)
    await lambent.change(account, memory_mib=256)
    await lambent.publish(account)
    assert wanted(lambent, account) == ["1", "2"]
    lambent.scheduler.activator.prepared(first, None)
    assert (await lambent.settled(account, qualifier="1")).state == pb.FUNCTION_STATE_ACTIVE
    assert wanted(lambent, account) == ["2"]


async def test_a_preparation_outlives_a_change_of_its_function(lambent: Cluster) -> None:
    """A version that is prepared is written as such whatever the table shows before that."""
    account, spec = await preparing(lambent)
    key = keys.function_alias(account, "f", "live")
    alias = records.encode(record_pb2.AliasRecord(alias=pb.Alias(name="live", function_version="1")))
    lambent.scheduler.activator.prepared(spec, None)
    lambent.table.apply(EtcdChanges(1, (Put(KeyValue(key, alias, 1, 1, 0)),)))
    assert (await lambent.settled(account, qualifier="1")).snap_start.optimized


async def test_a_preparation_outlives_a_failure_of_whoever_writes_it(
    lambent: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not written at the first attempt is when maintenance begins anew."""
    account, spec = await preparing(lambent)
    parts = lambent.scheduler
    activator = Activator(parts.repository, parts.packages, parts.table)
    with monkeypatch.context() as patched:
        patched.setattr(parts.repository, "load", None)
        activator.prepared(spec, None)
        with pytest.RaisesGroup(TypeError):
            await activator.run()
    running = asyncio.create_task(activator.run())
    try:
        assert (await lambent.settled(account, qualifier="1")).snap_start.optimized
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_failed_version_can_be_published_again(lambent: Cluster) -> None:
    """What its init lacked may be there now; the code need not change for that."""
    account, spec = await preparing(lambent)
    lambent.scheduler.activator.prepared(spec, UnavailableError("the database is away"))
    assert (await lambent.settled(account, qualifier="1")).state == pb.FUNCTION_STATE_FAILED
    again = await lambent.publish(account)
    assert (again.version, again.state) == ("2", pb.FUNCTION_STATE_PENDING)
    assert (await lambent.publish(account)).version == "2"


async def test_a_version_that_is_not_active_takes_no_calls_from_the_one_beside_it(lambent: Cluster) -> None:
    """An alias with weights sends all of them to the version that works."""
    account, first = await preparing(lambent)
    lambent.scheduler.activator.prepared(first, None)
    await lambent.settled(account, qualifier="1")
    await lambent.change(account, memory_mib=256)
    await lambent.publish(account)
    request = pb.CreateAliasRequest(
        account=account, function_name="f", name="live", function_version="1", additional_version_weights={"2": 0.5}
    )
    await lambent.service.CreateAlias(request, None)
    assert lambent.table.find(account, "f", "live").other is None
    _, second = lambent.table.to_be_prepared(account, "f")
    lambent.scheduler.activator.prepared(second, None)
    await lambent.settled(account, qualifier="2")
    assert lambent.table.find(account, "f", "live").other is second


async def test_latest_is_never_prepared(lambent: Cluster) -> None:
    """As on AWS: what changes all the time is initialised when it is called."""
    account = lambent.account()
    function = await lambent.make(account, snap_start=ON)
    assert function.snap_start == ON
    assert wanted(lambent, account) == []
    assert not lambent.table.find(account, "f", "$LATEST").primary.snap_start


async def test_snap_start_can_be_switched_off(lambent: Cluster) -> None:
    """Versions published from then on are ACTIVE at once."""
    account, spec = await preparing(lambent)
    lambent.scheduler.activator.prepared(spec, None)
    await lambent.settled(account, qualifier="1")
    await lambent.change(account, snap_start=pb.SnapStart(apply_on=pb.SNAP_START_APPLY_ON_NONE))
    version = await lambent.publish(account)
    assert (version.version, version.state) == ("2", pb.FUNCTION_STATE_ACTIVE)
    assert wanted(lambent, account) == []


async def test_an_unknown_value_is_refused(lambent: Cluster) -> None:
    """A newer client's wish is not taken for another one."""
    with pytest.raises(InvalidParameterError, match=r"Value '7' at 'snapStart.applyOn'"):
        await lambent.create(lambent.account(), snap_start=pb.SnapStart(apply_on=7))  # type: ignore[arg-type] # no such value
