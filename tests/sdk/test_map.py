"""Many calls at once: bounded, lazy, in order or as they come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.sdk.service import Opening, Service, echo, failing

import lambent
from lambent.map_run import MapRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from lambent import AsyncClient


async def test_map_gives_answers_in_the_order_of_the_payloads(service: Service, client: AsyncClient) -> None:
    """Whatever order they end in: the first call here ends last of its window."""
    others = asyncio.Event()

    async def first_is_slow(opening: Opening, body: bytes) -> bytes:
        if body == b"0":
            await others.wait()
        elif body == b"7":
            others.set()
        return body

    service.handlers["slow"] = first_is_slow
    async with asyncio.timeout(20):
        answers = [result.json() async for result in client.map("slow", range(50), concurrency=8)]
    assert answers == list(range(50))


async def test_unordered_map_does_not_wait_for_a_slow_call(service: Service, client: AsyncClient) -> None:
    """A progress display and a reduction want what is there."""
    others = asyncio.Event()

    async def first_is_slow(opening: Opening, body: bytes) -> bytes:
        if body == b"0":
            await others.wait()
        return body

    service.handlers["slow"] = first_is_slow
    answers: list[int] = []
    async with asyncio.timeout(20):
        async for result in client.map("slow", range(10), concurrency=2, ordered=False):
            answers.append(result.json())
            if len(answers) == 9:
                others.set()
    assert answers[-1] == 0
    assert sorted(answers) == list(range(10))


async def test_calls_in_flight_stay_within_the_bound(service: Service, client: AsyncClient) -> None:
    """The cluster is asked for what the caller said and no more."""
    service.handlers["echo"] = echo
    answers = [result async for result in client.map("echo", range(100), concurrency=5)]
    assert len(answers) == 100
    assert 1 <= service.most_in_flight <= 5


async def test_endless_payloads_are_taken_as_calls_start(service: Service, client: AsyncClient) -> None:
    """A map over a generator holds a window of it, not all of it."""
    service.handlers["echo"] = echo
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    answers = client.map("echo", endless(), concurrency=4)
    first = [await anext(answers) for _ in range(10)]
    await answers.aclose()  # type: ignore[attr-defined]  # an async generator, which the type does not promise
    assert [result.json() for result in first] == list(range(1, 11))
    assert taken <= 10 + 4 * 4 + 4


async def test_progress_counts_every_answer(service: Service, client: AsyncClient) -> None:
    """With the total where the payloads have a length."""
    service.handlers["echo"] = echo
    seen: list[tuple[int, int | None]] = []
    async for _ in client.map("echo", [1, 2, 3], on_progress=lambda done, total: seen.append((done, total))):
        pass
    assert seen == [(1, 3), (2, 3), (3, 3)]


async def test_first_failure_ends_the_map_and_cancels_the_rest(service: Service, client: AsyncClient) -> None:
    """Nothing runs on for a caller that has stopped listening."""

    async def third_fails(opening: Opening, body: bytes) -> bytes:
        if body == b"3":
            raise failing("ValueError", "three")
        if int(body) > 3:
            await asyncio.Event().wait()
        return body

    service.handlers["f"] = third_fails
    answers: list[int] = []
    async with asyncio.timeout(20):
        with pytest.raises(lambent.FunctionError, match="three"):
            await _collect(client.map("f", range(20), concurrency=6), answers)
        await service.cancelled.wait()
    assert answers == [0, 1, 2]


async def test_errors_can_stand_in_the_place_of_answers(service: Service, client: AsyncClient) -> None:
    """One bad input of a million must not cost the others."""

    async def odd_fails(opening: Opening, body: bytes) -> bytes:
        if int(body) % 2:
            raise failing("ValueError", body.decode())
        return body

    service.handlers["f"] = odd_fails
    outcomes = [outcome async for outcome in client.map("f", range(6), return_errors=True)]
    assert [isinstance(outcome, lambent.FunctionError) for outcome in outcomes] == [False, True] * 3


async def test_throttled_map_waits_instead_of_failing(service: Service, client: AsyncClient) -> None:
    """A function with little concurrency is mapped over slowly, not in vain."""
    running = 0
    throttled = asyncio.Event()

    async def two_at_once(opening: Opening, body: bytes) -> bytes:
        nonlocal running
        if running == 2:
            throttled.set()
            raise lambent.ThrottledError("Rate Exceeded.")
        running += 1
        await throttled.wait()
        running -= 1
        return body

    service.handlers["f"] = two_at_once
    async with asyncio.timeout(60):
        answers = [result.json() async for result in client.map("f", range(12), concurrency=4)]
    assert answers == list(range(12))


async def test_failure_of_the_payloads_themselves_reaches_the_caller(service: Service, client: AsyncClient) -> None:
    """After the answers of what came before."""
    service.handlers["echo"] = echo

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("disk on fire")

    answers: list[int] = []
    with pytest.raises(OSError, match="disk on fire"):
        await _collect(client.map("echo", broken()), answers)
    assert answers == [1]


class _FailsOnce:
    """An endless iterable that would go on after its failure, unlike a generator."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> _FailsOnce:
        return self

    def __next__(self) -> int:
        self.taken += 1
        if self.taken == 20:
            raise OSError("disk on fire")
        return self.taken


async def test_failure_of_endless_payloads_ends_the_map(service: Service, client: AsyncClient) -> None:
    """Also where the iterator would go on: a hole in the answers is no answer."""
    service.handlers["echo"] = echo
    payloads = _FailsOnce()
    answers: list[int] = []
    async with asyncio.timeout(20):
        with pytest.raises(OSError, match="disk on fire"):
            await _collect(client.map("echo", payloads, concurrency=4), answers)
    assert answers == list(range(1, 20))
    assert payloads.taken == 20


async def test_failure_of_on_progress_reaches_the_caller(service: Service, client: AsyncClient) -> None:
    """At once, although the payloads have not ended: the next one here never comes."""
    service.handlers["echo"] = echo

    async def two_and_no_more() -> AsyncIterator[int]:
        yield 1
        yield 2
        await asyncio.Event().wait()

    def fail(ended: int, total: int | None) -> None:
        if ended == 2:
            raise ZeroDivisionError

    answers: list[int] = []
    async with asyncio.timeout(20):
        with pytest.raises(ZeroDivisionError):
            await _collect(client.map("echo", two_and_no_more(), on_progress=fail), answers)
    assert answers == [1, 2]


async def test_payloads_may_come_asynchronously(service: Service, client: AsyncClient) -> None:
    """A queue or a socket can be mapped over as it is."""
    service.handlers["echo"] = echo

    async def coming() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    assert [result.json() async for result in client.map("echo", coming())] == [0, 1, 2]


async def test_map_over_nothing_is_nothing(client: AsyncClient) -> None:
    """No worker, no call, no wait."""
    assert [result async for result in client.map("nobody", [])] == []


def test_concurrency_below_one_is_refused() -> None:
    """It would never end."""

    async def call(payload: object) -> lambent.InvokeResult:
        raise AssertionError(payload)

    with pytest.raises(lambent.InvalidParameterError):
        MapRun(call, [], concurrency=0, ordered=True, on_progress=None)


async def _collect(results: AsyncIterator[lambent.InvokeResult], into: list[int]) -> None:
    async for result in results:
        into.append(result.json())  # noqa: PERF401 - what came before a failure counts
