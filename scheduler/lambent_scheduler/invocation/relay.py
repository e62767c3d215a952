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
    InvalidRequestContentError,
    NodeLostError,
    RequestTooLargeError,
    ServiceError,
    StaleEpochError,
    UnavailableError,
)
from lambent.framing import MAX_PIECE_BYTES
from lambent.rpc_errors import to_frame
from lambent.v1 import frame_pb2, node_pb2
from lambent_scheduler.core.actions import Bind, Fail, Start, Stop
from lambent_scheduler.core.call import Call
from lambent_scheduler.core.environments import Environment
from lambent_scheduler.invocation.node_link import NodeLink
from lambent_scheduler.invocation.relayed_call import RelayedCall, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambent.v1 import invocation_pb2, record_pb2
    from lambent_scheduler.core.dispatch import Dispatcher
    from lambent_scheduler.core.version import VersionSpec
    from lambent_scheduler.functions.table import FunctionTable

log = structlog.get_logger()

_TICK_S = 0.1
"""How late a waiting call may learn that its time is up, and an idle environment that it is to stop."""

_MAX_CLIENT_CONTEXT_BYTES = 3_583
"""AWS Lambda, Invoke: X-Amz-Client-Context."""

_MAX_TRACEPARENT_CHARACTERS = 55
"""W3C Trace Context, version 00."""


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
    """

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        functions: FunctionTable,
        epoch: Callable[[int], int],
        scheduler_id: str,
        token: str,
    ) -> None:
        self.dispatcher = dispatcher
        self.links: dict[str, NodeLink] = {}
        self.totals: dict[tuple[str, str], FunctionTotals] = {}
        self._functions = functions
        self._epoch = epoch
        self._scheduler_id = scheduler_id
        self._token = token
        self._records: dict[str, record_pb2.NodeRecord] = {}
        self._link_tasks: dict[str, asyncio.Task[None]] = {}
        self._draining = False
        self._call_ended = asyncio.Event()
        functions.on_change(self._function_changed)

    # ---- calls

    def open(self, opening: invocation_pb2.InvocationOpen, reply: Reply) -> RelayedCall | None:
        """Admit a call. Its answer, or the reason why there is none, goes to `reply`.

        Returns:
            The call, for its further frames; None when it has already been answered.
        """
        try:
            return self._admit(opening, reply)
        except ServiceError as error:
            reply.end(frame_pb2.End(service_error=to_frame(error)))
            return None

    def _admit(self, opening: invocation_pb2.InvocationOpen, reply: Reply) -> RelayedCall:
        _check_opening(opening)
        if self._draining:
            raise UnavailableError("the scheduler is stopping; send the call to another one")
        functions = self._functions
        account = opening.account or "default"
        spec = functions.resolve(account, opening.function_name, opening.qualifier, random.random())  # noqa: S311 - weights, not secrets
        self._epoch(spec.partition)
        relayed = RelayedCall(opening, reply)
        now = time.monotonic()
        relayed.call = call = Call(
            request_id=str(uuid.UUID(bytes=os.urandom(16), version=4)),
            spec=spec,
            payload_bytes=relayed.held_bytes,
            arrived=now,
            deadline=now + opening.timeout_us / 1e6 if opening.timeout_us else math.inf,
            context=relayed,
        )
        environment = self.dispatcher.admit(
            call, functions.reserved(account, spec.function_name), functions.account_reserved(account), now
        )
        if environment is not None:
            self._bind(relayed, environment, now)
        if self.dispatcher.actions:
            self._act()
        return relayed

    def cancel(self, relayed: RelayedCall) -> None:
        """The caller no longer wants the call: take it out of the queue, or have its environment reset."""
        assert relayed.call is not None
        if relayed.link is not None:
            relayed.cancel()
            return
        self.dispatcher.cancel(relayed.call, time.monotonic())
        relayed.reply.end(frame_pb2.End(service_error=to_frame(CancelledError("the caller cancelled the call"))))
        self._act()

    def leave(self, relayed: RelayedCall) -> None:
        """The caller is gone: a waiting or incomplete call ends, a running one finishes and its answer is dropped."""
        relayed.reply = GONE
        if relayed.link is None or not relayed.payload_complete:
            self.cancel(relayed)

    def _bind(self, relayed: RelayedCall, environment: Environment, now: float) -> None:
        call = relayed.call
        assert call is not None
        link = self.links[environment.node_id]
        opening, spec = relayed.opening, call.spec
        call_id = link.next_call_id()
        link.calls[call_id] = relayed
        order = node_pb2.NodeOrder(
            call_id=call_id,
            partition=spec.partition,
            owner_epoch=self._epoch(spec.partition),
            open=node_pb2.InvokeOpen(
                environment_id=environment.environment_id,
                request_id=call.request_id,
                invoked_function_arn=f"{spec.function_arn}:{opening.qualifier}"
                if opening.qualifier
                else spec.function_arn,
                timeout_us=0 if call.deadline == math.inf else max(1, int((call.deadline - now) * 1e6)),
                log_tail=opening.log_tail,
                streaming=opening.streaming,
                traceparent=opening.traceparent,
                client_context=opening.client_context,
                payload=opening.payload,
                complete=opening.complete,
                queue_us=int((now - call.arrived) * 1e6),
            ),
        )
        relayed.bind(link, call_id, order)

    # ---- what nodes say (NodeEvents)

    def attached(self, link: NodeLink, welcome: node_pb2.Welcome) -> None:
        """A node takes orders: it joins the pool with the environments it still holds."""
        record = self._records[link.node_id]
        now = time.monotonic()
        self.dispatcher.node_joined(
            link.node_id, record.capacity, record.labels, record.runtimes, now, draining=record.draining
        )
        for held in welcome.environments:
            start = held.start
            spec = self._functions.current(start.account, start.function_name, start.version, start.revision_id)
            if spec is None or held.busy:
                # Its calls answer to nobody, or its code is no longer current.
                self._stop(link, spec.partition if spec else 0, start.environment_id, "superseded", drain=True)
                continue
            self.dispatcher.adopt(Environment(start.environment_id, spec, link.node_id), busy=False, now=now)
        log.info("node_attached", node_id=link.node_id, adopted=len(welcome.environments))
        self._act()

    def detached(self, link: NodeLink, error: NodeLostError) -> None:
        """A node is lost: its calls end at once with an error that says they may have run."""
        self.dispatcher.node_lost(link.node_id, time.monotonic())
        self._act()
        calls, link.calls = list(link.calls.values()), {}
        for relayed in calls:
            relayed.close()
            relayed.reply.end(frame_pb2.End(service_error=to_frame(error)))

    def answer_ended(self, call: RelayedCall, end: frame_pb2.End) -> None:
        """A call is over: answer it, and give its environment to the next one."""
        call.close()
        call.reply.end(end)
        ended = call.call
        assert ended is not None
        self._count(ended, end)
        self._call_ended.set()
        if (environment := ended.environment) is None:
            return
        now = time.monotonic()
        waiting = self.dispatcher.finished(environment, now)
        if waiting is not None:
            relayed = waiting.context
            assert isinstance(relayed, RelayedCall)
            self._bind(relayed, environment, now)
        if self.dispatcher.actions:
            self._act()

    def _count(self, call: Call, end: frame_pb2.End) -> None:
        key = (call.spec.account, call.spec.function_name)
        totals = self.totals.get(key)
        if totals is None:
            totals = self.totals[key] = FunctionTotals()
        totals.ended += 1
        totals.duration_us += end.report.duration_us
        if end.function_error:
            totals.errors += 1

    def environment_ready(self, link: NodeLink, event: node_pb2.EnvironmentReady) -> None:
        """An environment can serve: the dispatcher binds whoever waits."""
        del link
        self.dispatcher.ready(event.environment_id, time.monotonic())
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
            if known.draining != record.draining and self.links[record.node_id].attached:
                self.dispatcher.node_changed(record.node_id, time.monotonic(), draining=record.draining)
                self._act()
            return
        if known is not None:
            self._unlink(record.node_id)
        link = NodeLink(
            node_id=record.node_id,
            address=record.address,
            token=self._token,
            scheduler_id=self._scheduler_id,
            epoch=self._epoch,
            events=self,
        )
        self.links[record.node_id] = link
        self._link_tasks[record.node_id] = asyncio.create_task(link.run(), name=f"node-link-{record.node_id}")

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
        """Let time pass for the dispatcher, until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            self.dispatcher.tick(time.monotonic())
            self._act()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait up to `grace_s` seconds for those in flight, then leave the nodes."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while any(link.calls for link in self.links.values()):
                    self._call_ended.clear()
                    await self._call_ended.wait()
        tasks = list(self._link_tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _act(self) -> None:
        while self.dispatcher.actions:
            for action in self.dispatcher.take_actions():
                match action:
                    case Bind(call, environment):
                        relayed = call.context
                        assert isinstance(relayed, RelayedCall)
                        self._bind(relayed, environment, time.monotonic())
                    case Start(environment):
                        self._start(environment)
                    case Stop(environment, reason, drain):
                        if (link := self.links.get(environment.node_id)) is not None:
                            partition = environment.spec.partition
                            self._stop(link, partition, environment.environment_id, reason, drain=drain)
                    case Fail(call, error):
                        self._fail(call, error)

    def _fail(self, call: Call, error: ServiceError) -> None:
        relayed = call.context
        assert isinstance(relayed, RelayedCall)
        if relayed.link is not None:
            relayed.link.calls.pop(relayed.node_call_id, None)
        relayed.close()
        relayed.reply.end(frame_pb2.End(service_error=to_frame(error)))

    def _start(self, environment: Environment) -> None:
        spec = environment.spec
        link = self.links[environment.node_id]
        link.writer.send(
            node_pb2.NodeOrder(
                partition=spec.partition,
                owner_epoch=self._epoch(spec.partition),
                start_environment=_start_order(environment.environment_id, spec),
            )
        )

    def _stop(self, link: NodeLink, partition: int, environment_id: str, reason: str, *, drain: bool) -> None:
        link.writer.send(
            node_pb2.NodeOrder(
                partition=partition,
                owner_epoch=self._epoch(partition),
                stop_environment=node_pb2.StopEnvironment(environment_id=environment_id, reason=reason, drain=drain),
            )
        )

    def _function_changed(self, account: str, function_name: str) -> None:
        """Versions of a function were replaced or deleted: their environments are not to serve again."""
        keep = self._functions.current_keys(account, function_name)
        if not keep:
            self.totals.pop((account, function_name), None)
        self.dispatcher.retire_function(
            account, function_name, keep, "superseded" if keep else "deleted", time.monotonic()
        )
        self._act()


class _Gone:
    """The reply of a caller that has left."""

    def data(self, call: RelayedCall, payload: bytes) -> None:
        """Drop it, and let the node go on."""
        call.answer_sent(len(payload))

    def end(self, end: frame_pb2.End) -> None:
        """Drop it."""

    def window(self, credit_bytes: int) -> None:
        """Nobody is there to send more."""


GONE: Reply = _Gone()


def _check_opening(opening: invocation_pb2.InvocationOpen) -> None:
    if len(opening.payload) > MAX_PIECE_BYTES:
        raise RequestTooLargeError(f"the first piece of a payload holds at most {MAX_PIECE_BYTES} bytes")
    if len(opening.client_context) > _MAX_CLIENT_CONTEXT_BYTES:
        raise InvalidRequestContentError(
            f"Client context must be no more than {_MAX_CLIENT_CONTEXT_BYTES} bytes; "
            f"this one has {len(opening.client_context)}"
        )
    if len(opening.traceparent) > _MAX_TRACEPARENT_CHARACTERS:
        raise InvalidRequestContentError(
            f"traceparent holds at most {_MAX_TRACEPARENT_CHARACTERS} characters (W3C Trace Context); "
            f"this one has {len(opening.traceparent)}"
        )


def _start_order(environment_id: str, spec: VersionSpec) -> node_pb2.StartEnvironment:
    return node_pb2.StartEnvironment(
        environment_id=environment_id,
        account=spec.account,
        function_name=spec.function_name,
        version=spec.version,
        revision_id=spec.revision_id,
        runtime=spec.runtime,
        handler=spec.handler,
        code_sha256=spec.code_sha256,
        code_size_bytes=spec.code_size_bytes,
        environment_variables=spec.environment_variables,
        memory_mib=spec.memory_mib,
        ephemeral_storage_mib=spec.ephemeral_storage_mib,
        timeout_us=spec.timeout_us,
        function_arn=spec.function_arn,
    )
