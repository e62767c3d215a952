"""What a node reports to the scheduler: of a start, and of an invocation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent.errors import service_error
from lambent.rpc_errors import to_frame
from lambent.v1 import frame_pb2, node_pb2

if TYPE_CHECKING:
    from lambent_node_agent.environment.model import Figures, Outcome, ReportReady


def ready_event(environment_id: str, made_us: int, fetch_code_us: int, ready: ReportReady) -> node_pb2.EnvironmentReady:
    """Say that an environment can serve, and what making it took.

    Args:
        environment_id: The environment.
        made_us: Time from the order to a sandbox with code and limits, in microseconds.
        fetch_code_us: As much of it as the code took to come.
        ready: What came after that.
    """
    sandbox_us = max(0, made_us - fetch_code_us)
    return node_pb2.EnvironmentReady(
        environment_id=environment_id,
        start_us=fetch_code_us + sandbox_us + ready.runtime_us + ready.init_us,
        fetch_code_us=fetch_code_us,
        sandbox_us=sandbox_us,
        runtime_us=ready.runtime_us,
        init_us=ready.init_us,
        init_error=ready.init_error,
    )


def invocation_report(
    order: node_pb2.StartEnvironment, opening: node_pb2.InvokeOpen, figures: Figures, node_id: str, log_tail: bytes
) -> frame_pb2.InvocationReport:
    """Give the figures of an invocation, with the phases of its cold start where the scheduler has sent them."""
    report = frame_pb2.InvocationReport(
        request_id=opening.request_id,
        executed_version=order.version,
        duration_us=figures.duration_us,
        billed_duration_ms=figures.billed_duration_ms,
        init_duration_us=figures.init_duration_us,
        queue_us=opening.queue_us,
        memory_size_mib=order.memory_mib,
        max_memory_used_mib=figures.max_memory_used_mib,
        cold_start=figures.cold_start,
        node_id=node_id,
        environment_id=order.environment_id,
        log_tail=log_tail,
    )
    if figures.cold_start and opening.HasField("cold_start_phases"):
        report.cold_start_phases.CopyFrom(opening.cold_start_phases)
    if figures.restore_duration_us:
        report.restore_duration_us = figures.restore_duration_us
    return report


def end_of(report: frame_pb2.InvocationReport, outcome: Outcome) -> frame_pb2.End:
    """Make the END of an answer, without what is left of the body."""
    end = frame_pb2.End(report=report)
    if outcome.service_reason:
        error = service_error(outcome.service_reason, outcome.service_message, dispatched=outcome.dispatched)
        end.service_error.CopyFrom(to_frame(error))
    elif outcome.failure_json is not None:
        end.function_error = "Unhandled"
        end.error_payload = outcome.failure_json
    return end
