"""Placement against a look at every node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.specs import make_capacity, make_spec

from lambent_scheduler.core import NodeTable, Placement, PlacementRequest, Shape, Unplaceable, place, policies
from lambent_scheduler.core.nodes import NodeState, memory_by_cpu
from lambent_scheduler.core.policies import PlacementPolicy
from lambent_scheduler.core.version import cpu_millis

_RUNTIMES = ("python3.11", "python3.12")
_LABELS = (("zone", "a"), ("zone", "b"))
_MEMORY_MIB = (128, 256, 1769, 3008)
_DISK_MIB = (512, 2048)


@dataclass
class Cluster:
    """A table and what was reserved in it."""

    table: NodeTable = field(default_factory=lambda: NodeTable(cpu_overcommit=1.0, disk_overcommit=1.0))
    held: list[tuple[str, int, int]] = field(default_factory=list)


_JOIN = st.tuples(
    st.just("join"),
    st.integers(0, 7),
    st.sampled_from((512, 1024, 4096)),
    st.sampled_from((100, 1000, 4000)),
    st.sampled_from((512, 4096)),
    st.sets(st.sampled_from(_RUNTIMES)),
    st.sampled_from(_LABELS),
    st.booleans(),
)
_OTHER = st.tuples(
    st.sampled_from(["leave", "drain", "undrain", "reserve", "release", "foreign", "idle", "ask"]),
    st.integers(0, 7),
    st.sampled_from(_MEMORY_MIB),
    st.sampled_from(_DISK_MIB),
)
_REQUESTS = st.builds(
    PlacementRequest,
    shape=st.builds(
        Shape,
        runtime=st.sampled_from(_RUNTIMES),
        disk_mib=st.sampled_from(_DISK_MIB),
        labels=st.sampled_from((frozenset(), frozenset(_LABELS[:1]))),
    ),
    memory_mib=st.sampled_from(_MEMORY_MIB),
    code_sha256=st.sampled_from(("f-1", "g-1")),
    excluded=st.sets(st.sampled_from(["n0", "n1", "n2"])),
)
_any_history = given(
    steps=st.lists(st.one_of(_JOIN, _OTHER), max_size=60),
    requests=st.lists(_REQUESTS, min_size=1, max_size=3),
    seed=st.integers(0, 2**64),
)


def _cluster_after(steps: list[tuple[object, ...]], ask: Callable[[NodeTable], object]) -> Cluster:
    """A cluster with a history, in which `ask` was asked now and then: a question changes nothing."""
    cluster = Cluster()
    for step in steps:
        _apply(cluster, step)
        if step[0] == "ask":
            ask(cluster.table)
    return cluster


def _apply(cluster: Cluster, step: tuple[object, ...]) -> None:
    table = cluster.table
    kind, node_id = step[0], f"n{step[1]}"
    if kind == "join":
        _, _, memory_mib, cpu, disk_mib, runtimes, label, draining = step
        capacity = make_capacity(memory_mib, cpu, disk_mib)  # type: ignore[arg-type]  # drawn by _JOIN
        table.join(node_id, capacity, dict([label]), runtimes, draining=draining)  # type: ignore[list-item,arg-type]  # the same
        return
    node = table.get(node_id)
    _, _, memory_mib, disk_mib = step
    spec = make_spec("f", memory_mib, disk_mib=disk_mib)  # type: ignore[arg-type]  # drawn by _OTHER
    if node is None:
        return
    match kind:
        case "leave":
            table.leave(node_id)
            cluster.held = [held for held in cluster.held if held[0] != node_id]
        case "drain" | "undrain":
            table.set_draining(node, kind == "drain")
        case "reserve":
            table.reserve(node, spec)
            table.remember_package(node, spec.code_sha256)
            cluster.held.append((node_id, spec.memory_mib, spec.ephemeral_storage_mib))
        case "release":
            held = next((held for held in cluster.held if held[0] == node_id), None)
            if held is not None:
                cluster.held.remove(held)
                table.release(node, make_spec("f", held[1], disk_mib=held[2]))
        case "idle":
            node.idle.add(spec)
            table.reclaim_changed(node)
        case "foreign":
            table.set_foreign(node, {"memory_mib": node.reserved.memory_mib + spec.memory_mib})


def _reason(node: NodeState, request: PlacementRequest) -> str | None:
    """Say why a node cannot take a request, by looking at it."""
    shape, free = request.shape, node.free()
    if node.draining:
        return "draining"
    if shape.runtime not in node.runtimes:
        return "runtime"
    if not shape.labels <= node.labels:
        return "labels"
    if free.disk_mib < shape.disk_mib:
        return "disk"
    if free.memory_mib >= request.memory_mib and free.cpu_millis >= cpu_millis(request.memory_mib):
        return "excluded" if node.node_id in request.excluded else None
    return "cpu" if memory_by_cpu(free.cpu_millis) < free.memory_mib else "memory"


@_any_history
def test_a_node_is_found_exactly_when_there_is_one(
    steps: list[tuple[object, ...]], requests: list[PlacementRequest], seed: int
) -> None:
    """The indexes know what a look at every node would tell, after any history; a chosen node can take the request.

    Whatever the policy, and whichever nodes are not to be chosen.
    """
    cluster = _cluster_after(steps, lambda table: place(table, requests[0], seed))
    for request, policy in product(requests, policies.PLACEMENT.values()):
        cluster.table.policy = policy()
        reasons = {node.node_id: _reason(node, request) for node in cluster.table}
        answer = place(cluster.table, request, seed)
        assert answer == place(cluster.table, request, seed)
        match answer:
            case Placement(node_id=chosen, has_code=has_code):
                assert reasons[chosen] is None
                assert has_code == (request.code_sha256 in cluster.table.node(chosen).packages)
            case Unplaceable(rejections=rejections, nodes=nodes):
                assert None not in reasons.values()
                assert nodes == len(reasons)
                counted = Counter(reasons.values())
                del counted["excluded"]
                assert {reason: count for reason, count in rejections.items() if reason != "excluded"} == counted


@_any_history
def test_room_by_eviction_is_found_exactly_when_there_is_some(
    steps: list[tuple[object, ...]], requests: list[PlacementRequest], seed: int
) -> None:
    """A call does not wait beside memory that idle environments hold, and none is evicted where it would not help."""
    cluster = _cluster_after(steps, lambda table: table.sample_reclaimable(requests[0], seed))
    for request in requests:
        possible = set()
        for node in cluster.table:
            reclaimable = node.reclaimable()
            if (
                _reason(node, request) not in ("draining", "runtime", "labels")
                and node.node_id not in request.excluded
                and reclaimable.memory_mib >= request.memory_mib
                and reclaimable.cpu_millis >= cpu_millis(request.memory_mib)
                and reclaimable.disk_mib >= request.shape.disk_mib
            ):
                possible.add(node.node_id)
        sample = {node.node_id for node in cluster.table.sample_reclaimable(request, seed)}
        assert sample <= possible
        assert bool(sample) == bool(possible)


@pytest.mark.parametrize("name", policies.PLACEMENT)
def test_excluded_nodes_do_not_hide_the_others(name: str) -> None:
    """However the sample falls, a node that may be chosen is found."""
    table = _table(12, policy=policies.PLACEMENT[name]())
    request = _request()._replace(excluded={"n0", "n1", "n10", "n11"})
    for seed in range(200):
        placed = place(table, request, seed)
        assert isinstance(placed, Placement)
        assert placed.node_id not in request.excluded


@given(st.integers(-2000, 200_000))
def test_memory_by_cpu_is_the_largest_that_fits(cpu: int) -> None:
    """Memory and CPU come down to one number without a rounding error in between."""
    memory_mib = memory_by_cpu(cpu)
    assert cpu_millis(memory_mib) <= cpu < cpu_millis(memory_mib + 1)


def _table(
    nodes: int, memory_mib: int = 10_000, cpu: int = 100_000, policy: PlacementPolicy = policies.PACK_THEN_SPREAD
) -> NodeTable:
    table = NodeTable(policy=policy)
    for number in range(nodes):
        table.join(f"n{number}", make_capacity(memory_mib, cpu), {}, ["python3.11"])
    return table


def _request(memory_mib: int = 128, name: str = "f") -> PlacementRequest:
    spec = make_spec(name, memory_mib)
    return PlacementRequest(Shape(spec.runtime, 512), memory_mib, spec.code_sha256)


def test_two_choices_keep_the_load_even() -> None:
    """With one random choice the fullest of 100 nodes would get three times the mean; with two it stays near it."""
    table = _table(100, policy=policies.PLACEMENT["two-choices"]())
    for seed in range(1000):
        placed = place(table, _request(name=f"f{seed}"), seed)
        assert isinstance(placed, Placement)
        table.reserve(table.node(placed.node_id), make_spec())
    counts = [node.reserved.memory_mib // 128 for node in table]
    assert max(counts) <= 14
    assert min(counts) >= 5


def _fill(table: NodeTable, number: int, memory_mib: int = 128) -> list[int]:
    """Place environments of different functions, one after the other; give how many each node has got."""
    for seed in range(number):
        placed = place(table, _request(memory_mib, name=f"f{seed}"), seed)
        assert isinstance(placed, Placement)
        table.reserve(table.node(placed.node_id), make_spec(memory_mib=memory_mib))
    return sorted((node.reserved.memory_mib // memory_mib for node in table), reverse=True)


@pytest.mark.parametrize(
    ("name", "counts"), [("tight", [20, 4, 0, 0]), ("pack-then-spread", [20, 4, 0, 0]), ("least-loaded", [6, 6, 6, 6])]
)
def test_a_few_environments_are_packed_or_spread(name: str, counts: list[int]) -> None:
    """Twenty fill a node of these."""
    assert _fill(_table(4, memory_mib=2560, policy=policies.PLACEMENT[name]()), 24) == counts


@pytest.mark.parametrize("name", policies.PLACEMENT)
@pytest.mark.parametrize("is_empty", [True, False])
def test_a_node_whose_last_start_failed_gets_nothing_while_others_have_room(name: str, is_empty: bool) -> None:
    """Be it the emptiest of all, as one is that can start nothing, or the fullest."""
    table = _table(4, policy=policies.PLACEMENT[name]())
    sick, *others = table
    sick.failures = 1
    for node in others if is_empty else [sick]:
        table.reserve(node, make_spec("other"))
    assert sick.node_id not in {place(table, _request(), seed)[0] for seed in range(50)}


def test_tight_goes_by_room_and_not_by_load() -> None:
    """A node with few cores is loaded soon, and may have much room for all that."""
    table = NodeTable(cpu_overcommit=16.0, policy=policies.PLACEMENT["tight"]())
    for node_id, memory_mib, cpu in (("large", 50_000, 2000), ("small", 4096, 16_000)):
        table.join(node_id, make_capacity(memory_mib, cpu), {}, ["python3.11"])
        table.reserve(table.node(node_id), make_spec("other", 1769))
    assert {place(table, _request(), seed)[0] for seed in range(20)} == {"small"}


def test_packing_ends_where_environments_would_have_to_share_cores() -> None:
    """The default goes on with the least loaded node then, where tight packing does not mind."""
    counts = {}
    for name in ("pack-then-spread", "tight"):
        table = NodeTable(cpu_overcommit=16.0, policy=policies.PLACEMENT[name]())
        for number in range(4):
            table.join(f"n{number}", make_capacity(100_000, 2000), {}, ["python3.11"])
        counts[name] = _fill(table, 16, 1769)
    assert counts == {"pack-then-spread": [4, 4, 4, 4], "tight": [16, 0, 0, 0]}


def test_a_burst_of_starts_is_spread_however_small_they_are() -> None:
    """An init takes a core: the second node is better than a place in line for the first one's."""
    table = _table(4, cpu=2000)
    for seed in range(8):
        placed = place(table, _request(name=f"f{seed}"), seed)
        assert isinstance(placed, Placement)
        node = table.node(placed.node_id)
        table.reserve(node, make_spec())
        node.starting += 1
    assert sorted(node.starting for node in table) == [2, 2, 2, 2]


