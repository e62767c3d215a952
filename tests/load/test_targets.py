"""The cluster as a target, over a real socket to a service whose functions are of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.sdk.service import TOKEN, Opening, Service, echo, failing, serving

from lambent import errors
from lambent.endpoint import Endpoint
from lambent_load import targets
from lambent_load.tally import Answer
from lambent_load.targets import ClusterTarget, Request

PATIENCE_S = 20
TIMEOUT_S = 10.0


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """Serve for one test."""
    async with asyncio.timeout(PATIENCE_S), serving() as running:
        yield running


@pytest.fixture
async def target(service: Service) -> AsyncIterator[ClusterTarget]:
    """Connected to it."""
    async with ClusterTarget(Endpoint(service.address, TOKEN), TIMEOUT_S) as connected:
        yield connected


async def test_answer_tells_a_cold_start_and_its_wait(service: Service, target: ClusterTarget) -> None:
    """As the cluster's report has it; the cluster is told how long the caller waits."""
    service.handlers["f"] = echo
    answer = await target.call(Request("f", b"{}"))
    assert answer.error == ""
    assert answer.start_delay_s is not None
    assert service.timeouts_us == [10_000_000]


async def test_payload_of_each_call_is_its_own(service: Service, target: ClusterTarget) -> None:
    """Also when calls leave at once, and one is longer than a frame."""
    seen: list[bytes] = []

    async def keep(opening: Opening, body: bytes) -> bytes:
        seen.append(bytes(body))
        return b""

    service.handlers["f"] = keep
    payloads = [b"1", b"2" * 200_000, b"3"]
    answers = await asyncio.gather(*(target.call(Request("f", payload)) for payload in payloads))
    assert [answer.error for answer in answers] == ["", "", ""]
    assert sorted(seen) == sorted(payloads)


@pytest.mark.parametrize(
    ("error", "name", "throttled"),
    [
        (
            errors.ThrottledError("full", details={"Reason": "CallerRateLimitExceeded"}),
            "ThrottledError CallerRate",
            True,
        ),
        (errors.NoCapacityError("full"), "NoCapacityError", False),
        (failing("KeyError", "'x'"), "FunctionError KeyError", False),
        (failing("E" * 500, "long"), "FunctionError " + "E" * 80, False),
    ],
)
async def test_failure_is_named_by_its_class(
    service: Service, target: ClusterTarget, error: errors.LambentError, name: str, throttled: bool
) -> None:
    """And sent once: a client that retries hides what a load test is to find."""

    async def fail(opening: Opening, body: bytes) -> bytes:
        raise error

    service.handlers["f"] = fail
    answer = await target.call(Request("f", b""))
    assert answer.error.startswith(name)
    assert len(answer.error) <= 100
    assert answer.throttled is throttled
    assert service.seen == ["f"]


async def test_lost_session_fails_its_calls_and_the_next_ones_get_another(
    service: Service, target: ClusterTarget
) -> None:
    """A scheduler that restarts during a run is a gap in it, not its end."""
    begun = asyncio.Event()

    async def hold(opening: Opening, body: bytes) -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return b""

    service.handlers |= {"hold": hold, "f": echo}
    held = asyncio.create_task(target.call(Request("hold", b"")))
    await begun.wait()
    service.drop.set()
    assert (await held).error == "UnavailableError"
    answers = await asyncio.gather(*(target.call(Request("f", b"")) for _ in range(10)))
    assert [answer.error for answer in answers] == [""] * 10


async def test_call_without_an_answer_ends(
    service: Service, target: ClusterTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the cluster forgets it: a run ends, whatever it calls."""

    async def forget(opening: Opening, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    service.handlers["f"] = forget
    monkeypatch.setattr(targets, "_GRACE_S", -TIMEOUT_S + 0.05)
    assert await target.call(Request("f", b"")) == Answer("NoAnswer")


async def test_cluster_that_is_not_there_is_an_error_at_the_start() -> None:
    """Before the first call."""
    with pytest.raises(errors.UnavailableError, match="no Lambent cluster answers"):
        async with ClusterTarget(Endpoint("127.0.0.1:1"), TIMEOUT_S):
            raise AssertionError("it cannot be entered")
