"""One execution environment in the flesh: feeds the state machine with what happens and does what it says.

Everything runs on the event loop. On the warm path nothing here waits and no task is made: the scheduler's OPEN is
written to the runtime's channel at once, and the runtime's answer is put into the outgoing batch at once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final

import structlog

from lambent.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidRequestContentError,
    LambentError,
    UnavailableError,
)
from lambent.framing import MAX_RESPONSE_BYTES
from lambent_node_agent.environment import failures, model
from lambent_node_agent.environment.facts import facts_of
from lambent_node_agent.environment.failures import MAX_STREAMED_BYTES
from lambent_node_agent.environment.function_sandbox import FunctionSandbox
from lambent_node_agent.environment.machine import step
from lambent_node_agent.environment.reports import end_of, invocation_report, ready_event
from lambent_node_agent.environment.runtime_link import RuntimeLink
from lambent_node_agent.environment.variables import function_variables
from lambent_node_agent.logs import platform_lines
from lambent_node_agent.logs.environment_log import EnvironmentLog, wall_time
from lambent_node_agent.sandbox import SandboxError
from lambent_runtime.channel import NO_KEY, RESTORE_FRAME, Kind, decode_ready

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from lambent.v1 import node_pb2
    from lambent_node_agent.environment.call import Call
    from lambent_node_agent.environment.model import RuntimeFailure
    from lambent_node_agent.environment.owner import EnvironmentOwner

log = structlog.get_logger(__name__)

# Fetching 50 MiB over a slow network, and a pool that is empty; nobody waits longer for a cold start.
_START_TIMEOUT_S: Final = 60.0
# For a payload to arrive after its first piece, during which it holds the environment: 6 MiB at 100 KiB a second.
_PAYLOAD_TIMEOUT_S: Final = 60.0


class EnvironmentShell:
    """Drives one environment from the order to make it until it is gone.

    Args:
        start: The order.
        owner: The node.
        environment_log: Where its output goes.
    """

    def __init__(
        self, start: node_pb2.StartEnvironment, owner: EnvironmentOwner, environment_log: EnvironmentLog
    ) -> None:
        self.order = start
        self.environment_id = start.environment_id
        self.ordered_at = time.monotonic()
        self.call: Call | None = None
        self._expected: Call | None = None
        self._expected_since = 0.0
        self._payload_timer: asyncio.TimerHandle | None = None
        self._stop_reason = ""  # of a stop that lets the expected call come first
        self._owner = owner
        self._log = environment_log
        self._timeout_s = start.timeout_us / 1e6
        self.state = model.Environment(facts_of(start, owner.lifetime, self.ordered_at))
        self._loop = asyncio.get_running_loop()
        self._sandbox = FunctionSandbox(start, owner.sandboxes, owner.code, self._sandbox_exited)
        self._link: RuntimeLink | None = None
        self._runtime_order = asyncio.Lock()  # starting and killing do not overlap
        self._starting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._queued: deque[model.Event] = deque()
        self._stepping = False

    @property
    def serving(self) -> bool:
        """True while an invocation is not answered."""
        return self.state.invocation is not None

    # What the scheduler orders

    def start(self) -> None:
        """Make the sandbox and start the first runtime."""
        self._starting = self._owner.spawn(self._start(), self)

    def expect(self, call: Call) -> None:
        """Keep the environment for a call whose payload is on its way; one at a time bounds what payloads take.

        Raises:
            UnavailableError: It serves or expects another call, or has ended.
        """
        self._require_free()
        if self.state.phase is model.Phase.SHUTDOWN:
            raise UnavailableError(f"the environment {self.environment_id} takes no invocation: it has ended")
        self._expect_nothing()
        self._expected, self._expected_since = call, time.monotonic()
        wait_s = _PAYLOAD_TIMEOUT_S
        if call.opening.timeout_us:
            wait_s = min(wait_s, call.opening.timeout_us / 1e6)
        self._payload_timer = self._loop.call_later(wait_s, self._payload_late, call)

    def invoke(self, call: Call) -> None:
        """Run an invocation whose payload is complete.

        Raises:
            UnavailableError: It serves or expects another call.
            DeadlineExceededError: The payload took all the time that the caller had.
        """
        spent_s = 0.0
        if call is self._expected:
            spent_s = time.monotonic() - self._expected_since
            self._expect_nothing()
        else:
            self._require_free()
        timeout_s, callers_limit = self._timeout_s, False
        if call.opening.timeout_us:
            left_s = call.opening.timeout_us / 1e6 - spent_s
            if left_s <= 0:
                self._stop_if_due()
                raise _late(call, spent_s)
            if left_s < timeout_s:
                timeout_s, callers_limit = left_s, True
        self.call = call
        if call.opening.log_tail:
            self._log.begin_tail()
        self.feed(model.Open(model.Invocation(call.opening.request_id, timeout_s, callers_limit)))
        self._stop_if_due()

    def cancel(self, call: Call) -> None:
        """End an invocation that is no longer wanted."""
        if self.call is call:
            call.discard_answer()
            self.feed(model.Cancelled(wall_time()))
        elif self._expected is call:
            self._expect_nothing()
            call.fail(
                CancelledError(f"The invocation {call.opening.request_id} was cancelled before it was dispatched.")
            )
            self._stop_if_due()

    def stop(self, reason: str, *, drain: bool) -> None:
        """End the environment, with `drain` after the invocation that runs or whose payload is on its way."""
        if self.state.phase is model.Phase.SHUTDOWN:
            return
        if drain and self._expected is not None and not self._expected.ended:
            self._stop_reason = reason
            return
        if not drain:
            self._drain_log()
        self.feed(model.Stop(reason, drain, self._sandbox.peak_memory_mib()))

    def rest(self) -> None:
        """Freeze it until it is used, if it is idle."""
        self.feed(model.Rest())

    def reclaim_memory(self, limit_bytes: int) -> int:
        """Take back memory that can be read again; blocks, for a thread. See `FunctionSandbox.reclaim_memory`."""
        return self._sandbox.reclaim_memory(limit_bytes)

    def fail(self, message: str) -> None:
        """End the environment because of a defect of the agent."""
        self._lose_sandbox("sandbox", message)

    def _require_free(self) -> None:
        if self.call is not None or (self._expected is not None and not self._expected.ended):
            raise UnavailableError(f"the environment {self.environment_id} serves another invocation")

    def _expect_nothing(self) -> None:
        self._expected = None
        if self._payload_timer is not None:
            self._payload_timer.cancel()
            self._payload_timer = None

    def _payload_late(self, call: Call) -> None:
        if self._expected is call:
            self._expect_nothing()
            if not call.ended:
                call.fail(_late(call, time.monotonic() - self._expected_since))
            self._stop_if_due()

    def _stop_if_due(self) -> None:
        if self._stop_reason:
            self.stop(self._stop_reason, drain=True)

    # The one place that steps and acts

    def feed(self, event: model.Event) -> None:
        """Apply an event and do what follows. An event that arises meanwhile is applied after it."""
        self._queued.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._queued:
                self.state, actions = step(self.state, self._queued.popleft(), time.monotonic())
                for action in actions:
                    self._acts[type(action)](self, action)
        finally:
            self._stepping = False
        if self.state.deadline < self._timer_at:
            self._arm(self.state.deadline)

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # A timer that is too early does no harm, so one that is set stays: as a rule none is set for an invocation.
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(0.001, deadline - time.monotonic()), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer, self._timer_at = None, math.inf
        deadline = self.state.deadline
        if deadline == math.inf:
            return
        if time.monotonic() < deadline:
            self._arm(deadline)
        else:
            self._drain_log()
            self.feed(model.Tick(wall_time()))

    # Actions

    def _write_log(self, action: model.WriteLog) -> None:
        self._log.platform(action.line)

    def _send_invoke(self, _action: model.SendInvoke) -> None:
        assert self.call is not None
        assert self._link is not None
        assert self.state.invocation is not None
        try:
            frame = self.call.invoke_frame(self.state.deadline - time.monotonic())
        except ValueError as error:
            outcome = model.Outcome(
                service_reason=InvalidRequestContentError.aws_name, service_message=f"The call cannot be sent: {error}."
            )
            self.feed(model.Finished(outcome, self._sandbox.peak_memory_mib()))
            return
        self._link.send(frame, self.call.key)

    def _send_restore(self, _action: model.SendRestore) -> None:
        assert self._link is not None
        self._link.send([RESTORE_FRAME], NO_KEY)

    def _answer(self, action: model.Answer) -> None:
        call, self.call = self.call, None
        assert call is not None
        opening = call.opening
        report = invocation_report(self.order, opening, action.figures, self._owner.node_id, self._log.take_tail())
        call.answer(end_of(report, action.outcome), action.outcome.payload)
        if report.cold_start and opening.HasField("cold_start_phases"):
            self._log.platform(platform_lines.cold_start(opening.request_id, opening.cold_start_phases))
        self._owner.call_ended(self)

    def _refuse(self, action: model.Refuse) -> None:
        call, self.call = self.call, None
        assert call is not None
        self._log.take_tail()
        call.fail(UnavailableError(f"the environment {self.environment_id} takes no invocation: {action.message}"))

    def _limit_cpu(self, _action: model.LimitCpu) -> None:
        try:
            self._sandbox.limit_cpu()
        except SandboxError as error:
            self._lose_sandbox("sandbox", str(error))

    def _report_ready(self, action: model.ReportReady) -> None:
        made_us = round((self.state.init_started - self.ordered_at) * 1e6)
        self._owner.environment_ready(
            self, ready_event(self.environment_id, made_us, self._sandbox.fetch_code_us, action)
        )

    def _report_spent(self, _action: model.ReportSpent) -> None:
        self._owner.environment_spent(self)

    def _freeze(self, _action: model.Freeze) -> None:
        self._owner.spawn(self._set_frozen(self._sandbox.freeze()), self)

    def _thaw(self, _action: model.Thaw) -> None:
        # What is sent to the runtime waits in its socket meanwhile, and the event loop does not wait for the kernel.
        self._owner.spawn(self._set_frozen(self._sandbox.thaw()), self)

    def _start_runtime(self, _action: model.StartRuntime) -> None:
        self._owner.spawn(self._start_process(), self)

    def _kill_runtime(self, action: model.KillRuntime | model.ReplaceSandbox) -> None:
        if self._link is not None:
            self._link.silence()
        self._owner.spawn(self._kill_process(replace=isinstance(action, model.ReplaceSandbox)), self)

    def _close(self, action: model.Close) -> None:
        if self._timer is not None:
            self._timer.cancel()
        expected = self._expected
        self._expect_nothing()
        if expected is not None and not expected.ended:
            expected.fail(UnavailableError(f"the environment {self.environment_id} ended before it got the payload"))
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
        self._owner.spawn(self._take_down(action.reason, action.message), self)

    # What does each action; a value takes the action that is its key.
    _acts: ClassVar[dict[type, Callable[[EnvironmentShell, Any], None]]] = {
        model.WriteLog: _write_log,
        model.SendRestore: _send_restore,
        model.SendInvoke: _send_invoke,
        model.Answer: _answer,
        model.Refuse: _refuse,
        model.LimitCpu: _limit_cpu,
        model.ReportReady: _report_ready,
        model.ReportSpent: _report_spent,
        model.Freeze: _freeze,
        model.Thaw: _thaw,
        model.StartRuntime: _start_runtime,
        model.KillRuntime: _kill_runtime,
        model.ReplaceSandbox: _kill_runtime,
        model.Close: _close,
    }

    # What takes time

    async def _start(self) -> None:
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._sandbox.make()
        except SandboxError as error:
            self._lose_sandbox("sandbox", str(error))
        except (LambentError, OSError) as error:
            self._lose_sandbox("code", f"the code cannot be had: {error}")
        except TimeoutError:
            reason = "sandbox" if self._sandbox.has_code else "code"
            self._lose_sandbox(reason, f"the environment was not made within {_START_TIMEOUT_S:g} s")
        else:
            self.feed(model.SandboxReady())

    async def _start_process(self) -> None:
        async with self._runtime_order:
            if self.state.runtime is not model.RuntimeState.INITIALISING:
                return
            variables = function_variables(self.order, self._log.stream_name)
            try:
                process = await self._sandbox.start_runtime(variables)
            except SandboxError as error:
                self._lose_sandbox("sandbox", str(error))
                return
            self._link = RuntimeLink(process, self._log, self, self._owner.turns)
            await self._link.open()

    async def _kill_process(self, *, replace: bool) -> None:
        async with self._runtime_order:
            if self._link is not None:
                self._link.silence()
            used_mib = self._sandbox.peak_memory_mib()
            try:
                if replace:
                    await self._sandbox.replace()
                else:
                    await self._sandbox.kill_runtime()
                    used_mib = self._sandbox.peak_memory_mib()
            except SandboxError as error:
                self._lose_sandbox("sandbox", str(error))
                return
            self._close_link()
        self.feed(model.RuntimeKilled(used_mib))

    async def _set_frozen(self, done: Coroutine[Any, Any, None]) -> None:
        try:
            await done
        except SandboxError as error:
            self._lose_sandbox("sandbox", str(error))

    async def _take_down(self, reason: str, message: str) -> None:
        """End what is left and say so. What does not die keeps its reservation and its code until it has ended."""
        try:
            if self._starting is not None:
                await asyncio.wait([self._starting])
            if self._link is not None:
                self._link.silence()
            async with self._runtime_order:
                try:
                    await self._sandbox.close()
                    self._owner.environment_freed(self.environment_id)
                except SandboxError:
                    log.exception("sandbox_not_closed", environment_id=self.environment_id)
                    self._owner.linger(self._free_once_ended(), self)
                self._close_link()
            self._log.close()
        finally:
            self._owner.environment_stopped(self, reason, message)

    async def _free_once_ended(self) -> None:
        try:
            await self._sandbox.close_once_ended()
        except SandboxError:
            log.exception("sandbox_not_closed", environment_id=self.environment_id)
        self._owner.environment_freed(self.environment_id)

    def _close_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    # What the runtime says

    def frame_received(self, kind: int, body: bytes) -> None:
        """Pass an answer on to the machine. Called by the link."""
        if kind == Kind.READY:
            self._sandbox.end_start()
            self._drain_log()
            self.feed(model.RuntimeReady(decode_ready(body)))
        elif kind == Kind.RESTORED:
            self._drain_log()
            self.feed(model.RuntimeRestored())
        elif kind == Kind.INIT_ERROR:
            self.runtime_failed(failures.init_failure(body))
        elif kind == Kind.CHUNK:
            self._chunk(body)
        elif self.call is None or self.state.runtime is not model.RuntimeState.READY:
            self.runtime_failed(failures.violation_failure(f"{Kind(kind).name} that nobody asked for"))
        elif self.call.too_large:
            self._finish_too_large(MAX_STREAMED_BYTES)
        elif kind == Kind.RESULT:
            if self.call.answered_bytes:
                self.runtime_failed(failures.violation_failure("RESULT inside a streamed answer"))
            else:
                self._finish(model.Outcome(payload=body))
        elif kind == Kind.TOO_LARGE:
            self.result_too_large()
        elif kind == Kind.STREAM_END:
            self._finish(model.Outcome())
        else:
            self._finish(model.Outcome(failure_json=body))

    def result_too_large(self) -> None:
        """Turn an answer over the limit into a function error. Called by the link."""
        self._finish_too_large(MAX_RESPONSE_BYTES)

    def stray_frame(self, kind: int) -> None:
        """Let a late answer to an earlier call pass while another one runs. Called by the link."""
        if self.call is None:
            self.runtime_failed(failures.violation_failure(f"{Kind(kind).name} that nobody asked for"))

    def runtime_failed(self, failure: RuntimeFailure) -> None:
        """The runtime is of no more use. Called by the link."""
        self._drain_log()
        self.feed(model.RuntimeFailed(failure, self._sandbox.peak_memory_mib()))

    def _finish_too_large(self, limit_bytes: int) -> None:
        failure_json = failures.too_large_json(limit_bytes)
        self._finish(model.Outcome(failure_json=failure_json, error_type=failures.RESPONSE_TOO_LARGE))

    def _finish(self, outcome: model.Outcome) -> None:
        self._drain_log()
        self.feed(model.Finished(outcome, self._sandbox.peak_memory_mib()))

    def _chunk(self, body: bytes) -> None:
        call, link = self.call, self._link
        ready = self.state.runtime is model.RuntimeState.READY
        if call is None or link is None or not ready or not call.opening.streaming:
            self.runtime_failed(failures.violation_failure("CHUNK that nobody asked for"))
            return
        if not body:  # No runtime sends it, and no limit would end a flood of it.
            self.runtime_failed(failures.violation_failure("CHUNK of nothing"))
            return
        call.chunk(body)
        if not call.has_room(link.resume):
            link.pause()

    def _sandbox_exited(self) -> None:
        self._drain_log()
        self._lose_sandbox("exited", "the first process of its sandbox is gone")

    def _lose_sandbox(self, reason: str, message: str) -> None:
        self.feed(model.SandboxLost(reason, message, self._sandbox.peak_memory_mib()))

    def _drain_log(self) -> None:
        if self._link is not None:
            self._link.drain_log()


def _late(call: Call, spent_s: float) -> DeadlineExceededError:
    request_id = call.opening.request_id
    return DeadlineExceededError(
        f"The payload of invocation {request_id} was not complete after {spent_s:.2f} seconds."
    )
