"""A scheduler's gRPC side over a real socket, whose functions are Python callables of this process.

It keeps functions in memory and knows nothing of etcd, nodes or sandboxes: what is tested against it is the SDK, its
protocol and its errors.
"""

# ruff: noqa: N802 - methods and arguments are the generated classes'

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import queue
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from lambent import errors
from lambent.framing import PIECE_BYTES
from lambent.rpc_errors import to_frame, to_status
from lambent.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    frame_pb2,
    function_pb2,
    function_pb2_grpc,
    invocation_pb2,
    invocation_pb2_grpc,
    log_pb2,
    log_pb2_grpc,
)
from lambent_common.grpc_server import GrpcServer
from lambent_scheduler.invocation.service import GrpcStream
from lambent_scheduler.invocation.session_port import SessionPort

TOKEN = "secret"

_LEFT = invocation_pb2.SessionResponseFrame()
"""Stands for the end of a session whose caller has said goodbye."""

Opening = invocation_pb2.InvocationOpen
Handler = Callable[[Opening, bytes], Awaitable[bytes]]


@dataclass
class Call:
    """One call on a session."""

    opening: Opening
    body: bytearray
    task: asyncio.Task[None] | None = None


@dataclass
class Service:
    """What the servicers share.

    Attributes:
        handlers: Function name to what it does; may raise FunctionError or a ServiceError.
        seen: Names of the functions called, in order.
        cancelled: Set when a client has cancelled a call.
        happened: "call", "cancel", "logs" and "unsettled" in the order they came, for tests that block.
        drop: Set by a handler to end the session under the calls in flight.
        early: What a streamed call gives before its handler runs.
        accepting: False to leave sessions unanswered, until `drop` refuses them as gRPC does.
        creating: Waited for by those who create a function, so that they do it at once; None for nothing.
        settling: False to leave functions as they are.
        broken: Names of functions whose code is lost between its upload and its activation.
        failing: Names of functions with SnapStart whose init fails.
    """

    handlers: dict[str, Handler] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    timeouts_us: list[int] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    drop: asyncio.Event = field(default_factory=asyncio.Event)
    early: bytes = b""
    accepting: bool = True
    session_came: asyncio.Event = field(default_factory=asyncio.Event)
    creating: asyncio.Barrier | None = None
    settling: bool = True
    broken: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    in_flight: int = 0
    most_in_flight: int = 0
    functions: dict[str, function_pb2.Function] = field(default_factory=dict)
    versions: dict[str, list[function_pb2.Function]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], function_pb2.Alias] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    reserved: dict[str, int] = field(default_factory=dict)
    log: list[log_pb2.LogBatch] = field(default_factory=list)
    more_log: asyncio.Queue[log_pb2.LogBatch] = field(default_factory=asyncio.Queue)
    happened: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    address: str = ""


SESSION_PORT = True
"""False leaves sessions to gRPC."""


