"""The asynchronous client: the whole SDK stands on it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import random
from typing import TYPE_CHECKING, Literal, Self, overload

from lambent import conversion, deployment, retry
from lambent.connection import Connection, client_closed
from lambent.endpoint import discover
from lambent.errors import DeadlineExceededError, LambentError, ServiceError
from lambent.functions import Functions
from lambent.map_run import MapRun
from lambent.opening import LONGEST_CALL_S, make_opening, timeout_us
from lambent.payloads import encode_payload, function_error
from lambent.retry import Retries
from lambent.rpc_errors import from_frame
from lambent.session import Session
from lambent.session_stream import open_stream
from lambent.stream import ResponseStream
from lambent.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    frame_pb2,
    invocation_pb2,
    log_pb2,
    log_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

    from lambent.endpoint import Endpoint
    from lambent.functions import Code
    from lambent.map_run import MapProgress
    from lambent.results import ClusterStatus, Function, InvokeResult, LogEvent, NetworkMode, Node, VpcConfig
    from lambent.retry import RetryPolicy
    from lambent.upload import UploadProgress

_GRACE_S = 2.0
"""How much longer than the cluster the client waits, so that the cluster's own answer, which says more, comes first."""


class AsyncClient:
    """Talks to a Lambent cluster. Use it as an async context manager, on one event loop.

    Nothing is sent before the first call. Without arguments it finds the cluster that `lambent up` started on this
    machine, or the one named by LAMBENT_ENDPOINT and LAMBENT_TOKEN. A call that finds nobody is tried again for some
    10 s, so that a scheduler may restart.

    Args:
        endpoint: `host:port` of a scheduler.
        token: Bearer token of the cluster.
        data_dir: Data directory of a cluster on this machine, which names both.
        account: Account that owns the functions; empty means the default one.

    Attributes:
        functions: Create, change, list and delete functions, versions and aliases.

    Raises:
        UnavailableError: No cluster is named anywhere.
    """

    def __init__(
        self,
        endpoint: str = "",
        *,
        token: str = "",
        data_dir: Path | str | None = None,
        account: str = "",
    ) -> None:
        self.endpoint: Endpoint = discover(endpoint=endpoint, token=token, data_dir=data_dir, environ=os.environ)
        self.functions = Functions(self._connect, account)
        self._account = account
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._opening_session: asyncio.Lock = asyncio.Lock()
        self._not_opened: tuple[int, ServiceError | None] = (0, None)
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls in flight fail; their functions finish."""
        self._closed = True
        session, self._session = self._session, None
        connection, self._connection = self._connection, None
        try:
            if session is not None:
                await session.close()
        finally:
            if connection is not None:
                await connection.close()

    async def invoke(
        self,
        name: str,
        payload: object = None,
        *,
        qualifier: str = "",
        timeout_s: float | None = None,
        log_tail: bool = False,
        client_context: Mapping[str, object] | None = None,
        idempotent: bool = False,
        traceparent: str = "",
    ) -> InvokeResult:
        """Run a function and wait for its answer. Cancelling the wait cancels the invocation.

        Args:
            name: Function name or ARN, with or without a qualifier.
            payload: The event: bytes as they are, anything else as JSON; None is an empty event.
            qualifier: Version number, alias or `$LATEST`; empty means `$LATEST`.
            timeout_s: How long to wait, queueing and retries included; None means the function's own timeout alone.
            log_tail: True to get the last 4 KiB of the invocation's log.
            client_context: What the function sees as `context.client_context`; at most 3,583 bytes of JSON.
            idempotent: True when running twice does no harm: then a call that may have run is sent again too.
            traceparent: W3C trace context, passed on to the function.

        Raises:
            FunctionError: The function raised, timed out, exited or gave a result that cannot be sent.
            FunctionNotFoundError: There is no such function, version or alias.
            ThrottledError: A concurrency limit is reached.
            NoCapacityError: No node can hold it now, or ever.
            DeadlineExceededError: `timeout_s` ran out.
            ServiceError: Anything else that failed outside the function.
        """
        opening = make_opening(
            self._account,
            name,
            qualifier,
            timeout_s,
            log_tail=log_tail,
            client_context=client_context,
            traceparent=traceparent,
        )
        return await self._call(opening, encode_payload(payload), timeout_s, idempotent=idempotent, policy=retry.INVOKE)

    def stream(
        self,
        name: str,
        payload: object = None,
        *,
        qualifier: str = "",
        timeout_s: float | None = None,
        log_tail: bool = False,
        client_context: Mapping[str, object] | None = None,
        traceparent: str = "",
    ) -> ResponseStream:
        """Run a function and read its answer as it is yielded: `async for piece in client.stream(...)`.

        Arguments and errors are those of `invoke`; errors come from the iteration.
        """
        opening = make_opening(
            self._account,
            name,
            qualifier,
            timeout_s,
            log_tail=log_tail,
            client_context=client_context,
            traceparent=traceparent,
        )
        opening.streaming = True
        pieces = self._pieces(opening, encode_payload(payload), timeout_s)
        total_s = None if timeout_s is None else timeout_s + _GRACE_S
        return ResponseStream(pieces, total_s=total_s, silence_s=LONGEST_CALL_S)

    @overload
    def map(
        self,
        name: str,
        payloads: Iterable[object] | AsyncIterable[object],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        on_progress: MapProgress | None = None,
        qualifier: str = "",
        timeout_s: float | None = None,
        idempotent: bool = False,
        return_errors: Literal[False] = False,
    ) -> AsyncIterator[InvokeResult]: ...

    @overload
    def map(
        self,
        name: str,
        payloads: Iterable[object] | AsyncIterable[object],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        on_progress: MapProgress | None = None,
        qualifier: str = "",
        timeout_s: float | None = None,
        idempotent: bool = False,
        return_errors: Literal[True],
    ) -> AsyncIterator[InvokeResult | LambentError]: ...

    async def map(
        self,
        name: str,
        payloads: Iterable[object] | AsyncIterable[object],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        on_progress: MapProgress | None = None,
        qualifier: str = "",
        timeout_s: float | None = None,
        idempotent: bool = False,
        return_errors: bool = False,
    ) -> AsyncIterator[InvokeResult | LambentError]:
        """Run a function once for each payload and give the answers as they can be given.

        Payloads are taken lazily, so that they may be endless; a throttled call waits and is sent again. Leaving the
        loop early cancels what is in flight.

        Args:
            name: As for `invoke`.
            payloads: Any iterable, asynchronous or not.
            concurrency: Most calls in flight.
            ordered: True for the order of the payloads, False for answers as they come.
            on_progress: Called after each answer with the number of answers and of payloads (None if unknown).
            qualifier: As for `invoke`.
            timeout_s: Of each call, as for `invoke`.
            idempotent: As for `invoke`.
            return_errors: True to give a call's error in place of its answer; False raises the first one.

        Raises:
            FunctionError: A call failed in the function.
            ServiceError: A call failed outside the function.
        """
        run = self.map_run(
            name,
            payloads,
            concurrency=concurrency,
            ordered=ordered,
            on_progress=on_progress,
            qualifier=qualifier,
            timeout_s=timeout_s,
            idempotent=idempotent,
        )
        async with run:
            while batch := await run.next_batch():
                for outcome in batch:
                    if isinstance(outcome, LambentError) and not return_errors:
                        raise outcome
                    yield outcome

    def map_run(
        self,
        name: str,
        payloads: Iterable[object] | AsyncIterable[object],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        on_progress: MapProgress | None = None,
        qualifier: str = "",
        timeout_s: float | None = None,
        idempotent: bool = False,
    ) -> MapRun:
        """Give the machinery under `map`, which hands out answers by the batch; for wrappers."""

        async def call(payload: object) -> InvokeResult:
            opening = make_opening(self._account, name, qualifier, timeout_s)
            return await self._call(
                opening, encode_payload(payload), timeout_s, idempotent=idempotent, policy=retry.MAP
            )

        return MapRun(call, payloads, concurrency=concurrency, ordered=ordered, on_progress=on_progress)

    async def logs(self, name: str, *, since_s: float | None = None, follow: bool = False) -> AsyncIterator[LogEvent]:
        """Give a function's log, oldest line first.

        Args:
            name: Function name.
            since_s: How far back to begin; None means everything that is kept.
            follow: True to go on as more arrives, until the caller stops.
        """
        connection = self._connect()
        request = log_pb2.TailLogsRequest(
            account=self._account, function_name=name, since=conversion.duration("since_s", since_s), follow=follow
        )
        await connection.retrying(connection.ready, idempotent=True)
        call = log_pb2_grpc.LogServiceStub(connection.channel).TailLogs(request, metadata=connection.metadata)
        try:
            async for response in connection.items(aiter(call)):
                for event in conversion.log_events(response.batch):
                    yield event
        finally:
            call.cancel()

    async def nodes(self) -> AsyncIterator[Node]:
        """Give the nodes that are alive, by id."""
        connection = self._connect()
        stub = cluster_pb2_grpc.ClusterServiceStub(connection.channel)
        token = ""
        while True:
            request = cluster_pb2.ListNodesRequest(page_token=token)
            reply = await connection.unary(stub.ListNodes, request, idempotent=True)
            for node in reply.nodes:
                yield conversion.node(node)
            if not (token := reply.next_page_token):
                return

    async def status(self) -> ClusterStatus:
        """Give the state of the control plane."""
        connection = self._connect()
        stub = cluster_pb2_grpc.ClusterServiceStub(connection.channel)
        request = cluster_pb2.GetStatusRequest()
        return conversion.cluster_status(await connection.unary(stub.GetStatus, request, idempotent=True))

    async def deploy(
        self,
        name: str,
        code: Code,
        *,
        handler: str | None = None,
        runtime: str | None = None,
        memory_mib: int | None = None,
        timeout_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        ephemeral_storage_mib: int | None = None,
        snap_start: bool | None = None,
        description: str | None = None,
        network: NetworkMode | str | None = None,
        vpc_config: VpcConfig | None = None,
        requirements: Path | str | Iterable[str] | None = None,
        publish: bool = False,
        alias: str = "",
        on_progress: UploadProgress | None = None,
    ) -> Function:
        """Bring a function to this code and configuration, whether it exists or not, and wait until it is ACTIVE.

        What is as wanted already is not touched, so that a second deployment of the same code does nothing.

        Args:
            name: 1 to 64 characters of [A-Za-z0-9_-].
            code: A folder, a source file, a zip (path or bytes) or a package.
            handler: `module.function`; required for a new function. None, here and below, leaves a value as it is, or
                means the default for a new function.
            runtime: For example `python3.11`; the default is the version of this interpreter.
            memory_mib: [128, 10240], default 128.
            timeout_s: [1, 900], default 3.
            environment: All environment variables of the function.
            ephemeral_storage_mib: Size of /tmp, [512, 10240], default 512.
            snap_start: True to have environments of published versions initialised before calls come for them.
            description: At most 256 characters.
            network: Where its connections may go, default EGRESS.
            vpc_config: The operator's networks that it may connect to instead; an empty one ends that.
            requirements: A requirements file or specifiers to install beside the code.
            publish: True to publish a version.
            alias: Name to put on the published version; implies `publish`.
            on_progress: Called with the bytes of the upload sent and in all.

        Returns:
            The published version, or $LATEST.
        """
        wanted = deployment.Wanted(
            handler=handler,
            runtime=runtime,
            memory_mib=memory_mib,
            timeout_s=timeout_s,
            environment=None if environment is None else dict(environment),
            ephemeral_storage_mib=ephemeral_storage_mib,
            snap_start=snap_start,
            description=description,
            network=network,
            vpc_config=vpc_config,
        )
        return await deployment.deploy(
            self.functions,
            name,
            code,
            wanted,
            requirements=requirements,
            publish=publish,
            alias=alias,
            on_progress=on_progress,
        )

    async def _call(
        self,
        opening: invocation_pb2.InvocationOpen,
        body: bytes,
        timeout_s: float | None,
        *,
        idempotent: bool,
        policy: RetryPolicy,
    ) -> InvokeResult:
        """Invoke, and again where that is safe. This is the hot path: no task, no lock, one timer."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + (LONGEST_CALL_S if timeout_s is None else timeout_s + _GRACE_S)
        retries: Retries | None = None
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        session = self._session
                        if session is None or session.closed:
                            session = await self._open_session()
                        answer, end = await session.invoke(opening, body)
                        if end.HasField("service_error"):
                            raise from_frame(end.service_error)
                        break
                    except ServiceError as error:
                        if retries is None:
                            retries = Retries(policy, idempotent=idempotent, deadline=deadline - _GRACE_S)
                        wait_s = self._wait_s(retries, error)
                    await asyncio.sleep(wait_s)
                    if timeout_s is not None:
                        opening.timeout_us = timeout_us(deadline - _GRACE_S - clock())
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"function {opening.function_name!r} gave no answer within {timeout_s or LONGEST_CALL_S:g} s; "
                "the invocation was cancelled",
                dispatched=True,
            ) from error
        report = end.report
        if end.function_error:
            raise function_error(end.error_payload, request_id=report.request_id, log_tail=report.log_tail)
        return conversion.invoke_result(answer, report)

    async def _pieces(
        self, opening: invocation_pb2.InvocationOpen, body: bytes, timeout_s: float | None
    ) -> AsyncGenerator[bytes | frame_pb2.End, None]:
        """Stream, and again from the beginning while nothing was dispatched."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + (LONGEST_CALL_S if timeout_s is None else timeout_s)
        retries = Retries(retry.INVOKE, idempotent=False, deadline=deadline)
        while True:
            received = False
            try:
                session = self._session
                if session is None or session.closed:
                    session = await self._open_session()
                # Closed here, not by the garbage collector: closing is what cancels the invocation.
                async with contextlib.aclosing(session.stream(opening, body)) as items:
                    async for item in items:
                        if isinstance(item, frame_pb2.End) and item.HasField("service_error"):
                            raise from_frame(item.service_error)
                        received = True
                        yield item
            except ServiceError as error:
                if received:
                    raise
                wait_s = self._wait_s(retries, error)
            else:
                return
            await asyncio.sleep(wait_s)
            if timeout_s is not None:
                opening.timeout_us = timeout_us(deadline - clock())

    def _wait_s(self, retries: Retries, error: ServiceError) -> float:
        """Give the wait before a call is sent again; raises its error when it is not."""
        now = asyncio.get_running_loop().time()
        wait_s = retries.wait_s(error, now, random.random())  # noqa: S311 - jitter, not a secret
        if wait_s is None or self._closed:
            raise error
        return wait_s

    def _connect(self) -> Connection:
        if self._closed:
            raise client_closed()
        if self._connection is None:
            self._connection = Connection(self.endpoint)
        return self._connection

    async def _open_session(self) -> Session:
        attempt, _ = self._not_opened
        async with self._opening_session:
            if self._session is not None and not self._session.closed:
                return self._session
            attempts, failure = self._not_opened
            if attempts != attempt and failure is not None:
                # Another call has tried while this one waited: the calls of an outage do not wait in a line for it.
                raise copy.copy(failure)
            lost, self._session = self._session, None
            if lost is not None:
                await lost.close()
            try:
                self._session = await self._new_session()
            except ServiceError as error:
                self._not_opened = (attempts + 1, error)
                raise
            self._not_opened = (attempts, None)
            return self._session

    async def _new_session(self) -> Session:
        connection = self._connect()
        await connection.ready()
        session = Session(await open_stream(connection))
        if self._closed:
            await session.close()
            raise client_closed()
        return session
