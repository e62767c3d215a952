"""The lines that the platform itself writes to a function's log, in AWS Lambda's text format.

Every function gives one log event without its final newline.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lambent.v1 import frame_pb2

# AWS counts the builds of a runtime as v1, v2, ...; ours has one.
_RUNTIME_BUILD: Final = "v1"


def init_start(runtime: str, region: str) -> str:
    """The line that opens an environment's log. `runtime` is for example "python3.11"."""
    return f"INIT_START {_runtime_version(runtime, region)}"


def restore_start(runtime: str, region: str) -> str:
    """The line before the hooks that SnapStart runs before the first invocation."""
    return f"RESTORE_START {_runtime_version(runtime, region)}"


def restore_report(duration_us: int, *, status: str = "") -> str:
    """The line after them. `status` is what stands at the end when they failed, or empty."""
    return f"RESTORE_REPORT Restore Duration: {duration_us / 1000:.2f} ms" + (f"\t{status}" if status else "")


def _runtime_version(runtime: str, region: str) -> str:
    language = runtime.rstrip("0123456789.")
    release = runtime[len(language) :]
    digest = hashlib.sha256(f"{runtime}.{_RUNTIME_BUILD}".encode()).hexdigest()
    return (
        f"Runtime Version: {language}:{release}.{_RUNTIME_BUILD}"
        f"\tRuntime Version ARN: arn:aws:lambda:{region}::runtime:{digest}"
    )


def init_report(duration_us: int, phase: str, *, error_type: str) -> str:
    """The line of an init that failed. `phase` is "init" or "invoke"; an empty `error_type` means a timeout."""
    status = f"Status: error\tError Type: {error_type}" if error_type else "Status: timeout"
    return f"INIT_REPORT Init Duration: {duration_us / 1000:.2f} ms\tPhase: {phase}\t{status}"


def start(request_id: str, version: str) -> str:
    """The line before everything that an invocation prints."""
    return f"START RequestId: {request_id} Version: {version}"


def end(request_id: str) -> str:
    """The line after everything that an invocation prints."""
    return f"END RequestId: {request_id}"


def report(
    request_id: str,
    *,
    duration_us: int,
    billed_duration_ms: int,
    memory_mib: int,
    max_memory_used_mib: int,
    init_duration_us: int,
    restore_duration_us: int,
    status: str,
) -> str:
    """The line with an invocation's figures. `status` is what stands at the end of a failed one, or empty."""
    line = (
        f"REPORT RequestId: {request_id}\tDuration: {duration_us / 1000:.2f} ms\t"
        f"Billed Duration: {billed_duration_ms} ms\tMemory Size: {memory_mib} MB\t"
        f"Max Memory Used: {max_memory_used_mib} MB\t"
    )
    if init_duration_us:
        line += f"Init Duration: {init_duration_us / 1000:.2f} ms\t"
    if restore_duration_us:
        billed_ms = -(-restore_duration_us // 1000)
        line += f"Restore Duration: {restore_duration_us / 1000:.2f} ms\tBilled Restore Duration: {billed_ms} ms\t"
    return line + status


def cold_start(request_id: str, phases: frame_pb2.ColdStartPhases) -> str:
    """The line of a cold start, after REPORT as XRAY's is; AWS has none, ours is made like REPORT."""
    return (
        f"COLD_START RequestId: {request_id}\tQueue: {phases.queue_us / 1000:.2f} ms\t"
        f"Placement: {phases.placement_us / 1000:.2f} ms\tFetch Code: {phases.fetch_code_us / 1000:.2f} ms\t"
        f"Sandbox: {phases.sandbox_us / 1000:.2f} ms\tRuntime: {phases.runtime_us / 1000:.2f} ms\t"
        f"Init: {phases.init_us / 1000:.2f} ms\t"
    )


def timed_out(wall_time: str, request_id: str, timeout_s: float) -> str:
    """The line of a timeout; a blank line follows it."""
    return f"{wall_time} {request_id} Task timed out after {timeout_s:.2f} seconds\n"


def cancelled(wall_time: str, request_id: str, elapsed_s: float) -> str:
    """The line of an invocation that its caller cancelled; AWS has none, ours follows the timeout's."""
    return f"{wall_time} {request_id} Task cancelled by the caller after {elapsed_s:.2f} seconds\n"


def runtime_error(request_id: str, message: str, error_type: str) -> str:
    """The line of a runtime that went away while it ran an invocation; one event of two lines."""
    return f"RequestId: {request_id} Error: {message}\n{error_type}"