class InvocationServicer(invocation_pb2_grpc.InvocationServiceServicer):
    """Sessions only: the SDK uses nothing else."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.session_port = SessionPort(self._serve)

    async def Session(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        self._service.session_came.set()
        if not self._service.accepting:
            await self._service.drop.wait()
            self._service.drop.clear()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        with self.session_port.offer(context.peer()) as metadata:
            await context.send_initial_metadata(metadata)
            if await self._serve(GrpcStream(context)):
                await context.abort_with_status(
                    to_status(errors.UnavailableError("the scheduler stops", dispatched=True))
                )

    async def _serve(self, stream: Any) -> bool:
        """Serve a session; True when it is dropped under its caller."""
        frames: asyncio.Queue[invocation_pb2.SessionResponseFrame | None] = asyncio.Queue(10_000)
        calls: dict[int, Call] = {}
        reading = asyncio.create_task(self._read(stream, calls, frames))
        dropping = asyncio.create_task(self._drop(frames))
        try:
            while (frame := await frames.get()) is not None:
                if frame is _LEFT:
                    return False
                await stream.write([frame])
        finally:
            tasks = [reading, dropping, *(call.task for call in calls.values() if call.task)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return True

    async def _drop(self, frames: asyncio.Queue[Any]) -> None:
        await self._service.drop.wait()
        self._service.drop.clear()
        await frames.put(None)

    async def _read(self, stream: Any, calls: dict[int, Call], frames: asyncio.Queue[Any]) -> None:
        while isinstance(request := await stream.read(), invocation_pb2.SessionRequest):
            for frame in request.frames:
                await self._frame(frame, calls, frames)
        await frames.put(_LEFT)

    async def _frame(self, frame: Any, calls: dict[int, Call], frames: asyncio.Queue[Any]) -> None:
        kind = frame.WhichOneof("frame")
        call_id = frame.call_id
        if kind == "open":
            calls[call_id] = call = Call(frame.open, bytearray(frame.open.payload))
            if frame.open.complete:
                call.task = asyncio.create_task(self._run(call_id, call, frames))
        elif kind == "data":
            calls[call_id].body += frame.data.payload
            window = frame_pb2.Window(credit_bytes=len(frame.data.payload))
            await frames.put(invocation_pb2.SessionResponseFrame(call_id=call_id, window=window))
        elif kind == "end":
            calls[call_id].body += frame.end.payload
            calls[call_id].task = asyncio.create_task(self._run(call_id, calls[call_id], frames))
        elif kind == "cancel" and (task := calls[call_id].task) is not None and not task.done():
            task.cancel()
            self._service.cancelled.set()
            self._service.happened.put("cancel")

    async def _run(self, call_id: int, call: Call, frames: asyncio.Queue[Any]) -> None:
        service, opening = self._service, call.opening
        service.seen.append(opening.function_name)
        service.happened.put("call")
        service.timeouts_us.append(opening.timeout_us)
        service.in_flight += 1
        service.most_in_flight = max(service.most_in_flight, service.in_flight)
        if opening.streaming and service.early:
            data = frame_pb2.Data(payload=service.early)
            await frames.put(invocation_pb2.SessionResponseFrame(call_id=call_id, data=data))
        end = frame_pb2.End(report=_report(opening))
        answer = b""
        try:
            if (handler := service.handlers.get(opening.function_name)) is None:
                raise errors.FunctionNotFoundError(f"Function not found: {opening.function_name}")
            answer = await handler(opening, bytes(call.body))
        except errors.FunctionError as error:
            answer = b""
            end.function_error, end.error_payload = "Unhandled", error.payload
        except errors.ServiceError as error:
            end.service_error.CopyFrom(to_frame(error))
        finally:
            service.in_flight -= 1
        pieces = answer.splitlines(keepends=True) if opening.streaming else _cut(answer)
        for piece in pieces:
            data = frame_pb2.Data(payload=piece)
            await frames.put(invocation_pb2.SessionResponseFrame(call_id=call_id, data=data))
        await frames.put(invocation_pb2.SessionResponseFrame(call_id=call_id, end=end))

    async def Invoke(self, request: Any, context: Any) -> invocation_pb2.InvokeResponse:
        raise NotImplementedError

    def InvokeWithResponseStream(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


class FunctionServicer(function_pb2_grpc.FunctionServiceServicer):
    """Functions in memory; a page holds two."""

    PAGE = 2

    def __init__(self, service: Service) -> None:
        self._service = service

    def _function(self, name: str) -> function_pb2.Function:
        try:
            return self._service.functions[name]
        except KeyError:
            raise errors.FunctionNotFoundError(f"Function not found: {name}") from None

    def _page(self, items: list[Any], token: str) -> tuple[list[Any], str]:
        start = int(token or 0)
        rest = start + self.PAGE
        return items[start:rest], str(rest) if rest < len(items) else ""

    async def UploadCode(self, request_iterator: Any, context: Any) -> function_pb2.UploadCodeResponse:
        content = b"".join([request.chunk async for request in request_iterator])
        digest = hashlib.sha256(content).hexdigest()
        self._service.uploads[digest] = content
        self._service.writes.append("upload")
        return function_pb2.UploadCodeResponse(code_sha256=digest, code_size_bytes=len(content))

    async def CreateFunction(self, request: Any, context: Any) -> function_pb2.CreateFunctionResponse:
        if self._service.creating is not None:
            await self._service.creating.wait()
        if request.function_name in self._service.functions:
            raise errors.ResourceConflictError(f"Function already exist: {request.function_name}")
        self._service.writes.append("create")
        function = function_pb2.Function(
            function_name=request.function_name,
            version="$LATEST",
            runtime=request.runtime,
            handler=request.handler,
            description=request.description,
            memory_mib=request.memory_mib or 128,
            ephemeral_storage_mib=request.ephemeral_storage_mib or 512,
            environment_variables=request.environment_variables,
            code_sha256=request.code_sha256,
            code_size_bytes=len(self._service.uploads[request.code_sha256]),
            revision_id=str(uuid.uuid4()),
            state=function_pb2.FUNCTION_STATE_PENDING,
            network_mode=request.network_mode or function_pb2.NETWORK_MODE_EGRESS,
            vpc_config=request.vpc_config,
        )
        function.timeout.seconds = request.timeout.seconds or 3
        function.last_modified_time.GetCurrentTime()
        self._service.functions[request.function_name] = function
        return function_pb2.CreateFunctionResponse(function=function)

    async def GetFunction(self, request: Any, context: Any) -> function_pb2.GetFunctionResponse:
        function = self._function(request.function_name)
        response = function_pb2.GetFunctionResponse(
            function=function, reserved_concurrent_executions=self._service.reserved.get(request.function_name)
        )
        self._settle(function)  # The next reader finds it settled.
        return response

    def _settle(self, function: function_pb2.Function) -> None:
        if not self._service.settling:
            self._service.happened.put("unsettled")
            return
        updating = function.last_update_status == function_pb2.LAST_UPDATE_STATUS_IN_PROGRESS
        if function.state != function_pb2.FUNCTION_STATE_PENDING and not updating:
            return
        function.revision_id = str(uuid.uuid4())
        if function.function_name not in self._service.broken:
            function.state = function_pb2.FUNCTION_STATE_ACTIVE
            function.last_update_status = function_pb2.LAST_UPDATE_STATUS_SUCCESSFUL
        elif updating:
            function.last_update_status = function_pb2.LAST_UPDATE_STATUS_FAILED
            function.last_update_status_reason = "The code package is missing. Please upload it again."
        else:
            function.state = function_pb2.FUNCTION_STATE_FAILED
            function.state_reason = "The code package is missing. Please upload it again."

    def _begin_update(self, function: function_pb2.Function, revision_id: str) -> None:
        if function.last_update_status == function_pb2.LAST_UPDATE_STATUS_IN_PROGRESS:
            raise errors.ResourceConflictError("An update is in progress")
        self._require_revision(function, revision_id)
        function.last_update_status = function_pb2.LAST_UPDATE_STATUS_IN_PROGRESS
        function.revision_id = str(uuid.uuid4())

    @staticmethod
    def _require_revision(function: function_pb2.Function, revision_id: str) -> None:
        if revision_id and revision_id != function.revision_id:
            raise errors.PreconditionFailedError("The Revision Id provided does not match the latest Revision Id.")

    async def ListFunctions(self, request: Any, context: Any) -> function_pb2.ListFunctionsResponse:
        items, token = self._page([f for _, f in sorted(self._service.functions.items())], request.page_token)
        return function_pb2.ListFunctionsResponse(functions=items, next_page_token=token)

    async def UpdateFunctionCode(self, request: Any, context: Any) -> function_pb2.UpdateFunctionCodeResponse:
        function = self._function(request.function_name)
        self._begin_update(function, request.revision_id)
        self._service.writes.append("code")
        function.code_sha256 = request.code_sha256
        return function_pb2.UpdateFunctionCodeResponse(function=function)

    async def UpdateFunctionConfiguration(self, request: Any, context: Any) -> Any:
        function = self._function(request.function_name)
        self._begin_update(function, request.revision_id)
        self._service.writes.append("configuration")
        for name in ("runtime", "handler", "description", "memory_mib", "ephemeral_storage_mib", "network_mode"):
            if request.HasField(name):
                setattr(function, name, getattr(request, name))
        if request.HasField("timeout"):
            function.timeout.CopyFrom(request.timeout)
        if request.HasField("environment"):
            function.environment_variables.clear()
            function.environment_variables.update(request.environment.variables)
        if request.HasField("vpc_config"):
            function.vpc_config.CopyFrom(request.vpc_config)
        return function_pb2.UpdateFunctionConfigurationResponse(function=function)

    async def DeleteFunction(self, request: Any, context: Any) -> function_pb2.DeleteFunctionResponse:
        self._function(request.function_name)
        del self._service.functions[request.function_name]
        return function_pb2.DeleteFunctionResponse()

    async def PublishVersion(self, request: Any, context: Any) -> function_pb2.PublishVersionResponse:
        published = self._service.versions.setdefault(request.function_name, [])
        self._require_revision(self._function(request.function_name), request.revision_id)
        version = function_pb2.Function()
        version.CopyFrom(self._function(request.function_name))
        failed = published and published[-1].state == function_pb2.FUNCTION_STATE_FAILED
        if published and published[-1].revision_id == version.revision_id and not failed:
            return function_pb2.PublishVersionResponse(function=published[-1])
        version.version = str(len(published) + 1)
        if request.function_name in self._service.failing:
            version.state = function_pb2.FUNCTION_STATE_FAILED
            version.state_reason = "its init fails"
        published.append(version)
        return function_pb2.PublishVersionResponse(function=version)

    async def ListVersionsByFunction(self, request: Any, context: Any) -> function_pb2.ListVersionsByFunctionResponse:
        latest = self._function(request.function_name)
        every = [latest, *self._service.versions.get(request.function_name, ())]
        items, token = self._page(every, request.page_token)
        return function_pb2.ListVersionsByFunctionResponse(versions=items, next_page_token=token)

    async def CreateAlias(self, request: Any, context: Any) -> function_pb2.CreateAliasResponse:
        if (request.function_name, request.name) in self._service.aliases:
            raise errors.ResourceConflictError(f"Alias already exists: {request.name}")
        alias = function_pb2.Alias(
            name=request.name,
            function_version=request.function_version,
            description=request.description,
            additional_version_weights=request.additional_version_weights,
            revision_id=str(uuid.uuid4()),
        )
        self._service.aliases[request.function_name, request.name] = alias
        return function_pb2.CreateAliasResponse(alias=alias)

    async def GetAlias(self, request: Any, context: Any) -> function_pb2.GetAliasResponse:
        alias = self._service.aliases.get((request.function_name, request.name))
        if alias is None:
            raise errors.AliasNotFoundError(f"Cannot find alias {request.name}")
        return function_pb2.GetAliasResponse(alias=alias)

    async def ListAliases(self, request: Any, context: Any) -> function_pb2.ListAliasesResponse:
        every = [alias for (name, _), alias in sorted(self._service.aliases.items()) if name == request.function_name]
        items, token = self._page(every, request.page_token)
        return function_pb2.ListAliasesResponse(aliases=items, next_page_token=token)

    async def UpdateAlias(self, request: Any, context: Any) -> function_pb2.UpdateAliasResponse:
        alias = self._service.aliases[request.function_name, request.name]
        if request.HasField("function_version"):
            alias.previous_function_version, alias.function_version = alias.function_version, request.function_version
        if request.HasField("routing_config"):
            alias.additional_version_weights.clear()
            alias.additional_version_weights.update(request.routing_config.additional_version_weights)
        return function_pb2.UpdateAliasResponse(alias=alias)

    async def DeleteAlias(self, request: Any, context: Any) -> function_pb2.DeleteAliasResponse:
        self._service.aliases.pop((request.function_name, request.name), None)
        return function_pb2.DeleteAliasResponse()

    async def PutFunctionConcurrency(self, request: Any, context: Any) -> Any:
        self._service.reserved[request.function_name] = request.reserved_concurrent_executions
        return function_pb2.PutFunctionConcurrencyResponse(
            reserved_concurrent_executions=request.reserved_concurrent_executions
        )

    async def GetFunctionConcurrency(self, request: Any, context: Any) -> Any:
        reserved = self._service.reserved.get(request.function_name)
        return function_pb2.GetFunctionConcurrencyResponse(reserved_concurrent_executions=reserved)

    async def DeleteFunctionConcurrency(self, request: Any, context: Any) -> Any:
        self._service.reserved.pop(request.function_name, None)
        return function_pb2.DeleteFunctionConcurrencyResponse()


class LogServicer(log_pb2_grpc.LogServiceServicer):
    """What is kept, then what comes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def TailLogs(self, request: Any, context: Any) -> AsyncIterator[log_pb2.TailLogsResponse]:
        self._service.happened.put("logs")
        for batch in self._service.log:
            yield log_pb2.TailLogsResponse(batch=batch)
        while request.follow:
            yield log_pb2.TailLogsResponse(batch=await self._service.more_log.get())


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """Three nodes on two pages."""

    async def ListNodes(self, request: Any, context: Any) -> cluster_pb2.ListNodesResponse:
        if request.page_token:
            return cluster_pb2.ListNodesResponse(nodes=[_node("node-c")])
        return cluster_pb2.ListNodesResponse(nodes=[_node("node-a"), _node("node-b")], next_page_token="2")

    async def GetStatus(self, request: Any, context: Any) -> cluster_pb2.GetStatusResponse:
        return cluster_pb2.GetStatusResponse(
            version="0.1.0",
            components=[cluster_pb2.Component(name="etcd", healthy=True, version="3.4.23")],
            nodes=3,
            account_concurrency_limit=1000,
        )


