"""The table that invocations are resolved against: one object per revision, whatever the watch goes through."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from lambent.errors import AliasNotFoundError, FunctionNotFoundError, InternalError, UnavailableError
from lambent.v1 import function_pb2, record_pb2
from lambent_common import keys, records
from lambent_common.etcd import Changes, Delete, KeyValue, Put, Snapshot
from lambent_scheduler.functions import model
from lambent_scheduler.functions.configuration import Changes as Configuration
from lambent_scheduler.functions.names import Naming
from lambent_scheduler.functions.table import FunctionTable

ARN = "arn:aws:lambda:eu-test-1:a:function:"


class World:
    """A table, and etcd's side of it."""

    def __init__(self) -> None:
        self.table = FunctionTable(Naming("eu-test-1"))
        self.revision = 0
        self.items: dict[str, KeyValue] = {}
        self.changed: list[tuple[str, str]] = []
        self.table.on_change(lambda account, name: self.changed.append((account, name)))

    def put(self, key: str, message: object) -> None:
        """Write a record."""
        self.revision += 1
        assert isinstance(message, record_pb2.FunctionRecord | record_pb2.VersionRecord | record_pb2.AliasRecord)
        self.items[key] = KeyValue(key, records.encode(message), self.revision, self.revision, 0)
        self.table.apply(Changes(self.revision, [Put(self.items[key])]))

    def garble(self, key: str) -> None:
        """Write what is no record."""
        self.revision += 1
        self.items[key] = KeyValue(key, b"{", self.revision, self.revision, 0)
        self.table.apply(Changes(self.revision, [Put(self.items[key])]))

    def delete(self, key: str) -> None:
        """Delete a key."""
        self.revision += 1
        del self.items[key]
        self.table.apply(Changes(self.revision, [Delete(key, self.revision)]))

    def function(self, name: str, revision_id: str = "r1", version: int | None = None) -> None:
        """Write $LATEST of a function, or one of its versions, ACTIVE."""
        configuration = Configuration(runtime="python3.11", handler="a.b", timeout_ms=3000, memory_mib=128)
        change = model.Change(1, revision_id)
        outcome = model.create(name, "x86_64", configuration, model.Code("c", 1), change, publish=version is not None)
        settled = model.settle(model.FunctionRecords(outcome.latest), change, missing_code=frozenset())
        assert settled is not None
        if version is None:
            self.put(keys.function_latest("a", name), settled[0])
            return
        record = record_pb2.VersionRecord(function=settled[0].function)
        record.function.version = str(version)
        self.put(keys.function_version("a", name, str(version)), record)

    def alias(self, name: str, version: str) -> None:
        """Point the alias `live` at a version."""
        alias = function_pb2.Alias(name="live", function_version=version, revision_id="x")
        self.put(keys.function_alias("a", name, "live"), record_pb2.AliasRecord(alias=alias))


def test_same_revision_gives_the_same_object() -> None:
    """Environments are kept by revision: publishing, an alias or a relist must not look like a change of code."""
    world = World()
    world.function("f")
    spec = world.table.find("a", "f", "").primary
    assert world.table.find("a", f"{ARN}f", "$LATEST").drawn(0.9) is spec
    world.function("f", version=1)
    world.alias("f", "1")
    world.function("f")
    assert world.table.find("a", "f", "").primary is spec
    world.table.apply(Snapshot(world.revision, list(world.items.values())))
    assert world.table.find("a", "f", "").primary is spec
    world.function("f", "r2")
    assert world.table.find("a", "f", "").primary.revision_id == "r2"


def test_alias_follows_its_version_at_once() -> None:
    """What was resolved before must not be remembered beyond the change."""
    world = World()
    world.function("f")
    for number in (1, 2):
        world.function("f", version=number)
    world.alias("f", "1")
    assert world.table.find("a", "f", "live").drawn(0.0) is world.table.find("a", "f:1", "").primary
    world.alias("f", "2")
    assert world.table.find("a", "f", "live").drawn(0.0).version == "2"
    world.delete(keys.function_alias("a", "f", "live"))
    with pytest.raises(AliasNotFoundError) as error:
        world.table.find("a", "f", "live").drawn(0.0)
    assert error.value.message == f"Function not found: {ARN}f:live"


def test_unknown_function_is_reported_with_its_qualifier() -> None:
    """As AWS's Invoke does."""
    world = World()
    world.function("f")
    for name, qualifier, shown in (("g", "", "g:$LATEST"), ("f", "7", "f:7"), ("g", "live", "g:live")):
        with pytest.raises(FunctionNotFoundError) as error:
            world.table.find("a", name, qualifier).drawn(0.0)
        assert error.value.message == f"Function not found: {ARN}{shown}"


