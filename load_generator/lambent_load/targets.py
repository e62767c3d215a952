"""Where calls go: a cluster over one of the SDK's sessions, or nowhere; an endpoint over HTTP is in `http_target`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from lambent.connection import Connection
from lambent.endpoint import discover
from lambent.errors import ServiceError, ThrottledError
from lambent.opening import make_opening
from lambent.payloads import function_error
from lambent.rpc_errors import from_frame
from lambent.session import Session
from lambent.session_stream import open_stream
from lambent_load.http_target import HttpTarget
from lambent_load.tally import LONGEST_NAME, NO_ANSWER, Answer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from lambent.endpoint import Endpoint
    from lambent.v1 import invocation_pb2

_GRACE_S = 2.0
"""How much longer than the cluster the generator waits, so that the cluster's own answer comes first."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call to make.

    Attributes:
        function: Name of the function, with or without a qualifier.
        payload: The event.
    """

    function: str
    payload: bytes


class Target(Protocol):
    """What calls are made of. An asynchronous context manager, entered before the first call."""

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ServiceError: It cannot be reached.
        """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Disconnect."""

    async def call(self, request: Request) -> Answer:
        """Make one call, never again by itself; gives how it ended, whatever went wrong."""


class NullTarget:
    """Answers at once: what a run against it takes is the generator's own cost."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    async def call(self, request: Request) -> Answer:  # noqa: ARG002 - nobody reads it
        """Give an answer at the loop's next turn, when that of a cluster could come at the earliest."""
        await asyncio.sleep(0)
        return Answer(start_delay_s=0.0)


class ClusterTarget:
    """A cluster, over one session. It sends nothing twice: a throttle that a client retries is a throttle here.

    Args:
        endpoint: The cluster.
        timeout_s: Of each call, as the cluster is told.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._openings: dict[str, invocation_pb2.InvocationOpen] = {}
        self._opening_session: asyncio.Task[Session | ServiceError] | None = None

    async def __aenter__(self) -> Self:
        self._connection = Connection(self._endpoint)
        session = await self._open_session()
        if isinstance(session, ServiceError):
            await self._connection.close()
            raise session
        self._session = session
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opening_session is not None:
            self._opening_session.cancel()
            await asyncio.wait((self._opening_session,))
        await self._session.close()
        await self._connection.close()

    async def call(self, request: Request) -> Answer:
        """Invoke a function once."""
        opening = self._openings.get(request.function)
        if opening is None:
            opening = self._openings[request.function] = make_opening("", request.function, "", self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s + _GRACE_S):
                session = self._session if not self._session.closed else await self._next_session()
                # All calls share the opening: the session copies it before it waits for anything.
                opening.complete = False  # It was the last one's.
                _, end = await session.invoke(opening, request.payload)
        except ServiceError as error:
            return _failed(error)
        except TimeoutError:
            return NO_ANSWER
        if end.HasField("service_error"):
            return _failed(from_frame(end.service_error))
        report = end.report
        failed = ""
        if end.function_error:
            failure = function_error(end.error_payload, request_id="", log_tail=b"")
            failed = f"FunctionError {failure.error_type[:LONGEST_NAME]}"
        return Answer(failed, cold_start=report.cold_start, start_delay_s=report.queue_us / 1e6)

    async def _next_session(self) -> Session:
        """Open a session in place of the lost one; all calls that need it meanwhile wait for the same attempt."""
        opening = self._opening_session
        if opening is None:
            opening = self._opening_session = asyncio.create_task(self._replace_session())
        opened = await asyncio.shield(opening)
        if self._opening_session is opening:
            self._opening_session = None
        if isinstance(opened, ServiceError):
            raise opened
        return opened

    async def _replace_session(self) -> Session | ServiceError:
        await self._session.close()
        opened = await self._open_session()
        if isinstance(opened, Session):
            self._session = opened
        return opened

    async def _open_session(self) -> Session | ServiceError:
        try:
            await self._connection.ready()
            return Session(await open_stream(self._connection))
        except ServiceError as error:
            return error


def _failed(error: ServiceError) -> Answer:
    name = type(error).__name__
    if reason := error.details.get("Reason"):
        name = f"{name} {reason}"
    return Answer(name, throttled=isinstance(error, ThrottledError))


def make_target(kind: str, endpoint: str, data_dir: str | None, timeout_s: float, environ: Mapping[str, str]) -> Target:
    """Give the target of a plan: `null`, `cluster` as the SDK finds it, or the URL of an AWS Lambda endpoint.

    Raises:
        ServiceError: No cluster is named anywhere.
    """
    if kind == "null":
        return NullTarget()
    if kind != "cluster":
        return HttpTarget(kind, timeout_s, environ)
    return ClusterTarget(discover(endpoint=endpoint, data_dir=data_dir, environ=environ), timeout_s)