@contextlib.asynccontextmanager
async def serving(port: int = 0) -> AsyncIterator[Service]:
    """Serve on a free port of loopback, with a token."""
    service = Service()
    server = GrpcServer(token=TOKEN, services=())
    invocations = InvocationServicer(service)
    invocation_pb2_grpc.add_InvocationServiceServicer_to_server(invocations, server.server)
    function_pb2_grpc.add_FunctionServiceServicer_to_server(FunctionServicer(service), server.server)
    log_pb2_grpc.add_LogServiceServicer_to_server(LogServicer(service), server.server)
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(), server.server)
    if SESSION_PORT:
        await invocations.session_port.start("127.0.0.1:0")
    service.address = f"127.0.0.1:{await server.start(f'127.0.0.1:{port}')}"
    try:
        yield service
    finally:
        await invocations.session_port.stop(0)
        await server.stop(0)


@contextlib.contextmanager
def serving_in_thread() -> Iterator[Service]:
    """Serve from a loop of another thread, for tests that block."""
    started: list[Service] = []
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with serving() as running:
            started.append(running)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


def failing(error_type: str, message: str, *trace: str) -> errors.FunctionError:
    """A function's failure as a runtime sends it."""
    payload = json.dumps({"errorType": error_type, "errorMessage": message, "stackTrace": list(trace)}).encode()
    return errors.FunctionError(error_type, message, payload=payload)


