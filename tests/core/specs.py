"""Versions, calls and nodes for the tests of the scheduler's core."""

from __future__ import annotations

import math

from lambent_scheduler.core import Call, VersionSpec

RUNTIME = "python3.11"


def make_spec(
    name: str = "f",
    memory_mib: int = 128,
    *,
    revision: str = "1",
    runtime: str = RUNTIME,
    disk_mib: int = 512,
    snap_start: bool = False,
) -> VersionSpec:
    """Give a version; one code package per name and revision."""
    return VersionSpec(
        account="default",
        function_name=name,
        version="$LATEST",
        revision_id=revision,
        runtime=runtime,
        handler="app.handler",
        code_sha256=f"{name}-{revision}",
        code_size_bytes=1000,
        environment_variables={},
        memory_mib=memory_mib,
        ephemeral_storage_mib=disk_mib,
        timeout_us=3_000_000,
        function_arn=f"arn:aws:lambda:local:000000000000:function:{name}",
        partition=0,
        snap_start=snap_start,
    )


def make_call(
    spec: VersionSpec, now: float = 0.0, *, timeout_s: float = math.inf, payload_bytes: int = 100, name: str = ""
) -> Call:
    """Give a call that arrives now."""
    return Call(name or "r", spec, payload_bytes=payload_bytes, arrived=now, deadline=now + timeout_s)


def make_capacity(memory_mib: int = 1024, cpu_millis: int = 1000, disk_mib: int = 100_000) -> dict[str, int]:
    """Give what a node offers."""
    return {"memory_mib": memory_mib, "cpu_millis": cpu_millis, "disk_mib": disk_mib}
