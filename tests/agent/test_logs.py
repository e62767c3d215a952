"""Lines, tails, batches and drops of an environment's log."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from tests.nats_server import nats_server

from lambent.conversion import log_events
from lambent.v1 import frame_pb2, log_pb2
from lambent_common.log_streams import MAX_BATCH_BYTES
from lambent_common.nats import connect_nats
from lambent_node_agent.logs import platform_lines
from lambent_node_agent.logs.budget import IngestBudget
from lambent_node_agent.logs.environment_log import TAIL_BYTES, Batch, Drops, EnvironmentLog, log_stream_name
from lambent_node_agent.logs.line_assembler import MAX_LINE_BYTES, MAX_OUTPUT_BYTES, LineAssembler, lines_in
from lambent_node_agent.logs.publisher import LogPublisher


class Sink:
    """Keeps batches, or has no room."""

    def __init__(self) -> None:
        self.batches: list[log_pb2.LogBatch] = []
        self.sizes: list[int] = []
        self.offered: list[Batch] = []
        self.full = False
        self.arrived = asyncio.Event()

    def offer(self, batch: Batch) -> bool:
        """Take a batch, or refuse it."""
        if self.full:
            return False
        self.offered.append(batch)
        self.batches.append(log_pb2.LogBatch.FromString(batch.payload))
        self.sizes.append(len(batch.payload))
        self.arrived.set()
        return True

    def lose(self) -> None:
        """Lose the last batch on its way, as the publisher does."""
        batch = self.offered[-1]
        batch.drops.add(batch.events, batch.size_bytes)

    def messages(self) -> list[str]:
        """All lines so far."""
        return [event.message for batch in self.batches for event in log_events(batch)]


def make(sink: Sink, budget: IngestBudget | None = None) -> EnvironmentLog:
    return EnvironmentLog(stream_name="s", subject="subject", node_id="n", sink=sink, budget=budget or IngestBudget())


@given(st.lists(st.binary(max_size=30) | st.just(b"\n") | st.just(b"a\nb\n"), max_size=20))
def test_lines_do_not_depend_on_how_the_output_arrives(pieces: list[bytes]) -> None:
    """A pipe cuts output anywhere."""
    assembler = LineAssembler()
    blocks = [block for piece in pieces for block in assembler.feed(piece)] + assembler.flush()
    lines = [line for block in blocks for line in block.split(b"\n")]
    assert sum(map(lines_in, blocks)) == len(lines)
    whole = b"".join(pieces)
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert lines == expected


def test_a_line_without_end_is_cut_at_its_bound() -> None:
    """A function that never writes a newline must not fill the agent's memory."""
    assembler = LineAssembler()
    lines: list[bytes] = []
    for _ in range(20):
        lines += assembler.feed(b"x" * 65_000)
    lines += assembler.flush()
    assert max(map(len, lines)) <= MAX_LINE_BYTES
    assert sum(map(len, lines)) == 20 * 65_000