async def echo(opening: Opening, body: bytes) -> bytes:
    """Answer with the event."""
    return body or b"{}"


def _report(opening: Opening) -> frame_pb2.InvocationReport:
    return frame_pb2.InvocationReport(
        request_id=str(uuid.uuid4()),
        executed_version=opening.qualifier or "$LATEST",
        duration_us=1_500,
        billed_duration_ms=2,
        init_duration_us=10_250,
        queue_us=300,
        memory_size_mib=128,
        max_memory_used_mib=9,
        cold_start=True,
        node_id="node-a",
        environment_id="environment-1",
        log_tail=b"START\nhello\nEND\n" if opening.log_tail else b"",
        cold_start_phases=frame_pb2.ColdStartPhases(
            queue_us=10, placement_us=20, fetch_code_us=30, sandbox_us=40, runtime_us=50, init_us=150
        ),
    )


def _node(node_id: str) -> cluster_pb2.Node:
    node = cluster_pb2.Node(
        node_id=node_id,
        address="127.0.0.1:1",
        capacity={"memory_mib": 4096, "cpu_millis": 2000},
        reserved={"memory_mib": 128},
        runtimes=["python3.11"],
        attached=True,
    )
    node.start_time.GetCurrentTime()
    return node


def _cut(answer: bytes) -> list[bytes]:
    return [answer[start : start + PIECE_BYTES] for start in range(0, len(answer), PIECE_BYTES)]
