"""The scheduler's HTTP side: who it answers, and what it says of health, readiness and figures."""

from __future__ import annotations

import asyncio
import http.client
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.cluster import Cluster
from tests.invocation.front import Node, echo, front

import lambent
from lambent.errors import UnavailableError
from lambent.v1 import node_pb2
from lambent_scheduler.http.app import make_app
from lambent_scheduler.http.metrics import RelayCollector
from lambent_scheduler.http.server import serve_http
from lambent_supervisor.errors import ChildFailedError
from lambent_supervisor.probes import wait_until_ready

TIMEOUT_S = 20
OWN_HOSTS = ["127.0.0.1", "localhost", "127.0.0.1:9401", "LOCALHOST:1"]
FOREIGN_HOSTS = ["attacker.example", "attacker.example:9401", "127.0.0.1.attacker.example", "10.0.0.1", "", "[::1]"]


@dataclass(frozen=True)
class Answer:
    """Status, text and media type."""

    status: int
    text: str
    media_type: str


def ask(port: int, path: str, *, host: str | None = None, method: str = "GET") -> Answer:
    """Make a request, under another name of the server if one is given."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request(method, path, headers={} if host is None else {"Host": host})
        response = connection.getresponse()
        return Answer(response.status, response.read().decode(), response.headers.get("Content-Type", ""))


def metrics(text: str) -> dict[str, float]:
    """Values by name, of those without labels."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {sample.name: sample.value for sample in samples if not sample.labels}


class App:
    """The application on a port of its own, with a readiness and a metric that the test chooses."""

    def __init__(self) -> None:
        self.unready: str | None = None
        self.asked = asyncio.Event()
        self.port = 0
        registry = CollectorRegistry()
        self.counter = Counter("trials", "What the test counts", registry=registry)
        self.app = make_app(registry, self._unready_reason, hosts=("localhost", "127.0.0.1"))

    def _unready_reason(self) -> str | None:
        self.asked.set()
        return self.unready

    async def ask(self, path: str, *, host: str | None = None, method: str = "GET") -> Answer:
        """Make a request."""
        return await asyncio.to_thread(ask, self.port, path, host=host, method=method)


@asynccontextmanager
async def served() -> AsyncIterator[App]:
    app = App()
    async with serve_http(app.app, "127.0.0.1", 0) as app.port:
        yield app


async def test_only_who_names_this_host_is_answered() -> None:
    """A web page can make a browser call loopback under a name of the page's own: DNS rebinding."""
    async with served() as app:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert {host: (await app.ask(path, host=host)).status for host in OWN_HOSTS} == dict.fromkeys(
                OWN_HOSTS, 200
            )
            answers = {host: await app.ask(path, host=host) for host in FOREIGN_HOSTS}
            assert {host: answer.status for host, answer in answers.items()} == dict.fromkeys(FOREIGN_HOSTS, 400)
            assert {answer.text for answer in answers.values()} == {"Invalid host header"}


async def test_readiness_has_its_reason_and_health_does_not_depend_on_it() -> None:
    """An orchestrator restarts what is not healthy and sends nothing to what is not ready."""
    async with served() as app:
        assert await app.ask("/readyz") == Answer(200, "ok\n", "text/plain; charset=utf-8")
        app.unready = "no node is attached"
        answer = await app.ask("/readyz")
        assert (answer.status, answer.text) == (503, "no node is attached\n")
        assert (await app.ask("/healthz")).status == 200


async def test_up_waits_until_the_scheduler_is_ready() -> None:
    """A call right behind its "Ready" is not refused for want of a node."""
    async with served() as app, asyncio.timeout(TIMEOUT_S):
        app.unready = "no node is attached"
        waiting = asyncio.create_task(wait_until_ready(f"http://127.0.0.1:{app.port}", TIMEOUT_S))
        await app.asked.wait()
        assert not waiting.done()
        app.unready = None
        await waiting


