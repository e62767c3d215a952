"""The life of an execution environment as a pure function: no clock, no I/O.

Whatever happens to an environment arrives here as an event, and whatever is to be done leaves as actions, in order.
`model.MOVES` shows which phase may follow which; `_move` is the only place that changes the phase.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from lambent.errors import CancelledError, DeadlineExceededError, SnapStartTimeoutError, UnavailableError
from lambent_node_agent.environment import failures
from lambent_node_agent.environment.model import (
    KILL_TIMEOUT_S,
    MAX_FAILED_INITS,
    MOVES,
    REPLACE_TIMEOUT_S,
    RESTORE_TIMEOUT_S,
    Action,
    Answer,
    Cancelled,
    Close,
    Environment,
    Event,
    Figures,
    Finished,
    Freeze,
    KillRuntime,
    LimitCpu,
    Open,
    Outcome,
    Phase,
    Refuse,
    ReplaceSandbox,
    ReportReady,
    ReportSpent,
    Rest,
    RuntimeFailed,
    RuntimeFailure,
    RuntimeKilled,
    RuntimeReady,
    RuntimeRestored,
    RuntimeState,
    SandboxLost,
    SandboxReady,
    SendInvoke,
    SendRestore,
    StartRuntime,
    Stop,
    Thaw,
    Tick,
    WriteLog,
)
from lambent_node_agent.logs import platform_lines

if TYPE_CHECKING:
    from collections.abc import Callable

Step = tuple[Environment, list[Action]]

_TIMED_OUT_INIT: Final = RuntimeFailure("", "")


def step(env: Environment, event: Event, now: float) -> Step:
    """Apply one event; return the new state and what is to be done, in order.

    Args:
        env: State before.
        event: What happened. One that cannot matter any more changes nothing.
        now: Monotonic time of the event, in seconds.
    """
    if env.phase is Phase.SHUTDOWN:
        return env, [Refuse("the environment has ended")] if type(event) is Open else []
    return _STEPS[type(event)](env, event, now)


def _move(env: Environment, phase: Phase, **changes: object) -> Environment:
    assert phase is env.phase or phase in MOVES[env.phase], f"{env.phase} -> {phase}"
    moved: Environment = env._replace(phase=phase, **changes)  # type: ignore[arg-type] # keywords are fields, see callers
    return moved


# The runtime's start


def _sandbox_ready(env: Environment, _: SandboxReady, now: float) -> Step:
    if env.phase is not Phase.STARTING:
        return env, []
    deadline = now + env.facts.init_timeout_s
    return _start_runtime(_move(env, Phase.INIT), deadline, now, [WriteLog(env.facts.init_start_line)])


def _start_runtime(env: Environment, deadline: float, now: float, before: list[Action]) -> Step:
    restored = not env.facts.snap_start
    env = env._replace(runtime=RuntimeState.INITIALISING, init_started=now, deadline=deadline, restored=restored)
    return env, [*before, StartRuntime()]


def _runtime_ready(env: Environment, event: RuntimeReady, now: float) -> Step:
    if env.runtime is not RuntimeState.INITIALISING:
        return _runtime_failed(env, RuntimeFailed(failures.violation_failure("a second READY"), 0), now)
    env = env._replace(proven=True, failed_inits=0)
    if env.phase is Phase.INVOKE:
        return _dispatch(env, [], now)
    if env.phase is Phase.RESET:
        return _move(env, Phase.IDLE, runtime=RuntimeState.READY, deadline=math.inf, idle_since=now), []
    init_duration_us = max(1, _microseconds(now - env.init_started))
    env = _move(
        env,
        Phase.IDLE,
        runtime=RuntimeState.READY,
        deadline=math.inf,
        init_duration_us=init_duration_us,
        announced=True,
        idle_since=now,
    )
    load_us = min(event.load_us, init_duration_us)
    return env, [ReportReady(init_duration_us - load_us, load_us)]


# Invocations


def _open(env: Environment, event: Open, now: float) -> Step:
    if env.invocation is not None or env.phase in (Phase.STARTING, Phase.INIT):
        return env, [Refuse(f"the environment is in phase {env.phase.value}")]
    invocation = event.invocation
    deadline = now + invocation.timeout_s
    before: list[Action] = [Thaw()] if env.phase is Phase.FROZEN else []
    env = _move(
        env,
        Phase.INVOKE,
        invocation=invocation,
        started=now,
        deadline=deadline,
        cold=not env.invocations,
        invocations=env.invocations + 1,
        start_logged=False,
        restore_duration_us=0,
    )
    if env.runtime is RuntimeState.DYING:
        return env, before  # a runtime follows when it is gone
    if not env.cpu_limited:
        env = _limit_cpu(env, before)
    if env.runtime is RuntimeState.READY:
        return _dispatch(env, before, now)
    if env.runtime is RuntimeState.ABSENT:
        return _start_runtime(env, deadline, now, before)
    return env, before  # a runtime is on its way


def _limit_cpu(env: Environment, actions: list[Action]) -> Environment:
    actions.append(LimitCpu())
    return env._replace(cpu_limited=True)


def _dispatch(env: Environment, actions: list[Action], now: float) -> Step:
    assert env.invocation is not None
    if not env.restored:
        return _restore(env, actions, now)
    actions.append(WriteLog(platform_lines.start(env.invocation.request_id, env.facts.version)))
    actions.append(SendInvoke())
    return env._replace(runtime=RuntimeState.READY, start_logged=True), actions


def _restore(env: Environment, actions: list[Action], now: float) -> Step:
    actions += (WriteLog(env.facts.restore_start_line), SendRestore())
    deadline = now + RESTORE_TIMEOUT_S
    if _has_callers_limit(env):
        deadline = min(deadline, env.deadline)
    return env._replace(runtime=RuntimeState.RESTORING, restore_started=now, deadline=deadline), actions


def _runtime_restored(env: Environment, _: RuntimeRestored, now: float) -> Step:
    if env.runtime is not RuntimeState.RESTORING:
        failure = failures.violation_failure("RESTORED that nobody asked for")
        return _runtime_failed(env, RuntimeFailed(failure, 0), now)
    duration_us = max(1, _microseconds(now - env.restore_started))
    env = env._replace(restored=True, restore_duration_us=duration_us)
    # The handler has all of the function's timeout, and what is left of its caller's.
    deadline = (env.started if _has_callers_limit(env) else now) + _timeout_s(env)
    env = env._replace(started=now, deadline=deadline)
    return _dispatch(env, [WriteLog(platform_lines.restore_report(duration_us))], now)


def _finished(env: Environment, event: Finished, now: float) -> Step:
    if env.phase is not Phase.INVOKE or env.runtime is not RuntimeState.READY:
        failure = failures.violation_failure("an answer that nobody asked for")
        return _runtime_failed(env, RuntimeFailed(failure, event.max_memory_used_mib), now)
    actions = _conclude(env, event.outcome, now - env.started, event.max_memory_used_mib)
    env = _move(env, Phase.IDLE, invocation=None, deadline=math.inf, idle_since=now)
    return _shut_down(env, env.stop_reason, "", actions) if env.stop_reason else (env, actions)


def _cancelled(env: Environment, event: Cancelled, now: float) -> Step:
    if env.phase is not Phase.INVOKE:
        return env, []
    assert env.invocation is not None
    line = platform_lines.cancelled(event.wall_time, env.invocation.request_id, now - env.started)
    outcome = Outcome(
        service_reason=CancelledError.aws_name,
        service_message=f"The invocation {env.invocation.request_id} was cancelled by its caller.",
        dispatched=env.start_logged,
        error_type="Sandbox.Cancelled",
        error_line=line,
    )
    return _reset(env, now, outcome=outcome, restart=True)


def _conclude(env: Environment, outcome: Outcome, duration_s: float, max_memory_used_mib: int) -> list[Action]:
    """Write an invocation's last lines and answer it."""
    assert env.invocation is not None
    request_id = env.invocation.request_id
    figures = _figures(env, outcome, duration_s, max_memory_used_mib)
    actions: list[Action] = []
    if not env.start_logged:
        actions.append(WriteLog(platform_lines.start(request_id, env.facts.version)))
    if outcome.error_line:
        actions.append(WriteLog(outcome.error_line))
    status = ""
    if outcome.timed_out:
        status = "Status: timeout"
    elif outcome.error_type:
        status = f"Status: error\tError Type: {outcome.error_type}"
    report = platform_lines.report(
        request_id,
        duration_us=figures.duration_us,
        billed_duration_ms=figures.billed_duration_ms,
        memory_mib=env.facts.memory_mib,
        max_memory_used_mib=max_memory_used_mib,
        init_duration_us=figures.init_duration_us,
        restore_duration_us=figures.restore_duration_us,
        status=status,
    )
    actions += (WriteLog(platform_lines.end(request_id)), WriteLog(report))
    # With SnapStart a prepared environment is quicker than the init that a lost runtime would need anew, which may
    # take longer than an invocation.
    if env.is_spent(env.started + duration_s) or (env.facts.snap_start and env.runtime is RuntimeState.ABSENT):
        # Before the answer, upon which the scheduler may send the next invocation. It alone knows what it has sent, so
        # it is the one who stops the environment.
        actions.append(ReportSpent())
    actions.append(Answer(outcome, figures))
    return actions