def test_a_record_that_cannot_be_read_costs_its_function_alone() -> None:
    """Values are meant to be read, and sometimes written, with etcdctl."""
    world = World()
    world.function("f")
    world.function("f", version=1)
    world.function("g")
    for key in (keys.function_latest("a", "broken"), keys.function_version("a", "f", "2"), keys.account_reserved("a")):
        world.garble(key)
    with pytest.raises(InternalError, match="broken/latest"):
        world.table.find("a", "broken", "")
    with pytest.raises(InternalError, match="versions/2"):
        world.table.find("a", "f", "2")
    for name, qualifier in (("f", ""), ("f", "1"), ("g", "")):
        assert world.table.find("a", name, qualifier).primary.function_name == name
    world.garble(keys.function_latest("a", "g"))
    assert world.table.find("a", "g", "").primary.function_name == "g", "what it was before stands"
    world.function("broken")
    assert world.table.find("a", "broken", "").primary.function_name == "broken"
    world.delete(keys.function_version("a", "f", "2"))
    with pytest.raises(FunctionNotFoundError):
        world.table.find("a", "f", "2")


def test_names_that_callers_think_of_take_bounded_memory() -> None:
    """The forms of an ARN are endless, and each that was used is remembered for the next call."""
    world = World()
    world.function("f")
    spec = world.table.find("a", "f", "").primary
    for number in range(3 * 1024):
        partition = f"aws-{number:012b}".replace("0", "a").replace("1", "b")
        assert world.table.find("a", f"arn:{partition}:lambda:eu-test-1:a:function:f", "").primary is spec
    assert len(world.table._targets) <= 1024


def test_only_what_can_be_invoked_now_is_current() -> None:
    """Warm environments of anything else are not to serve."""
    world = World()
    world.function("f", "r1")
    current = world.table.current("a", "f", "$LATEST", "r1")
    assert current is world.table.find("a", "f", "").primary
    assert world.table.current("a", "f", "$LATEST", "r0") is None
    assert world.table.current("a", "f", "1", "r1") is None
    assert world.table.current("a", "g", "$LATEST", "r1") is None


def test_snapshot_after_a_compaction_tells_what_is_gone_and_what_is_new() -> None:
    """Only what changed is reported, or every relist would stop every environment."""
    world = World()
    for name in ("kept", "gone", "changed"):
        world.function(name)
    world.changed.clear()
    stale = dict(world.items)
    other = World()
    other.revision = 10
    other.function("changed", "r2")
    other.function("new")
    items = [stale[keys.function_latest("a", "kept")], *other.items.values()]
    world.table.apply(Snapshot(20, items))
    assert sorted(world.changed) == [("a", "changed"), ("a", "gone"), ("a", "new")]
    assert [function.function_name for function in world.table.functions("a", after="", count=9)] == [
        "changed",
        "kept",
        "new",
    ]
    with pytest.raises(FunctionNotFoundError):
        world.table.find("a", "gone", "")


async def test_writer_waits_for_its_revision() -> None:
    """Until then it could not invoke what it has just made; and it does not wait for ever."""
    world = World()
    world.function("f")
    await world.table.wait_for_revision(world.revision)
    waiting = asyncio.create_task(world.table.wait_for_revision(world.revision + 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    world.function("f", "r2")
    await waiting
    with pytest.raises(UnavailableError):
        await world.table.wait_for_revision(world.revision + 1, timeout_s=0.01)


def test_record_of_a_newer_release_is_passed_over() -> None:
    """Two releases work on one etcd during an upgrade."""
    world = World()
    world.function("f")
    item = replace(next(iter(world.items.values())), key="/lambent/v1/accounts/a/functions/f/policy", value=b"?")
    world.table.apply(Changes(world.revision + 1, [Put(item), Delete(item.key, world.revision + 2)]))
    assert world.table.find("a", "f", "").primary.function_name == "f"


def test_resolving_costs_little_among_many_functions() -> None:
    """It is done for every invocation: a dictionary look-up, not a search."""
    world = World()
    for number in range(2_000):
        world.function(f"f{number}")
    names = [f"f{number}" for number in range(2_000)]
    for name in names:
        world.table.find("a", name, "")
    started = time.process_time()
    for _ in range(5):
        for name in names:
            world.table.find("a", name, "")
    assert (time.process_time() - started) / 10_000 < 20e-6
