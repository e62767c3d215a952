"""What the scheduler's decisions cost by themselves, and what a simulated hour costs: on one core."""

from __future__ import annotations

import gc
import itertools
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from benchmarks.rows import Row
from lambent_common.traces import TraceError, read_trace
from lambent_scheduler.core import (
    NodeTable,
    Placement,
    PlacementRequest,
    Shape,
    Unplaceable,
    VersionSpec,
    place,
)
from lambent_simulator import Scenario, simulate

AZURE_8H = Path(__file__).resolve().parents[2] / "shared/traces/azure2019-500-8h"
"""Where the sample lies that the row is about; see its README for what it is."""

CORE_STEPS = 3
"""What `core_rows` tells of."""

_MEMORY_MIB = (128, 128, 256, 512, 1024, 1769, 3008)
"""Sizes of functions: AWS's least, its common ones, a whole vCPU and more."""

_NODE_MEMORY_MIB = (8_192, 16_384, 65_536)
_FUNCTIONS = 500
_RUNTIME = "python3.11"
_SECONDS = 0.5
_TURNS = 5


def core_rows(trace: Path, begin: Callable[[str], None]) -> list[Row]:
    """Take the rows; `begin` is told what comes next."""
    begin("placements")
    placements = _rates(_Placements, (1_000, 100, 10_000))
    begin("refusals")
    refusals = _rates(_Refusals, (100, 10_000))
    begin("simulation")
    return [
        Row(
            "placements, 1,000 nodes, mixed sizes",
            placements[1_000],
            "/s",
            must=30_000,
            aim=100_000,
            larger_is_better=True,
        ),
        Row(
            "placements, 10,000 nodes",
            placements[10_000],
            "/s",
            "100 nodes",
            placements[100],
            must=0.5,
            aim=0.9,
            larger_is_better=True,
        ),
        Row(
            "refusals with reasons, 10,000 full nodes",
            refusals[10_000],
            "/s",
            must=5_000,
            aim=50_000,
            larger_is_better=True,
        ),
        Row(
            "the same, relative to 100 nodes",
            refusals[10_000],
            "/s",
            "100 nodes",
            refusals[100],
            must=0.5,
            aim=0.9,
            larger_is_better=True,
        ),
        simulation_row(trace),
    ]


def simulation_row(trace: Path) -> Row:
    """Simulate a whole trace on 100 nodes, and say how many times as fast as it happened: by the clock on the wall."""
    figure = "simulated to real time, Azure 8 h, 100 nodes"
    try:
        load = read_trace(trace)
    except TraceError as error:
        return Row(figure, None, "x", must=150, aim=500, larger_is_better=True, missing=f"{error}; give --trace")
    report = simulate(load, Scenario(nodes=100)).report
    times = report.simulated_s / report.wall_s
    return Row(figure, times, "x", must=150, aim=500, larger_is_better=True)


class _Placements:
    """A table two thirds full, in which the oldest environment ends whenever a new one is placed."""

    def __init__(self, nodes: int) -> None:
        source = random.Random(nodes)
        self._table = _table(nodes, source)
        self._specs = [_spec(f"f{number}", source.choice(_MEMORY_MIB)) for number in range(_FUNCTIONS)]
        self._requests = {spec: _request(spec) for spec in self._specs}
        self._alive: deque[tuple[str, VersionSpec]] = deque()
        self._turn = itertools.count()
        free_mib = sum(node.capacity.memory_mib for node in self._table) * 2 // 3
        while free_mib > 0:
            self._place()
            free_mib -= self._alive[-1][1].memory_mib

    def run(self, times: int) -> None:
        """Place so many."""
        for _ in range(times):
            self._place()
            node_id, spec = self._alive.popleft()
            self._table.release(self._table.node(node_id), spec)

    def _place(self) -> None:
        turn = next(self._turn)
        spec = self._specs[turn * 7919 % _FUNCTIONS]
        placed = place(self._table, self._requests[spec], turn)
        assert isinstance(placed, Placement)
        node = self._table.node(placed.node_id)
        self._table.reserve(node, spec)
        self._table.remember_package(node, spec.code_sha256)
        self._alive.append((placed.node_id, spec))


class _Refusals:
    """A table in which nothing fits, where some node changes before each question: an answer cannot be kept."""

    def __init__(self, nodes: int) -> None:
        self._table = _table(nodes, random.Random(nodes))
        self._filler = _spec("filler", 128)
        self._nodes = list(self._table)
        for node in self._nodes:
            while node.free().memory_mib >= self._filler.memory_mib:
                self._table.reserve(node, self._filler)
        self._requests = [_request(_spec(f"f{memory_mib}", memory_mib)) for memory_mib in _MEMORY_MIB]
        self._turn = itertools.count()

    def run(self, times: int) -> None:
        """Be refused so often."""
        for _ in range(times):
            turn = next(self._turn)
            node = self._nodes[turn * 7919 % len(self._nodes)]
            self._table.release(node, self._filler)
            self._table.reserve(node, self._filler)
            refused = place(self._table, self._requests[turn % len(self._requests)], turn)
            assert isinstance(refused, Unplaceable)
            assert refused.rejections["memory"] == len(self._nodes)


def _rates(make: Callable[[int], _Placements | _Refusals], sizes: tuple[int, ...]) -> dict[int, float]:
    """Measure a table of each size in turns, and give the median rate of each, by second of CPU."""
    tables = {size: make(size) for size in sizes}
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    gc.collect()
    for _ in range(_TURNS):
        for size, table in tables.items():
            done, start = 0, time.process_time()
            while (spent := time.process_time() - start) < _SECONDS:
                table.run(500)
                done += 500
            rates[size].append(done / spent)
    return {size: statistics.median(taken) for size, taken in rates.items()}


def _table(nodes: int, source: random.Random) -> NodeTable:
    table = NodeTable(cpu_overcommit=16.0, disk_overcommit=10.0)
    for number in range(nodes):
        memory_mib = source.choice(_NODE_MEMORY_MIB)
        capacity = {"memory_mib": memory_mib, "cpu_millis": 1000 * memory_mib // 4096, "disk_mib": 200_000}
        table.join(f"node-{number}", capacity, {}, [_RUNTIME])
    return table


def _request(spec: VersionSpec) -> PlacementRequest:
    return PlacementRequest(Shape(_RUNTIME, spec.ephemeral_storage_mib), spec.memory_mib, spec.code_sha256)


def _spec(name: str, memory_mib: int) -> VersionSpec:
    return VersionSpec(
        account="default",
        function_name=name,
        version="$LATEST",
        revision_id="1",
        runtime=_RUNTIME,
        handler="app.handler",
        code_sha256=name,
        code_size_bytes=0,
        environment_variables={},
        memory_mib=memory_mib,
        ephemeral_storage_mib=512,
        timeout_us=3_000_000,
        function_arn="",
        partition=0,
    )