def _figures(env: Environment, outcome: Outcome, duration_s: float, max_memory_used_mib: int) -> Figures:
    if outcome.timed_out:
        assert env.invocation is not None
        duration_s = min(duration_s, env.invocation.timeout_s)  # AWS reports the limit, not when it noticed
    duration_us = _microseconds(duration_s)
    # With SnapStart the init is nobody's, and the restore is the invocation's before which it stands.
    init_duration_us = env.init_duration_us if env.cold and not env.facts.snap_start else 0
    restore_us = env.restore_duration_us
    billed_duration_ms = max(1, -(-(duration_us + init_duration_us + restore_us) // 1000))
    return Figures(duration_us, billed_duration_ms, init_duration_us, max_memory_used_mib, env.cold, restore_us)


# The runtime's end


def _runtime_failed(env: Environment, event: RuntimeFailed, now: float) -> Step:
    """The runtime reported an init error, exited or broke the protocol: nothing of it may survive."""
    if env.runtime in (RuntimeState.ABSENT, RuntimeState.DYING):
        return env, []
    initialising = env.runtime is RuntimeState.INITIALISING
    failed_init = event.failure if initialising else None
    # What the function wrote to /tmp is memory of the sandbox: with it the next runtime would be killed as well.
    replace = event.failure.error_type == failures.OUT_OF_MEMORY
    if env.phase is not Phase.INVOKE:
        return _reset(env, now, failed_init=failed_init, replace=replace)
    assert env.invocation is not None
    failure, request_id = event.failure, env.invocation.request_id
    message = failure.message or "Unknown application error occurred"
    outcome = Outcome(
        failure_json=failures.failure_json(request_id, failure),
        error_type=failure.error_type,
        error_line=platform_lines.runtime_error(request_id, message, failure.error_type),
    )
    # A runtime that does not come through its init would fail again at once: that waits for the next invocation.
    return _reset(env, now, outcome=outcome, failed_init=failed_init, restart=not initialising, replace=replace)


def _tick(env: Environment, event: Tick, now: float) -> Step:
    if now < env.deadline:
        return env, []
    if env.phase is Phase.INVOKE:
        return _time_out(env, event, now)
    if env.runtime is RuntimeState.INITIALISING:
        return _reset(env, now, failed_init=_TIMED_OUT_INIT)
    return _sandbox_lost(env, SandboxLost("sandbox", "its processes do not die"), now)


def _time_out(env: Environment, event: Tick, now: float) -> Step:
    assert env.invocation is not None
    request_id, timeout_s, callers_limit = env.invocation
    if env.runtime is RuntimeState.RESTORING and not (callers_limit and now >= env.started + timeout_s):
        return _restore_timed_out(env, request_id, now)
    error_line = platform_lines.timed_out(event.wall_time, request_id, timeout_s)
    if callers_limit:
        outcome = Outcome(
            service_reason=DeadlineExceededError.aws_name,
            service_message=f"The invocation {request_id} took longer than the {timeout_s:.2f} seconds of its caller.",
            dispatched=env.start_logged,
            timed_out=True,
            error_line=error_line,
        )
    else:
        failure_json = failures.timeout_json(request_id, timeout_s)
        outcome = Outcome(failure_json=failure_json, timed_out=True, error_line=error_line)
    initialising = env.runtime is RuntimeState.INITIALISING
    failed_init = _TIMED_OUT_INIT if initialising else None
    return _reset(env, now, outcome=outcome, failed_init=failed_init, restart=not initialising)


def _restore_timed_out(env: Environment, request_id: str, now: float) -> Step:
    duration_us = _microseconds(now - env.restore_started)
    outcome = Outcome(
        service_reason=SnapStartTimeoutError.aws_name,
        service_message=f"The hooks before the invocation {request_id} took longer than {RESTORE_TIMEOUT_S:g} seconds.",
        error_type="Sandbox.Timedout",
        error_line=platform_lines.restore_report(duration_us, status="Status: timeout"),
    )
    return _reset(env, now, outcome=outcome, restart=True)


def _reset(
    env: Environment,
    now: float,
    *,
    outcome: Outcome | None = None,
    failed_init: RuntimeFailure | None = None,
    restart: bool = False,
    replace: bool = False,
) -> Step:
    """Kill the runtime; what is to be said about it is said once its last output has been read."""
    failed_inits = env.failed_inits + (failed_init is not None)
    # Its inits have succeeded before: what makes them fail now is left in the sandbox, or is not to be mended here.
    replace = (replace or (env.proven and failed_inits >= MAX_FAILED_INITS)) and not env.stop_reason
    # Its first process is to kill the others, or dies when it thaws.
    actions: list[Action] = [Thaw()] if env.phase is Phase.FROZEN else []
    if env.runtime is not RuntimeState.DYING:
        actions.append(ReplaceSandbox() if replace else KillRuntime())
        env = env._replace(failed_inits=0 if replace else failed_inits, cpu_limited=env.cpu_limited and not replace)
    env = _move(
        env,
        Phase.RESET,
        runtime=RuntimeState.DYING,
        deadline=now + (REPLACE_TIMEOUT_S if replace else KILL_TIMEOUT_S),
        outcome=outcome,
        ended=now,
        failed_init=failed_init,
        restart=restart,
    )
    return env, actions


def _runtime_killed(env: Environment, event: RuntimeKilled, now: float) -> Step:
    if env.runtime is not RuntimeState.DYING:
        return env, []
    actions: list[Action] = []
    init_error = ""
    if env.failed_init is not None:
        init_error = failures.init_error(env.failed_init, env.facts.init_timeout_s)
        phase = "init" if env.invocation is None else "invoke"
        duration_us = _microseconds(env.ended - env.init_started)
        line = platform_lines.init_report(duration_us, phase, error_type=env.failed_init.error_type)
        actions.append(WriteLog(line))
    env = env._replace(runtime=RuntimeState.ABSENT, deadline=math.inf, failed_init=None)
    if env.phase is Phase.INVOKE:  # it came while the old runtime died
        if not env.cpu_limited:
            env = _limit_cpu(env, actions)
        return _start_runtime(env, env.started + _timeout_s(env), now, actions)
    if env.outcome is not None:
        actions += _conclude(env, env.outcome, env.ended - env.started, event.max_memory_used_mib)
        env = env._replace(outcome=None, invocation=None)
    if env.stop_reason:
        return _shut_down(env, env.stop_reason, "", actions)
    if env.restart:
        return _start_runtime(env._replace(restart=False), now + env.facts.init_timeout_s, now, actions)
    if not env.announced:
        actions.append(ReportReady(0, _microseconds(now - env.init_started), init_error))
    return _move(env, Phase.IDLE, announced=True, idle_since=now), actions


def _timeout_s(env: Environment) -> float:
    assert env.invocation is not None
    return env.invocation.timeout_s


def _has_callers_limit(env: Environment) -> bool:
    assert env.invocation is not None
    return env.invocation.callers_limit


# Between invocations


def _rest(env: Environment, _: Rest, now: float) -> Step:  # noqa: ARG001 - every event has its time
    if env.phase is not Phase.IDLE:
        return env, []
    return _move(env, Phase.FROZEN), [Freeze()]


# The environment's end


def _stop(env: Environment, event: Stop, now: float) -> Step:
    if env.invocation is not None and event.drain:
        return env._replace(stop_reason=event.reason), []
    message = f"The environment was stopped while it ran the invocation: {event.reason}."
    return _shut_down(env, event.reason, "", _abandon(env, message, now, event.max_memory_used_mib))


def _sandbox_lost(env: Environment, event: SandboxLost, now: float) -> Step:
    message = f"The environment was lost while it ran the invocation: {event.message}."
    return _shut_down(env, event.reason, event.message, _abandon(env, message, now, event.max_memory_used_mib))


def _abandon(env: Environment, message: str, now: float, max_memory_used_mib: int) -> list[Action]:
    if env.invocation is None:
        return []
    if env.outcome is not None:
        return _conclude(env, env.outcome, env.ended - env.started, max_memory_used_mib)
    outcome = Outcome(
        service_reason=UnavailableError.aws_name,
        service_message=message,
        dispatched=env.start_logged,
        error_type="Sandbox.Failure",
    )
    return _conclude(env, outcome, now - env.started, max_memory_used_mib)


def _shut_down(env: Environment, reason: str, message: str, actions: list[Action]) -> Step:
    env = _move(env, Phase.SHUTDOWN, invocation=None, outcome=None, deadline=math.inf, runtime=RuntimeState.ABSENT)
    return env, [*actions, Close(reason, message)]


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


# Each value takes the event that is its key.
_STEPS: Final[dict[type, Callable[[Environment, Any, float], Step]]] = {
    SandboxReady: _sandbox_ready,
    SandboxLost: _sandbox_lost,
    RuntimeReady: _runtime_ready,
    RuntimeRestored: _runtime_restored,
    RuntimeFailed: _runtime_failed,
    RuntimeKilled: _runtime_killed,
    Open: _open,
    Finished: _finished,
    Cancelled: _cancelled,
    Tick: _tick,
    Rest: _rest,
    Stop: _stop,
}