def test_a_long_line_in_single_bytes_costs_what_it_brings() -> None:
    """A function that writes byte by byte, and no newline, must not have the agent copy the line at each byte."""
    assembler = LineAssembler()
    for _ in range(MAX_LINE_BYTES // 2 // MAX_OUTPUT_BYTES):
        assembler.feed(b"x" * MAX_OUTPUT_BYTES)
    before_s = time.process_time()
    for _ in range(MAX_LINE_BYTES // 2):
        assert not assembler.feed(b"y")
    assert time.process_time() - before_s < 1.0
    assert len(assembler.feed(b"z\n")) == 2


async def test_the_tail_is_the_last_4_kib_of_one_invocation() -> None:
    """LogType=Tail promises 4 KB, and nothing of another invocation."""
    log = make(Sink())
    log.output(b"before\n")
    log.begin_tail()
    log.platform("START")
    log.output(b"".join(b"line %d\n" % number for number in range(2000)))
    log.platform("END")
    tail = log.take_tail()
    assert len(tail) == TAIL_BYTES
    assert tail.endswith(b"line 1999\nEND\n")
    log.output(b"after\n")
    assert log.take_tail() == b""
    log.close()


async def test_lines_leave_within_the_delay_without_being_asked() -> None:
    """Somebody watches `logs -f`."""
    sink = Sink()
    log = make(sink)
    log.output(b"hello\n")
    async with asyncio.timeout(5):
        await sink.arrived.wait()
    assert sink.messages() == ["hello"]
    log.close()


async def test_no_batch_is_over_the_streams_limit() -> None:
    """JetStream refuses a larger message whole. A byte that is no text grows to three."""
    sink = Sink()
    log = make(sink)
    for _ in range(30):
        log.output(b"\xff" * 60_000 + b"\n")
    for _ in range(MAX_LINE_BYTES // MAX_OUTPUT_BYTES):
        log.output(b"\xff" * MAX_OUTPUT_BYTES)
    log.output(b"\n")
    log.close()
    assert max(sink.sizes) < MAX_BATCH_BYTES
    assert len(sink.messages()) == 31


async def test_output_over_the_budget_is_dropped_and_counted() -> None:
    """A flood must not cost the others their logs, and its author has to see that lines are missing."""
    sink = Sink()
    log = make(sink, IngestBudget(rate_bytes_per_s=0.001, burst_bytes=1000))
    for first in range(0, 100, 5):
        log.output(b"".join(b"%099d\n" % number for number in range(first, first + 5)))
    log.platform("END")
    log.close()
    messages = sink.messages()
    assert messages[-1] == "END", "the platform's own lines are not the function's to use up"
    assert messages[1:-1] == [f"{number:099}" for number in range(5)]
    line = json.loads(messages[0])
    assert line["type"] == "platform.logsDropped"
    assert (line["record"]["droppedRecords"], line["record"]["droppedBytes"]) == (95, 95 * 99)


PIECES = st.lists(st.binary(max_size=30) | st.just(b"\n") | st.just(b"a\nb\n\n"), max_size=20)


@given(PIECES, st.integers(0, 1000), st.booleans())
def test_every_line_arrives_or_is_counted(pieces: list[bytes], burst_bytes: int, lose_some: bool) -> None:
    """However output is cut, and whatever of it has room: what is missing is exactly what is said to be dropped."""

    async def run() -> None:
        sink = Sink()
        log = make(sink, IngestBudget(rate_bytes_per_s=1e-9, burst_bytes=burst_bytes))
        for number, piece in enumerate(pieces):
            log.output(piece)
            if lose_some and number % 3 == 0:
                sink.full = not sink.full
                log.flush()
        sink.full = False
        log.end_output()
        log.platform("END")
        log.close()
        whole = b"".join(pieces).split(b"\n")
        lines = whole[:-1] if not whole[-1] else whole
        *events, end = [event for batch in sink.batches for event in batch.events]
        assert end.message == "END"
        dropped = [json.loads(event.message)["record"] for event in events if '"platform.logsDropped"' in event.message]
        events = [event for event in events if '"platform.logsDropped"' not in event.message]
        arrived = sum(max(1, event.lines) for event in events)
        assert arrived + sum(record["droppedRecords"] for record in dropped) == len(lines)
        lost_bytes = sum(record["droppedBytes"] for record in dropped)
        assert lost_bytes <= sum(map(len, lines))
        if not arrived:
            assert lost_bytes == sum(map(len, lines))

    asyncio.run(run())


async def test_lines_that_were_read_together_travel_together() -> None:
    """A read of 64 KiB may hold as many lines; each is work for who reads the log, and none for the agent."""
    sink = Sink()
    log = make(sink)
    log.output(b"a\n\nb\nc")
    log.platform("one event\nof two lines")
    log.close()
    [batch] = sink.batches
    assert [(event.message, event.lines) for event in batch.events] == [
        ("a\n\nb", 3),
        ("one event\nof two lines", 0),
        ("c", 0),
    ]
    assert sink.messages() == ["a", "", "b", "one event\nof two lines", "c"]


async def test_a_flood_of_empty_lines_costs_what_its_bytes_cost() -> None:
    """16 MiB of them: over the budget or within, the agent may not spend time on each."""
    log = make(Sink())
    before_s = time.process_time()
    for _ in range(256):
        log.output(b"\n" * MAX_OUTPUT_BYTES)
    assert time.process_time() - before_s < 0.5
    log.close()


async def test_a_full_buffer_drops_and_counts_but_never_waits() -> None:
    """JetStream away: invocations go on."""
    sink = Sink()
    log = make(sink)
    sink.full = True
    log.output(b"lost\n")
    log.flush()
    sink.full = False
    log.output(b"kept\n")
    log.close()
    dropped = json.loads(sink.messages()[0])["record"]
    assert (dropped["droppedRecords"], dropped["droppedBytes"]) == (1, len("lost"))
    assert sink.messages()[1:] == ["kept"]


async def test_what_a_lost_batch_said_was_lost_is_not_forgotten() -> None:
    """During an outage batches are lost one after the other; the next one that arrives tells of all their lines."""
    sink = Sink()
    log = make(sink)
    for line in (b"first\n", b"second\n"):
        log.output(line)
        log.flush()
        sink.lose()
    log.output(b"arrives\n")
    log.close()
    dropped = json.loads(sink.messages()[-2])["record"]
    assert (dropped["droppedRecords"], dropped["droppedBytes"]) == (2, len("firstsecond"))


async def test_a_batch_that_cannot_be_published_is_counted_by_its_lines() -> None:
    """Bytes on the wire are nothing that the author of the lines knows."""
    drops = Drops()
    async with nats_server() as server:
        connection = await connect_nats([server.url], server.credentials, "test")
        publisher = LogPublisher(connection.jetstream())
        publishing = asyncio.create_task(publisher.run())
        await connection.close()
        assert publisher.offer(Batch("lambent.v1.logs.0.default.f", b"payload", 3, 42, drops))
        async with asyncio.timeout(20):
            await publisher.wait_until_idle()
        publishing.cancel()
        await asyncio.wait([publishing])
    assert drops.take() == (3, 42)


async def test_what_was_lost_last_is_told_when_the_log_is_closed() -> None:
    """No line may follow: an environment that has ended says nothing more."""
    sink = Sink()
    log = make(sink)
    log.output(b"lost\n")
    sink.full = True
    log.flush()
    sink.full = False
    log.close()
    [line] = sink.messages()
    assert json.loads(line)["record"]["droppedRecords"] == 1


def test_the_budget_refills_with_time() -> None:
    """A burst is forgiven after a while."""
    budget = IngestBudget(rate_bytes_per_s=10, burst_bytes=100)
    assert budget.take("f", 100, 0.0)
    assert not budget.take("f", 1, 0.0)
    assert budget.take("g", 100, 0.0), "budgets are each function's own"
    assert budget.take("f", 50, 5.0)


def test_init_start_has_the_shape_of_the_contract() -> None:
    """Tools parse it."""
    assert re.fullmatch(
        r"INIT_START Runtime Version: python:3\.11\.v1\t"
        r"Runtime Version ARN: arn:aws:lambda:eu-test-1::runtime:[0-9a-f]{64}",
        platform_lines.init_start("python3.11", "eu-test-1"),
    )


def test_a_cold_start_has_a_line_made_like_report() -> None:
    """REPORT is AWS's to the byte, so the phases have a line of their own; readers split both in the same way."""
    phases = frame_pb2.ColdStartPhases(
        queue_us=10, placement_us=520, fetch_code_us=0, sandbox_us=1_000, runtime_us=1_234, init_us=2_345_678
    )
    assert platform_lines.cold_start("id-1", phases) == (
        "COLD_START RequestId: id-1\tQueue: 0.01 ms\tPlacement: 0.52 ms\tFetch Code: 0.00 ms\t"
        "Sandbox: 1.00 ms\tRuntime: 1.23 ms\tInit: 2345.68 ms\t"
    )


def test_log_stream_has_awss_name() -> None:
    """YYYY/MM/DD/[version]<32 hex digits>."""
    name = log_stream_name(datetime(2024, 2, 3, tzinfo=UTC), "$LATEST", "01234567-89ab-4def-8123-456789abcdef")
    assert name == "2024/02/03/[$LATEST]0123456789ab4def8123456789abcdef"
