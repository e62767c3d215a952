"""An AWS Lambda endpoint as a target: `Invoke` of its HTTP API, over connections that are kept."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, urlsplit

from lambent.errors import UnavailableError
from lambent.payloads import function_error
from lambent_load.signature import credentials_from, signed_headers
from lambent_load.tally import LONGEST_NAME, NO_ANSWER, Answer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from lambent_load.targets import Request

_CONNECT_TIMEOUT_S = 10.0

_MOST_BODY_BYTES = 8 * 1024 * 1024
"""AWS Lambda quotas: an answer has 6 MB."""


class HttpError(Exception):
    """What came is no answer of HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Response:
    """One answer.

    Attributes:
        status: For example 200.
        headers: By lower-case name.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpTarget:
    """An endpoint. Requests are signed when the environment has AWS's credentials. Nothing is sent twice.

    Args:
        url: `http://` or `https://`, host and port; a path goes before the API's.
        timeout_s: Of each call.
        environ: Usually `os.environ`.
    """

    def __init__(self, url: str, timeout_s: float, environ: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._url = url
        self._host, self._netloc, self._prefix = parts.hostname, parts.netloc, parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._credentials = credentials_from(environ, self._host)
        # As many as calls have been in flight at once, which --max-in-flight bounds.
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                self._idle.append(await self._connect())
        except (OSError, TimeoutError) as error:
            raise UnavailableError(f"nothing answers at {self._url}: {error or 'no connection in time'}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, writer in self._idle:
            writer.close()
        for _, writer in self._idle:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def call(self, request: Request) -> Answer:
        """Invoke a function once."""
        message = self._message(request, dt.datetime.now(dt.UTC))
        try:
            async with asyncio.timeout(self._timeout_s):
                return answer_of(await self._exchange(message))
        except TimeoutError:
            return NO_ANSWER
        except (OSError, EOFError, asyncio.LimitOverrunError, HttpError) as error:
            return Answer(type(error).__name__)

    async def _exchange(self, message: bytes) -> Response:
        reader, writer = await self._take()
        try:
            writer.write(message)
            await writer.drain()
            response = await read_response(reader)
        except BaseException:
            writer.close()  # The answer may still come: nobody else must get it.
            raise
        if response.headers.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return response

    async def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await self._connect()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._host, self._port, ssl=self._tls)

    def _message(self, request: Request, now: dt.datetime) -> bytes:
        # Whoever gives an ARN gives it to AWS, which takes one with its qualifier in the path.
        whole = request.function.startswith("arn:")
        name, _, qualifier = (request.function, "", "") if whole else request.function.partition(":")
        path = f"{self._prefix}/2015-03-31/functions/{quote(name, safe='')}/invocations"
        query = f"Qualifier={quote(qualifier, safe='')}" if qualifier else ""
        # The log's tail has a REPORT line, and that alone tells a cold start.
        headers = {"host": self._netloc, "x-amz-invocation-type": "RequestResponse", "x-amz-log-type": "Tail"}
        if self._credentials is not None:
            headers |= signed_headers(
                self._credentials, now, path=path, query=query, headers=headers, body=request.payload
            )
        headers["content-length"] = str(len(request.payload))
        lines = [
            f"POST {path}{'?' * bool(query)}{query} HTTP/1.1",
            *(f"{name}: {text}" for name, text in headers.items()),
        ]
        return "\r\n".join([*lines, "\r\n"]).encode() + request.payload


def answer_of(response: Response) -> Answer:
    """Read what became of a call (AWS Lambda API, `Invoke`)."""
    if response.status != 200:
        kind = response.headers.get("x-amzn-errortype", "").partition(":")[0]
        return Answer(f"HTTP {response.status} {kind[:LONGEST_NAME]}".rstrip(), throttled=response.status == 429)
    failed = ""
    if "x-amz-function-error" in response.headers:
        failure = function_error(response.body, request_id="", log_tail=b"")
        failed = f"FunctionError {failure.error_type[:LONGEST_NAME]}"
    log = b""
    with contextlib.suppress(ValueError):  # No log, no word of a cold start.
        log = base64.b64decode(response.headers.get("x-amz-log-result", ""))
    return Answer(failed, cold_start=b"\tInit Duration:" in log)


async def read_response(reader: asyncio.StreamReader) -> Response:
    """Read one answer of HTTP/1.1 (RFC 9112), whose length is told or which comes in chunks.

    Raises:
        HttpError: It is something else, or larger than an answer can be.
        EOFError, OSError, asyncio.LimitOverrunError: The connection ended, or has a head of more than 64 KiB.
    """
    status_line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    version, _, rest = status_line.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise HttpError(f"not a status line: {status_line[:80]!r}")
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in fields)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(_length(headers.get("content-length", "0"), 10))
    return Response(int(rest[:3]), headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := _length((await reader.readuntil(b"\r\n")).split(b";")[0].decode("latin-1"), 16, len(body)):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # Trailers say nothing of a call.
    return bytes(body)


def _length(text: str, base: int, before: int = 0) -> int:
    try:
        length = int(text.strip(), base)
    except ValueError as error:
        raise HttpError(f"not a length: {text[:80]!r}") from error
    if not 0 <= length <= _MOST_BODY_BYTES - before:
        raise HttpError(f"a body of {length} bytes")
    return length
