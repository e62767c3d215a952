"""The blocking client: the same calls from ordinary code, against a service in another thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.sdk.service import TOKEN, Opening, Service, echo, failing, serving_in_thread

import lambent
from lambent.blocking import BlockingFunctions
from lambent.functions import Functions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def service() -> Iterator[Service]:
    with serving_in_thread() as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[lambent.Client]:
    with lambent.Client(service.address, token=TOKEN) as connected:
        yield connected


def test_every_kind_of_call_works_without_a_loop(service: Service, client: lambent.Client, tmp_path: Path) -> None:
    """One client behind both; each of its methods is there in its blocking form."""
    service.handlers["echo"] = echo

    async def lines(opening: Opening, body: bytes) -> bytes:
        return b"a\nb\n"

    service.handlers["lines"] = lines
    assert client.invoke("echo", {"x": 1}).json() == {"x": 1}
    stream = client.stream("lines")
    assert list(stream) == [b"a\n", b"b\n"]
    assert stream.result is not None
    assert [result.json() for result in client.map("echo", range(100), concurrency=8)] == list(range(100))
    (tmp_path / "app.py").write_text("x = 1")
    assert client.deploy("f", tmp_path, handler="app.handler").function_name == "f"
    assert [function.function_name for function in client.functions.list()] == ["f"]
    assert [node.node_id for node in client.nodes()] == ["node-a", "node-b", "node-c"]
    assert client.status().healthy


def test_public_methods_of_both_clients_are_the_same() -> None:
    """A method added to one cannot be forgotten in the other."""
    for blocking, asynchronous in (
        (lambent.Client, lambent.AsyncClient),
        (BlockingFunctions, Functions),
    ):
        assert _public(asynchronous) - {"map_run"} <= _public(blocking)


def test_map_takes_a_generator_in_a_thread_where_it_may_block_and_call(
    service: Service, client: lambent.Client
) -> None:
    """A generator that itself calls the client must not wait for the loop that waits for it."""
    service.handlers["echo"] = echo
    payloads = (client.invoke("echo", number).json() for number in range(10))
    assert [result.json() for result in client.map("echo", payloads)] == list(range(10))


def test_errors_are_the_same_and_leave_the_client_usable(service: Service, client: lambent.Client) -> None:
    """One failed call is one failed call."""

    async def fail(opening: Opening, body: bytes) -> bytes:
        raise failing("ValueError", "no")

    service.handlers |= {"fail": fail, "echo": echo}
    with pytest.raises(lambent.FunctionError, match="ValueError: no"):
        client.invoke("fail")
    with pytest.raises(lambent.FunctionError):
        list(client.map("fail", [1, 2, 3]))
    assert client.invoke("echo", 1).json() == 1


def test_an_iteration_that_nobody_goes_on_with_may_end_in_the_client_s_own_thread(client: lambent.Client) -> None:
    """The garbage collector runs anywhere, and what it ends there must not wait for that thread."""
    begun, ended = [client.nodes()], threading.Event()
    assert next(begun[0]).node_id == "node-a"

    def end() -> None:
        begun.clear()
        ended.set()

    client._loop._loop.call_soon_threadsafe(end)
    assert ended.wait(10)
    assert client.status().healthy


def test_closed_client_says_so(client: lambent.Client) -> None:
    """And closing twice is no error."""
    client.close()
    client.close()
    with pytest.raises(lambent.UnavailableError, match="closed"):
        client.invoke("echo")


def test_close_ends_the_calls_of_other_threads(service: Service, client: lambent.Client, tmp_path: Path) -> None:
    """Whatever they wait for: an answer, a function that never settles, a cluster that is away."""

    async def forever(opening: Opening, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def busy(opening: Opening, body: bytes) -> bytes:
        raise lambent.ThrottledError("Rate Exceeded.")

    service.handlers |= {"forever": forever, "busy": busy}
    service.settling = False
    (tmp_path / "app.py").write_text("x = 1")
    client.functions.create("f", tmp_path, handler="app.handler")
    calls: list[Callable[[], object]] = [
        lambda: client.invoke("forever"),
        lambda: list(client.map("busy", [1])),
        lambda: client.functions.wait_until_settled("f"),
        lambda: list(client.logs("f", follow=True)),
    ] * 4
    with ThreadPoolExecutor(len(calls)) as threads:
        waiting = [threads.submit(call) for call in calls]
        seen: set[str] = set()
        while seen != {"call", "logs", "unsettled"} or set(service.seen) != {"forever", "busy"}:
            seen.add(service.happened.get(timeout=20))
        client.close()
        for call in waiting:
            error = call.exception(timeout=8)
            assert isinstance(error, lambent.UnavailableError | lambent.ThrottledError), error
    with pytest.raises(lambent.UnavailableError, match="this client is closed"):
        client.invoke("forever")


def test_calls_that_meet_the_close_are_answered(service: Service) -> None:
    """A call handed over at the very end is refused or fails; none is forgotten."""
    service.handlers["echo"] = echo
    for _ in range(20):
        client = lambent.Client(service.address, token=TOKEN)
        client.invoke("echo", 1)
        begin = threading.Barrier(5)

        def call(client: lambent.Client = client, begin: threading.Barrier = begin) -> None:
            begin.wait(20)
            with contextlib.suppress(lambent.UnavailableError):
                while True:
                    client.invoke("echo", 1)

        with ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(call) for _ in range(4)]
            begin.wait(20)
            client.close()
            for ended in calls:
                ended.result(8)


def test_payloads_that_block_for_ever_keep_neither_close_nor_the_process(service: Service) -> None:
    """`iter(queue.get, None)` is how one maps over a queue; leaving such a map must end it."""
    service.handlers["echo"] = echo
    script = f"""
