"""The figures that have bounds, each beside its floor."""

from __future__ import annotations

import statistics

from benchmarks.invocations import Memory
from benchmarks.rows import Row
from benchmarks.snap_start import SnapStart

MIN_ENVIRONMENTS = 20
"""Least number alive when the memory of one is taken: what they share with their zygote is divided among them."""


IDLE_ENVIRONMENTS = 200
"""As many as the row of idle environments is about."""


def timed_rows(samples: dict[str, list[float]], no_bwrap: str) -> list[Row]:
    """Make the rows of the rounds; `no_bwrap` says why the floor of a cold start is missing."""
    get = {name: statistics.median(values) for name, values in samples.items() if values}.get
    echo_ms, bwrap_ms = get("echo"), get("bwrap")
    rate, cpu_s = get("invocations rate"), get("invocations cpu")
    return [
        Row("warm sequential p50, 1,769 MB", get("warm"), "ms", "echo p50", echo_ms, must=2.0, aim=1.4),
        Row("warm sequential p50, 128 MB", get("warm 128"), "ms", "echo p50", echo_ms),
        Row("warm p99 beside two clients of 6 MB", get("p99 beside"), "ms", "p99 alone", get("p99"), must=5.0, aim=2.0),
        Row(
            "cold start p50, 1,769 MB, 200 ms apart",
            get("cold"),
            "ms",
            "bwrap p50",
            bwrap_ms,
            must=0.35,
            aim=0.15,
            missing=no_bwrap,
        ),
        Row("cold start p50, 128 MB, 200 ms apart", get("cold 128"), "ms", "bwrap p50", bwrap_ms, missing=no_bwrap),
        # First calls of 50 functions at once empty the pool; the 51st comes when they have been answered and before the
        # pool has anything again.
        Row(
            "cold start p50, the 51st of 50 at once",
            get("exhausted"),
            "ms",
            "bwrap p50",
            bwrap_ms,
            must=1.2,
            aim=0.6,
            missing=no_bwrap or "the pool was never empty",
        ),
        Row(
            "the last of 50 cold starts at once",
            get("burst"),
            "ms",
            "last of 50 bwrap at once",
            get("bwrap burst"),
            missing=no_bwrap,
        ),
        Row(
            "warm call of a sandbox, on its channel",
            get("sandbox"),
            "ms",
            "without seccomp, cgroup, netns",
            get("bare sandbox"),
            must=1.10,
            aim=1.02,
        ),
        Row(
            "throughput, 64 in flight",
            rate,
            "/s",
            "echo, 50 in flight",
            get("echo rate"),
            must=1.5,
            aim=3.0,
            larger_is_better=True,
        ),
        Row(
            "sandboxes made and ended, sustained",
            get("sandbox rate"),
            "/s",
            "bwrap true, two loops",
            get("bwrap rate"),
            must=0.8,
            aim=1.5,
            larger_is_better=True,
            missing=no_bwrap,
        ),
        Row("CPU per 1,000 invocations, all processes", cpu_s, "s", "echo's client and server", get("echo cpu")),
    ]


def snap_start_row(found: SnapStart, missing: str = "") -> Row:
    """Make the row of first calls with SnapStart; `missing` says why there are none."""
    return Row(
        "first call p50 with SnapStart, numpy and pandas",
        statistics.median(found.first_calls) if found.first_calls else None,
        "ms",
        "the imports in a fresh python3",
        statistics.median(found.imports) if found.imports else None,
        must=0.05,
        aim=0.02,
        missing=missing,
    )


def idle_row(memory: Memory, python_mib: float) -> Row:
    """Make the row of many idle environments; the floor is taken while they are alive, and shares its pages as well."""
    few = f"only {memory.environments} are alive" if memory.environments < IDLE_ENVIRONMENTS else ""
    return Row(
        f"memory of one idle environment of {memory.environments} (PSS)",
        None if few else memory.environment,
        "MiB",
        "idle python3 beside them",
        python_mib,
        must=0.5,
        aim=0.2,
        missing=few,
    )


def merged_rows(
    memory: Memory | None, python_mib: float | None, merging_mib: float | None, missing: str = ""
) -> list[Row]:
    """Make the rows of idle environments whose equal pages the kernel merges; `missing` says why there are none.

    What the kernel keeps for it is no part of a process's memory, and told apart.
    """
    if memory is not None and memory.environments < IDLE_ENVIRONMENTS:
        memory, merging_mib, missing = None, None, f"only {memory.environments} are alive"
    return [
        Row(
            f"the same with merged memory, of {IDLE_ENVIRONMENTS} (PSS)",
            memory and memory.environment,
            "MiB",
            "idle python3 beside them",
            python_mib,
            must=0.5,
            aim=0.2,
            missing=missing,
        ),
        Row("what the kernel keeps to merge it", merging_mib, "MiB", missing=missing),
    ]


def memory_rows(memory: Memory) -> list[Row]:
    """Make the rows of a cluster at rest."""
    none = "no such process was found"
    few = f"only {memory.environments} are alive" if memory.environments < MIN_ENVIRONMENTS else ""
    return [
        Row("memory of the scheduler, idle (PSS)", memory.scheduler, "MiB", must=120, aim=80, missing=none),
        Row("memory of the agent, idle (PSS)", memory.agent, "MiB", must=120, aim=80, missing=none),
        Row("memory of the zygote (PSS)", memory.zygote, "MiB", missing=none),
        Row("memory of the zygotes of all interpreters (PSS)", memory.all_zygotes, "MiB", missing=none),
        Row(
            f"memory of one warm environment of {memory.environments} (PSS)",
            None if few else memory.environment,
            "MiB",
            must=4,
            aim=2,
            missing=few,
        ),
    ]
