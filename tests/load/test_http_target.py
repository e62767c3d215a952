"""An AWS Lambda endpoint as a target: what is sent, signed and read, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.responses import StreamingResponse
from starlette.routing import Route
from tests import cluster
from tests.cli.conftest import Run

from lambent.errors import UnavailableError
from lambent_load.http_target import HttpError, HttpTarget, read_response
from lambent_load.signature import Credentials, credentials_from, signed_headers
from lambent_load.tally import Answer
from lambent_load.targets import Request

PATIENCE_S = 20
REPORT = b"START\nREPORT RequestId: 1\tDuration: 1.00 ms\tInit Duration: 30.00 ms\t\n"


@dataclass
class Endpoint:
    """A server with AWS's route.

    Attributes:
        answer: What it gives to a call.
        seen: The calls, with their bodies.
        peers: Connections they came on.
    """

    url: str = ""
    answer: Callable[[], HttpResponse] = lambda: HttpResponse(b"null")
    seen: list[tuple[HttpRequest, bytes]] = field(default_factory=list)
    peers: set[object] = field(default_factory=set)

    async def invoke(self, request: HttpRequest) -> HttpResponse:
        """Keep the call and answer it."""
        self.seen.append((request, await request.body()))
        self.peers.add(request.client)
        return self.answer()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    """Serve on a free port for one test."""
    found = Endpoint()
    route = Route("/2015-03-31/functions/{name}/invocations", found.invoke, methods=["POST"])
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=[route]), port=0, log_level="error", lifespan="off"))
    listening = socket.create_server(("127.0.0.1", 0))
    found.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    serving = asyncio.create_task(server.serve([listening]))
    async with asyncio.timeout(PATIENCE_S):
        yield found
    server.should_exit = True
    await serving


def target_of(endpoint: Endpoint, environ: dict[str, str] | None = None) -> HttpTarget:
    """One that waits for 10 s."""
    return HttpTarget(endpoint.url, 10.0, environ or {})


async def test_calls_are_what_aws_clients_send(endpoint: Endpoint) -> None:
    """Path, qualifier, type and event; the connection is kept."""
    async with target_of(endpoint) as target:
        for _ in range(3):
            assert await target.call(Request("hello:live", b'{"a": 1}')) == Answer()
    request, body = endpoint.seen[0]
    assert request.url.path == "/2015-03-31/functions/hello/invocations"
    assert request.query_params["Qualifier"] == "live"
    assert request.headers["x-amz-invocation-type"] == "RequestResponse"
    assert "authorization" not in request.headers
    assert body == b'{"a": 1}'
    assert len(endpoint.peers) == 1


async def test_arn_is_sent_whole(endpoint: Endpoint) -> None:
    """Its colons are not those before a qualifier."""
    arn = "arn:aws:lambda:us-east-1:123456789012:function:hello:live"
    async with target_of(endpoint) as target:
        assert await target.call(Request(arn, b"")) == Answer()
    ((request, _),) = endpoint.seen
    assert request.path_params["name"] == arn
    assert not request.query_params


async def test_calls_in_flight_have_a_connection_each(endpoint: Endpoint) -> None:
    """None waits for another."""
    async with target_of(endpoint) as target:
        answers = await asyncio.gather(*(target.call(Request("hello", b"")) for _ in range(5)))
    assert answers == [Answer()] * 5
    assert 1 < len(endpoint.peers) <= 5


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (HttpResponse(b"1", headers={"X-Amz-Log-Result": base64.b64encode(REPORT).decode()}), Answer(cold_start=True)),
        (HttpResponse(b"1", headers={"X-Amz-Log-Result": "?"}), Answer()),
        (
            HttpResponse(json.dumps({"errorType": "KeyError"}), headers={"X-Amz-Function-Error": "Unhandled"}),
            Answer("FunctionError KeyError"),
        ),
        (
            HttpResponse(b"{}", 429, headers={"x-amzn-ErrorType": "TooManyRequestsException:http://x"}),
            Answer("HTTP 429 TooManyRequestsException", throttled=True),
        ),
        (HttpResponse(b"", 502), Answer("HTTP 502")),
    ],
)
async def test_answers_are_read_as_aws_means_them(endpoint: Endpoint, response: HttpResponse, answer: Answer) -> None:
    """Cold starts by the log's tail, the function's errors, throttles, and everything else by its status."""
    endpoint.answer = lambda: response
    async with target_of(endpoint) as target:
        assert await target.call(Request("hello", b"")) == answer


async def test_answer_in_chunks_is_read_whole(endpoint: Endpoint) -> None:
    """The next call on the connection finds its own."""
    endpoint.answer = lambda: StreamingResponse(iter([b"x" * 70_000, b"y"]))
    async with target_of(endpoint) as target:
        assert [await target.call(Request("hello", b"")) for _ in range(2)] == [Answer()] * 2
    assert len(endpoint.peers) == 1


async def test_nobody_there_is_an_error_at_the_start() -> None:
    """Before the first call."""
    with pytest.raises(UnavailableError, match=r"nothing answers at http://127\.0\.0\.1:1"):
        async with HttpTarget("http://127.0.0.1:1", 1.0, {}):
            raise AssertionError("it cannot be entered")


async def test_command_calls_an_endpoint(endpoint: Endpoint) -> None:
    """From a process of its own, and no cluster is looked for."""
    arguments = ("load", "hello", "--rate", "50", "--duration", "0.5s", "--target", endpoint.url, "-o", "json")
    found = json.loads((await asyncio.to_thread(cluster.lambent, *arguments)).stdout)
    assert (found["sent"], found["answered"]) == (25, 25)
    assert len(endpoint.seen) == 25


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://h:0", "http://h:x", "http://u:p@h", "http://h/?q", "h:1"]
)
def test_what_is_no_endpoint_is_refused(lambent: Run, url: str) -> None:
    """Before anything is sent; a password in a URL would end up in results."""
    ran = lambent("load", "hello", "--rate", "1", "--target", url)
    assert ran.code == 2
    assert "http(s)://HOST[:PORT]" in " ".join(ran.err.split())


async def read(answer: bytes) -> bytes:
    """Read the body of an answer as it stands on the wire."""
    reader = asyncio.StreamReader()
    reader.feed_data(answer)
    reader.feed_eof()
    return (await read_response(reader)).body


async def test_bodies_end_where_they_say() -> None:
    """By length or in chunks, with extensions and trailers."""
    assert await read(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc") == b"ab"
    assert (
        await read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=1\r\nab\r\n1\r\nc\r\n0\r\nT: 1\r\n\r\n")
        == b"abc"
    )
    assert await read(b"HTTP/1.1 204 No Content\r\n\r\n") == b""


@given(st.binary(max_size=64) | st.sampled_from([b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"]))
async def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    """By an error that counts as a failed call, whatever a server sends."""
    with pytest.raises((HttpError, EOFError, asyncio.LimitOverrunError)):
        await read(answer)


KEYS = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
NOW = dt.datetime(2015, 8, 30, 12, 36, tzinfo=dt.UTC)


def test_signature_is_that_of_awss_own_example() -> None:
    """Signature Version 4 test suite, `get-vanilla`."""
    signed = signed_headers(
        Credentials(*KEYS, session_token="", region="us-east-1", service="service"),
        NOW,
        method="GET",
        path="/",
        query="",
        headers={"host": "example.amazonaws.com"},
        body=b"",
    )
    assert signed["x-amz-date"] == "20150830T123600Z"
    assert signed["authorization"].endswith(
        "Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    )


async def test_requests_are_signed_where_there_are_credentials(endpoint: Endpoint) -> None:
    """Over what is really sent."""
    environ = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), KEYS, strict=True)) | {"AWS_SESSION_TOKEN": "t"}
    async with target_of(endpoint, environ) as target:
        await target.call(Request("hello:1", b"{}"))
    ((request, body),) = endpoint.seen
    headers = {name: request.headers[name] for name in ("host", "x-amz-invocation-type", "x-amz-log-type")}
    sent_at = dt.datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    credentials = credentials_from(environ, "127.0.0.1")
    assert credentials is not None
    expected = signed_headers(
        credentials, sent_at, path=request.url.path, query=request.url.query, headers=headers, body=body
    )
    assert request.headers["authorization"] == expected["authorization"]
    assert "x-amz-security-token" in request.headers["authorization"]


def test_region_is_the_endpoints_or_the_environments() -> None:
    """As AWS's own tools have it."""
    keys = dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), KEYS, strict=True))

    def region(host: str, **environ: str) -> str:
        found = credentials_from(keys | environ, host)
        assert found is not None
        return found.region

    assert region("lambda.eu-west-1.amazonaws.com", AWS_REGION="us-west-2") == "eu-west-1"
    assert region("127.0.0.1", AWS_REGION="us-west-2") == "us-west-2"
    assert region("127.0.0.1") == "us-east-1"
    assert credentials_from({}, "127.0.0.1") is None
    found = credentials_from(keys, "127.0.0.1")
    assert KEYS[1] not in repr(found)