import queue, lambent
waiting = queue.Queue()
waiting.put(1)
with lambent.Client({service.address!r}, token={TOKEN!r}) as client:
    for result in client.map("echo", iter(waiting.get, None)):
        print(result.json(), flush=True)
        break
print("closed", flush=True)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=12, check=True)
    assert (ran.stdout, ran.stderr) == ("1\nclosed\n", "")


def test_payloads_are_taken_in_one_thread_that_ends_with_the_map(service: Service, client: lambent.Client) -> None:
    """What they are read from may belong to a thread, as a database connection does."""
    service.handlers["echo"] = echo
    takers: set[threading.Thread] = set()

    def payloads() -> Iterator[int]:
        for number in range(20):
            takers.add(threading.current_thread())
            yield number

    assert len(list(client.map("echo", payloads()))) == 20
    (taker,) = takers
    taker.join(20)
    assert not taker.is_alive()


@pytest.mark.parametrize("end", [OSError, SystemExit])
def test_payloads_that_fail_fail_the_map(service: Service, client: lambent.Client, end: type[BaseException]) -> None:
    """And nothing else: the client goes on."""
    service.handlers["echo"] = echo

    def payloads() -> Iterator[int]:
        yield 1
        raise end

    with pytest.raises((OSError, RuntimeError)):
        list(client.map("echo", payloads()))
    assert client.invoke("echo", 1).json() == 1


def test_forgotten_client_ends_its_thread(service: Service) -> None:
    """A library that makes clients and drops them must not collect threads."""
    service.handlers["echo"] = echo
    forgotten = lambent.Client(service.address, token=TOKEN)
    forgotten.invoke("echo")
    threads = {thread for thread in threading.enumerate() if thread.name == "lambent-client"}
    assert threads
    del forgotten
    gc.collect()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_interrupt_cancels_the_call_and_the_process_ends(service: Service) -> None:
    """Ctrl-C in the middle of a stream: one traceback, no hang, and the function is told."""

    async def forever(opening: Opening, body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    service.handlers["forever"] = forever
    script = f"""
import lambent
client = lambent.Client({service.address!r}, token={TOKEN!r})
print("go", flush=True)
try:
    for piece in client.stream("forever"):
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
events = client.logs("forever", follow=True)
try:
    next(events)
except KeyboardInterrupt:
    print("again", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "go\n"
        assert service.happened.get(timeout=20) == "call"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        # Two streams of one connection: either may be served first.
        assert {service.happened.get(timeout=20) for _ in range(2)} == {"cancel", "logs"}
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "again\n"
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}