async def test_up_says_what_it_waited_for_in_vain() -> None:
    """The scheduler knows, the operator does not."""
    async with served() as app:
        app.unready = "no node is attached"
        with pytest.raises(ChildFailedError, match=r"not ready within 1 s: no node is attached"):
            await wait_until_ready(f"http://127.0.0.1:{app.port}", 1)


async def test_metrics_are_read_when_they_are_asked_for() -> None:
    """In the format that Prometheus reads."""
    async with served() as app:
        app.counter.inc(2)
        first = await app.ask("/metrics")
        app.counter.inc()
        second = await app.ask("/metrics")
    assert first.media_type.startswith("text/plain; version=")
    assert (metrics(first.text)["trials_total"], metrics(second.text)["trials_total"]) == (2, 3)


async def test_anything_else_is_refused() -> None:
    """The invocation API is gRPC's alone."""
    async with served() as app:
        assert (await app.ask("/")).status == 404
        assert (await app.ask("/metrics", method="POST")).status == 405


async def test_a_taken_address_is_named() -> None:
    """And no server is left half started."""
    async with served() as app:
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{app.port}"):
            async with serve_http(app.app, "127.0.0.1", app.port):
                pass


async def test_the_start_times_of_environments_are_a_histogram() -> None:
    """What a cold start costs here, beside how many there were; a busy environment that was adopted does not count."""
    async with asyncio.timeout(TIMEOUT_S), front(Node(echo), "f") as door:
        (link,) = door.relay.links.values()
        for start_us in (0, 20_000, 3_000_000):
            door.relay.environment_ready(link, node_pb2.EnvironmentReady(environment_id="e", start_us=start_us))
        registry = CollectorRegistry()
        registry.register(RelayCollector(door.relay, door.invocations.sessions))
        text = generate_latest(registry).decode()
    assert metrics(text)["lambent_environment_start_seconds_count"] == 2
    assert metrics(text)["lambent_environment_start_seconds_sum"] == pytest.approx(3.02)
    for bound, count in (("0.01", 0), ("0.025", 1), ("2.5", 1), ("5.0", 2), ("+Inf", 2)):
        assert f'lambent_environment_start_seconds_bucket{{le="{bound}"}} {count}.0' in text


@pytest.fixture
def port(cluster: Cluster) -> int:
    return int(cluster.http.rpartition(":")[2])


def test_a_running_cluster_is_healthy_and_ready(port: int) -> None:
    """`up` says that it is ready when /readyz does."""
    assert ask(port, "/healthz").status == 200
    assert ask(port, "/readyz").status == 200


def test_a_running_cluster_refuses_a_foreign_host(port: int) -> None:
    """As its application does: the scheduler gives it the names of loopback alone."""
    assert {host: ask(port, "/metrics", host=host).status for host in FOREIGN_HOSTS} == dict.fromkeys(
        FOREIGN_HOSTS, 400
    )


def test_a_running_cluster_counts_nodes_invocations_and_functions(cluster: Cluster, port: int, tmp_path: Path) -> None:
    """What an operator's dashboard shows."""
    (tmp_path / "app.py").write_text("def handler(event, context): return event['n']\n")
    name = f"metrics-{uuid.uuid4().hex[:8]}"
    before = metrics(ask(port, "/metrics").text)
    with lambent.Client(data_dir=cluster.data_dir) as client:
        client.deploy(name, tmp_path, handler="app.handler", memory_mib=128)
        client.invoke(name, {"n": 1})
        with pytest.raises(lambent.FunctionError):
            client.invoke(name, {})
        text = ask(port, "/metrics").text
        client.functions.delete(name)
    after = metrics(text)
    assert after["lambent_nodes_attached"] == 2
    assert after["lambent_invocations_total"] == before["lambent_invocations_total"] + 2
    assert after["lambent_cold_starts_total"] == before["lambent_cold_starts_total"] + 1
    assert after["lambent_environment_start_seconds_count"] > before["lambent_environment_start_seconds_count"]
    labels = f'{{account="default",function_name="{name}"}}'
    assert f"lambent_function_invocations_total{labels} 2.0" in text
    assert f"lambent_function_errors_total{labels} 1.0" in text
