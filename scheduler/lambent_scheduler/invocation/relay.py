"""Carries out what the dispatcher decides: the one place that admits calls and gives orders to nodes.

Everything here runs on the event loop between two awaits, without tasks or futures per call: a call is a handful of
dictionary operations and one appended frame in each direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from lambent.errors import (
    CancelledError,
    DeadlineExceededError,
    FunctionNotFoundError,
    NodeLostError,
    ServiceError,
    StaleEpochError,
    UnavailableError,
)
from lambent.rpc_errors import to_frame
from lambent.v1 import frame_pb2
from lambent_common import keys
from lambent_scheduler.core.actions import Action, Bind, Fail, Prepared, Start, Stop
from lambent_scheduler.core.call import Call
from lambent_scheduler.core.environments import Environment
from lambent_scheduler.functions.names import FunctionId
from lambent_scheduler.invocation.cold_starts import ColdStarts
from lambent_scheduler.invocation.node_link import NodeLink
from lambent_scheduler.invocation.opening import LONGEST_WAIT_US, check_opening
from lambent_scheduler.invocation.orders import invoke_order, start_order, stop_order
from lambent_scheduler.invocation.relayed_call import GONE, EndOnly, RelayedCall, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambent.v1 import invocation_pb2, node_pb2, record_pb2
    from lambent_scheduler.core.dispatch import Dispatcher
    from lambent_scheduler.core.version import VersionSpec
    from lambent_scheduler.functions.table import FunctionTable

log = structlog.get_logger()

_TICK_S = 0.1
"""How late a waiting call may learn that its time is up, and an idle environment that it is to stop."""

_LOOKS_EVERY_TICKS = 10
"""How seldom the callers of running calls are looked at: once a second, at 0.1 microseconds a call."""

_PAYLOAD_TIMEOUT_S = 60.0
"""How long the rest of a payload may take, since an environment is held for it: 6 MiB at 1 Mbit/s."""

_READER_TIMEOUT_S = 900.0
"""How long a caller may take nothing of an answer that waits: as long as the longest invocation runs (AWS Lambda
quotas). The environment is held meanwhile."""


@dataclass(slots=True)
class FunctionTotals:
    """What the answers of one function add up to since this scheduler started."""

    ended: int = 0
    errors: int = 0
    duration_us: int = 0


class Relay:
    """Admits calls, binds them to environments and moves their frames between callers and nodes.

    Args:
        dispatcher: The decisions.
        functions: What can be called.
        epoch: Gives the epoch of a partition; raises StaleEpochError for one that this scheduler does not own.
        scheduler_id: Identity of this scheduler, told to nodes.
        token: The cluster's bearer token, for the nodes' doors.
        payload_timeout_s: How long the rest of a payload may take.
        reader_timeout_s: How long a caller may take nothing of an answer that waits for it.
        on_prepared: Called with each version that has an environment prepared now, or cannot have one, and why.
    """

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        functions: FunctionTable,
        epoch: Callable[[int], int],
        scheduler_id: str,
        token: str,
        payload_timeout_s: float = _PAYLOAD_TIMEOUT_S,
        reader_timeout_s: float = _READER_TIMEOUT_S,
        on_prepared: Callable[[VersionSpec, ServiceError | None], None] | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.links: dict[str, NodeLink] = {}
        self.totals: dict[tuple[str, str], FunctionTotals] = {}
        self.cold_starts = ColdStarts()
        self._functions = functions
        self._epoch = epoch
        self._scheduler_id = scheduler_id
        self._token = token
        self._payload_timeout_s = payload_timeout_s
        self._reader_timeout_s = reader_timeout_s
        self._on_prepared = on_prepared
        self._records: dict[str, record_pb2.NodeRecord] = {}
        self._link_tasks: dict[str, asyncio.Task[None]] = {}
        self._link_failure: BaseException | None = None
        self._draining = False
        self._call_left = asyncio.Event()
        functions.on_change(self._function_changed)

    # ---- calls

    @property
    def draining(self) -> bool:
        """True once no new calls are taken."""
        return self._draining

    def open(
        self, opening: invocation_pb2.InvocationOpen, reply: Reply, held_bytes: int | None = None
    ) -> RelayedCall | None:
        """Admit a call. Its answer, or the reason why there is none, goes to `reply`.

        Args:
            opening: The call.
            reply: Where its answer goes.
            held_bytes: What the payload takes while the call waits, where that is more than what has been sent here.

        Returns:
            The call, for its further frames; None when it has already been answered.
        """
        try:
            return self._admit(opening, reply, held_bytes)
        except ServiceError as error:
            reply.end(frame_pb2.End(service_error=to_frame(error)))
            return None

    def _admit(self, opening: invocation_pb2.InvocationOpen, reply: Reply, held_bytes: int | None) -> RelayedCall:
        check_opening(opening)
        if self._draining:
            raise UnavailableError("the scheduler is stopping; send the call to another one")
        functions = self._functions
        account = opening.account or "default"
        target = functions.find(account, opening.function_name, opening.qualifier)
        spec = target.primary if target.other is None else target.drawn(random.random())  # noqa: S311 - no secret
        epoch = self._epoch(spec.partition)
        relayed = RelayedCall(opening, reply, target.invoked_arn)
        now = time.monotonic()
        relayed.call = call = Call(
            request_id=str(uuid.UUID(bytes=os.urandom(16), version=4)),
            spec=spec,
            payload_bytes=relayed.held_bytes if held_bytes is None else held_bytes,
            arrived=now,
            deadline=now + timeout_us / 1e6 if 0 < (timeout_us := opening.timeout_us) < LONGEST_WAIT_US else math.inf,
            context=relayed,
        )
        environment = self.dispatcher.admit(
            call, functions.reserved(account, spec.function_name), functions.account_reserved(account), now
        )
        if environment is not None:
            self._bind(relayed, environment, epoch, now)
        if self.dispatcher.actions:
            self._act()
        return relayed

    def cancel(self, relayed: RelayedCall) -> None:
        """The caller no longer wants the call: take it out of the queue, or have its environment reset."""
        assert relayed.call is not None
        relayed.drop_answer(EndOnly(relayed.reply))
        if relayed.link is not None:
            relayed.cancel()
            return
        self.dispatcher.cancel(relayed.call, time.monotonic())
        relayed.reply.end(frame_pb2.End(service_error=to_frame(CancelledError("the caller cancelled the call"))))
        self._act()

    def leave(self, relayed: RelayedCall) -> None:
        """The caller is gone: a waiting or incomplete call ends, a running one finishes and its answer is dropped."""
        relayed.drop_answer(GONE)
        if relayed.link is None or not relayed.payload_complete:
            self.cancel(relayed)

    def give_up(self, relayed: RelayedCall, error: ServiceError) -> None:
        """The caller broke a rule: it gets the error now, and counts as gone."""
        reply = relayed.reply
        self.leave(relayed)
        reply.end(frame_pb2.End(service_error=to_frame(error)))

    def _bind(self, relayed: RelayedCall, environment: Environment, epoch: int, now: float) -> None:
        link = self.links[environment.node_id]
        call_id = link.next_call_id()
        order = invoke_order(relayed, environment, call_id, epoch, now)
        link.calls[call_id] = relayed
        if environment.start is not None:
            assert relayed.call is not None
            self.cold_starts.bound(relayed.call, environment, order)
        relayed.bind(link, call_id, epoch, order)

    # ---- what nodes say (NodeEvents)

    def attached(self, link: NodeLink, welcome: node_pb2.Welcome) -> None:
        """A node takes orders: it joins the pool with the environments it still holds."""
        record = self._records[link.node_id]
        adopted: list[tuple[Environment, bool]] = []
        for held in welcome.environments:
            start = held.start
            spec = self._functions.current(start.account, start.function_name, start.version, start.revision_id)
            if spec is not None:
                served = 0 if held.unused else 1
                adopted.append((Environment(start.environment_id, spec, link.node_id, served=served), held.busy))
                continue
            partition = keys.partition_of(start.account, start.function_name)
            self._stop(link, partition, start.environment_id, "superseded", drain=True)
        self.dispatcher.node_joined(
            link.node_id,
            record.capacity,
            record.labels,
            record.runtimes,
            time.monotonic(),
            draining=record.draining or welcome.status.draining,
            held=adopted,
            reserved=welcome.status.reserved,
        )
        log.info("node_attached", node_id=link.node_id, held=len(welcome.environments), adopted=len(adopted))
        self._act()

    def status_changed(self, link: NodeLink) -> None:
        """A node says what is in use: what is not ours is left to others, and a node that drains gets nothing more."""
        self.dispatcher.node_changed(
            link.node_id,
            time.monotonic(),
            draining=self._records[link.node_id].draining or link.status.draining,
            reserved=link.status.reserved,
        )
        self._act()

    def detached(self, link: NodeLink, error: UnavailableError) -> None:
        """A node is lost or left: its calls end at once with an error that says they may have run."""
        self.dispatcher.node_lost(link.node_id, error, time.monotonic())
        self._act()
        calls, link.calls = list(link.calls.values()), {}
        for relayed in calls:
            relayed.close()
            relayed.reply.end(frame_pb2.End(service_error=to_frame(error)))
        self._call_left.set()

    def answer_ended(self, call: RelayedCall, end: frame_pb2.End) -> None:
        """A call is over: answer it, and give its environment to the next one."""
        ended = call.call
        assert ended is not None
        now = time.monotonic()
        duration_us = end.report.duration_us
        if not duration_us and self._came_back(call, end, now):
            return
        call.close()
        call.reply.end(end)
        self._count(ended, duration_us, failed=bool(end.function_error))
        self._call_left.set()
        if (environment := ended.environment) is None:
            return
        waiting = self.dispatcher.finished(environment, now)
        if waiting is not None:
            relayed = waiting.context
            assert isinstance(relayed, RelayedCall)
            self._bind(relayed, environment, self._epoch(waiting.spec.partition), now)
        if self.dispatcher.actions:
            self._act()

    def _came_back(self, relayed: RelayedCall, end: frame_pb2.End, now: float) -> bool:
        """Have a call that an ending environment would not take served by another one; False when it is over."""
        error, call = end.service_error, relayed.call
        assert call is not None
        if error.dispatched or error.reason != UnavailableError.aws_name or call.environment is None:
            return False
        if self._draining or not relayed.can_be_sent_again:
            return False
        if not self.dispatcher.returned(call.environment, now):
            return False
        relayed.unbind()
        self._act()
        return True

    def _count(self, call: Call, duration_us: int, *, failed: bool) -> None:
        key = (call.spec.account, call.spec.function_name)
        totals = self.totals.get(key)
        if totals is None:
            if not self._functions.exists(FunctionId(*key)):
                return  # deleted while it ran
            totals = self.totals[key] = FunctionTotals()
        totals.ended += 1
        totals.duration_us += duration_us
        if failed:
            totals.errors += 1

    def environment_ready(self, link: NodeLink, event: node_pb2.EnvironmentReady) -> None:
        """An environment can serve: the dispatcher binds whoever waits."""
        del link
        self.cold_starts.ready(self.dispatcher.environment(event.environment_id), event)
        init_error = UnavailableError(event.init_error) if event.init_error else None
        self.dispatcher.ready(event.environment_id, time.monotonic(), init_error)
        self._act()

    def environment_spent(self, link: NodeLink, event: node_pb2.EnvironmentSpent) -> None:
        """A node wants an environment to be replaced."""
        del link
        self.dispatcher.spent(event.environment_id, time.monotonic())
        self._act()

    def environment_stopped(self, link: NodeLink, event: node_pb2.EnvironmentStopped) -> None:
        """An environment is gone, or the node refused to make it."""
        error: ServiceError | None = None
        if event.message:
            text = f"environment {event.environment_id} on node {link.node_id}: {event.message}"
            error = StaleEpochError(text) if event.reason == "stale_epoch" else UnavailableError(text)
            log.warning(
                "environment_stopped",
                environment_id=event.environment_id,
                node_id=link.node_id,
                reason=event.reason,
                message=event.message,
            )
        self.dispatcher.stopped(event.environment_id, refused=event.refused, error=error, now=time.monotonic())
        self._act()

    # ---- nodes come and go

    def node_seen(self, record: record_pb2.NodeRecord) -> None:
        """A node's record was written: keep a link to it."""
        known = self._records.get(record.node_id)
        self._records[record.node_id] = record
        if known is not None and known.address == record.address:
            if (link := self.links[record.node_id]).attached:
                self.status_changed(link)
            return
        if known is not None:
            self._unlink(record.node_id)
        link = NodeLink(
            node_id=record.node_id,
            address=record.address,
            token=self._token,
            scheduler_id=self._scheduler_id,
            events=self,
        )
        self.links[record.node_id] = link
        task = asyncio.create_task(link.run(), name=f"node-link-{record.node_id}")
        task.add_done_callback(self._link_ended)
        self._link_tasks[record.node_id] = task

    def _link_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._link_failure = task.exception()

    def node_gone(self, node_id: str) -> None:
        """A node's lease has lapsed."""
        if self._records.pop(node_id, None) is not None:
            self._unlink(node_id)

    def record(self, node_id: str) -> record_pb2.NodeRecord:
        """Give what a node says of itself."""
        return self._records[node_id]

    def _unlink(self, node_id: str) -> None:
        self._link_tasks.pop(node_id).cancel()
        link = self.links.pop(node_id)
        if link.attached:
            link.attached = False
            self.detached(link, NodeLostError(f"node {node_id} is lost: its lease has lapsed", dispatched=True))

    # ---- the dispatcher's actions

    async def tick(self) -> None:
        """Let time pass for the dispatcher and for callers, until cancelled.

        Raises:
            Exception: A link to a node ended by a defect; nobody would attach to the node again.
        """
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_S)
            if self._link_failure is not None:
                raise self._link_failure
            now = time.monotonic()
            self.dispatcher.tick(now)
            self._act()
            ticks += 1
            if ticks % _LOOKS_EVERY_TICKS == 0:
                self._look_at_callers(now)

    def _look_at_callers(self, now: float) -> None:
        """End the calls whose callers hold an environment without need: they do not send, or do not read."""
        for link in self.links.values():
            for relayed in [relayed for relayed in link.calls.values() if relayed.waits_for_caller]:
                if (error := self._overdue(relayed, now)) is not None:
                    self.give_up(relayed, error)

    def _overdue(self, relayed: RelayedCall, now: float) -> ServiceError | None:
        assert relayed.call is not None
        if not relayed.payload_complete:
            arrived = relayed.call.arrived
            if now < min(relayed.call.deadline, arrived + self._payload_timeout_s):
                return None
            return DeadlineExceededError(f"the payload was not complete {now - arrived:.1f} s after the call began")
        if relayed.looked_at is None or relayed.looked_at[0] != relayed.answer_taken_bytes:
            relayed.looked_at = (relayed.answer_taken_bytes, now)
        if (idle_s := now - relayed.looked_at[1]) < self._reader_timeout_s:
            return None
        return DeadlineExceededError(f"the caller took nothing of the answer for {idle_s:.1f} s", dispatched=True)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls and those that wait, wait up to `grace_s` seconds for those that run, leave the nodes."""
        self._draining = True
        self.dispatcher.close(UnavailableError("the scheduler is stopping; send the call to another one"))
        self._act()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while any(link.calls for link in self.links.values()):
                    self._call_left.clear()
                    await self._call_left.wait()
        error = UnavailableError(
            "the scheduler stopped before the function had answered; it may still run", dispatched=True
        )
        for link in self.links.values():
            if link.attached:
                link.attached = False  # the link itself has nothing to say any more
                self.detached(link, error)
        tasks = list(self._link_tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _act(self) -> None:
        while self.dispatcher.actions:
            for action in self.dispatcher.take_actions():
                try:
                    self._carry_out(action)
                except StaleEpochError as error:
                    # The partition is another scheduler's now, and so are its environments.
                    log.warning("order_not_given", order=type(action).__name__, error=error.message)
                    if isinstance(action, Bind):
                        self._fail(action.call, error)

    def _carry_out(self, action: Action) -> None:
        match action:
            case Bind(call, environment):
                relayed = call.context
                assert isinstance(relayed, RelayedCall)
                self._bind(relayed, environment, self._epoch(call.spec.partition), time.monotonic())
            case Start(environment):
                self._start(environment)
            case Stop(environment, reason):
                if (link := self.links.get(environment.node_id)) is not None:
                    partition = environment.spec.partition
                    self._stop(link, partition, environment.environment_id, reason, drain=False)
            case Fail(call, error):
                self._fail(call, error)
            case Prepared(spec, error):
                if self._on_prepared is not None:
                    self._on_prepared(spec, error)

    def _fail(self, call: Call, error: ServiceError) -> None:
        relayed = call.context
        assert isinstance(relayed, RelayedCall)
        if relayed.link is not None:
            relayed.link.calls.pop(relayed.node_call_id, None)
            self._call_left.set()
        relayed.close()
        relayed.reply.end(frame_pb2.End(service_error=to_frame(error)))

    def _start(self, environment: Environment) -> None:
        spec = environment.spec
        order = start_order(environment.environment_id, spec, self._epoch(spec.partition))
        self.cold_starts.ordered(environment)
        self.links[environment.node_id].writer.send(order)

    def _stop(self, link: NodeLink, partition: int, environment_id: str, reason: str, *, drain: bool) -> None:
        link.writer.send(stop_order(environment_id, partition, self._epoch(partition), reason, drain=drain))

    def _function_changed(self, account: str, function_name: str) -> None:
        """A function changed: environments of what was replaced or deleted are not to serve again."""
        keep = self._functions.current_keys(account, function_name)
        now = time.monotonic()
        if keep:
            self.dispatcher.retire_function(account, function_name, keep, "superseded", now)
        else:
            self.totals.pop((account, function_name), None)
            error = FunctionNotFoundError(f"the function {function_name} was deleted before the call could run")
            self.dispatcher.retire_function(account, function_name, keep, "deleted", now, error=error)
        reserved = self._functions.reserved(account, function_name)
        self.dispatcher.reservation_changed(account, function_name, reserved)
        self.dispatcher.keep_prepared(
            account, function_name, self._functions.to_be_prepared(account, function_name), now
        )
        self._act()