def test_code_first_does_not_mind_load() -> None:
    """Fetching a large package takes longer than sharing a core."""
    table = NodeTable(cpu_overcommit=16.0, policy=policies.PLACEMENT["code-first"]())
    for number in range(4):
        table.join(f"n{number}", make_capacity(100_000, 1000), {}, ["python3.11"])
    table.remember_package(table.node("n3"), "f-1")
    for seed in range(10):
        assert place(table, _request(1769), seed) == Placement("n3", has_code=True)
        table.reserve(table.node("n3"), make_spec("f", 1769))


def test_a_node_with_the_code_is_preferred() -> None:
    """Fetching a package is the dearest part of a start: one node of 500 that has it is found."""
    table = _table(500)
    table.remember_package(table.node("n77"), "f-1")
    assert {place(table, _request(), seed) for seed in range(50)} == {Placement("n77", has_code=True)}


def test_a_busy_node_with_the_code_is_not_preferred() -> None:
    """Where all cores are spoken for, load counts before code: a burst of one function spreads over the nodes."""
    table = NodeTable(cpu_overcommit=16.0)
    for number in range(2):
        table.join(f"n{number}", make_capacity(100_000, 1000), {}, ["python3.11"])
    for seed in range(20):
        placed = place(table, _request(1769), seed)
        assert isinstance(placed, Placement)
        node = table.node(placed.node_id)
        table.reserve(node, make_spec("f", 1769))
        table.remember_package(node, "f-1")
    assert sorted(node.reserved.memory_mib // 1769 for node in table) == [10, 10]


def test_a_node_whose_starts_fail_comes_last() -> None:
    """A sick node is always empty; it must not draw every start to itself."""
    table = _table(2)
    table.node("n0").failures = 1
    table.remember_package(table.node("n0"), "f-1")
    assert {place(table, _request(), seed) for seed in range(50)} == {Placement("n1", has_code=False)}


def test_more_shapes_than_indexes_are_still_answered() -> None:
    """An index that was dropped for another shape is built again, with what has changed since."""
    table = _table(3, memory_mib=256)
    requests = [PlacementRequest(Shape("python3.11", 512 + number), 256, "c") for number in range(200)]
    for request in requests:
        assert isinstance(place(table, request, 1), Placement)
    for node in table:
        table.reserve(node, make_spec())
    for request in requests:
        assert place(table, request, 1) == Unplaceable({"memory": 3}, 3)
    assert all(len(node.pools) <= 64 for node in table)


def test_packages_of_a_node_that_left_are_forgotten() -> None:
    """Its slot goes to another node, which does not have them."""
    table = _table(1)
    for number in range(2000):
        table.remember_package(table.node("n0"), f"p{number}")
    assert len(table._holders) == 1024
    table.leave("n0")
    assert table._holders == {}
    table.join("n1", make_capacity(), {}, ["python3.11"])
    assert place(table, PlacementRequest(Shape("python3.11", 512), 128, "p1999"), 1) == Placement("n1", has_code=False)
