"""TailLogs over real log streams: order, `since`, `follow`, and an outage in between."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from tests.nats_server import NatsServer, nats_server

from lambent.errors import FunctionNotFoundError, InvalidParameterError, ThrottledError
from lambent.v1 import log_pb2
from lambent_common.log_streams import SHARDS, ensure_log_streams, log_subject, shard_of, stream_name
from lambent_scheduler.functions.names import Naming
from lambent_scheduler.functions.table import FunctionTable
from lambent_scheduler.logs.service import LogServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.js import JetStreamContext

NOW_NS = time.time_ns()
SECOND_NS = 1_000_000_000


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with nats_server() as running:
        yield running


@pytest.fixture
async def js(server: NatsServer) -> AsyncIterator[JetStreamContext]:
    async with server.connect() as client:
        context = client.jetstream()
        await ensure_log_streams(context)
        yield context


@pytest.fixture
def service(js: JetStreamContext) -> LogServicer:
    naming = Naming("eu-test-1")
    return LogServicer(js, naming, FunctionTable(naming))


async def publish(js: JetStreamContext, name: str, *messages: str, age_s: int = 0) -> None:
    batch = log_pb2.LogBatch(log_stream="2026/01/01/[$LATEST]0", node_id="n1")
    for message in messages:
        batch.events.add(message=message).event_time.FromNanoseconds(NOW_NS - age_s * SECOND_NS)
    await js.publish(log_subject("default", name), batch.SerializeToString())


def request(name: str = "f", *, since_s: int | None = None, follow: bool = False) -> log_pb2.TailLogsRequest:
    made = log_pb2.TailLogsRequest(function_name=name, follow=follow)
    if since_s is not None:
        made.since.seconds = since_s
    return made


async def read(service: LogServicer, wanted: log_pb2.TailLogsRequest) -> list[str]:
    return [event.message async for reply in service.TailLogs(wanted, None) for event in reply.batch.events]


async def test_log_is_given_oldest_first_and_ends(js: JetStreamContext, service: LogServicer) -> None:
    """More than one fetch's worth, and none of another function in the same shard."""
    other = next(f"g{n}" for n in range(100) if shard_of("default", f"g{n}") == shard_of("default", "f"))
    for number in range(40):
        await publish(js, "f", f"{number}a", f"{number}b")
        await publish(js, other, "other")
    lines = await read(service, request())
    assert lines == [f"{number}{letter}" for number in range(40) for letter in "ab"]
    assert await read(service, request("arn:aws:lambda:eu-test-1:default:function:f")) == lines


async def test_since_leaves_out_older_lines(js: JetStreamContext, service: LogServicer) -> None:
    """By the time of the line, not of the batch."""
    await publish(js, "f", "old", age_s=600)
    await publish(js, "f", "new", age_s=10)
    assert await read(service, request(since_s=300)) == ["new"]
    assert await read(service, request(since_s=3600)) == ["old", "new"]
    wrong = request()
    wrong.since.seconds = -1
    with pytest.raises(InvalidParameterError, match="negative"):
        await read(service, wrong)


async def test_unreadable_message_does_not_hide_the_others(js: JetStreamContext, service: LogServicer) -> None:
    """One bad message must not make a log unreadable for two weeks."""
    await publish(js, "f", "before")
    await js.publish(log_subject("default", "f"), b"\xff\xff\xff")
    await publish(js, "f", "after")
    assert await read(service, request()) == ["before", "after"]


async def test_unknown_function_without_a_log_is_said_so(js: JetStreamContext, service: LogServicer) -> None:
    """A misspelt name must not wait for ever; the log of a deleted function is still there."""
    with pytest.raises(FunctionNotFoundError, match="function:typo"):
        await read(service, request("typo", follow=True))
    await publish(js, "deleted", "last words")
    assert await read(service, request("deleted")) == ["last words"]


async def test_follow_gives_what_is_added_also_after_a_crash_of_the_server(
    server: NatsServer, js: JetStreamContext, service: LogServicer
) -> None:
    """The reader's place is kept by the reader: nothing twice, nothing left out."""
    await publish(js, "f", "1")
    replies = service.TailLogs(request(follow=True), None)

    async def following() -> str:
        return (await anext(replies)).batch.events[0].message

    async with asyncio.timeout(60):
        assert await following() == "1"
        waiting = asyncio.create_task(following())
        await publish(js, "f", "2")
        assert await waiting == "2"
        await server.kill()
        await server.start()
        waiting = asyncio.create_task(following())
        async with server.connect("publisher") as client:
            await publish(client.jetstream(), "f", "3")
            await publish(client.jetstream(), "f", "4")
            assert [await waiting, await following()] == ["3", "4"]
    await replies.aclose()
    info = await js.stream_info(stream_name(shard_of("default", "f")))
    assert info.state.consumer_count == 0


async def test_readers_are_bounded(js: JetStreamContext, service: LogServicer) -> None:
    """Each costs memory here and a consumer there; one that ends makes room."""
    await publish(js, "f", "1")
    readers = [service.TailLogs(request(follow=True), None) for _ in range(64)]
    await asyncio.gather(*(anext(reader) for reader in readers))
    with pytest.raises(ThrottledError):
        await read(service, request())
    await asyncio.gather(*(reader.aclose() for reader in readers))
    assert await read(service, request()) == ["1"]


async def test_streams_are_bounded_and_can_be_made_again(js: JetStreamContext) -> None:
    """Every daemon ensures them at its start; a flood of logs must not fill the disk."""
    await asyncio.gather(*(ensure_log_streams(js) for _ in range(4)))
    for shard in range(SHARDS):
        config = (await js.stream_info(stream_name(shard))).config
        assert (config.max_bytes or 0) > 0
        assert (config.max_age or 0) > 0
        assert config.max_msgs_per_subject > 0
