"""The scheduler as a process: as a standby, at its start beside nodes that know it, and when it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.cluster import RunningCommand, lambent, running_command
from tests.etcd_server import EtcdServer
from tests.invocation.front import METADATA, TOKEN, Node, RawSession, echo, opening, silent
from tests.nats_server import NatsServer, nats_server

from lambent.connection import Connection
from lambent.endpoint import Endpoint
from lambent.session_stream import open_stream
from lambent.v1 import function_pb2, node_pb2, record_pb2
from lambent_common import keys
from lambent_common.etcd import EtcdClient, put_op
from lambent_common.message_server import MessageServer
from lambent_common.records import encode
from lambent_scheduler.ownership import Ownership

_FUNCTIONS = 1_500
"""So many that nodes are known long before the functions are."""


@pytest.fixture
async def nats() -> AsyncIterator[NatsServer]:
    async with nats_server() as nats:
        yield nats


@contextlib.contextmanager
def _daemon(server: EtcdServer, nats: NatsServer, directory: Path, *flags: str) -> Iterator[RunningCommand]:
    """Run a scheduler inside the block."""
    assert nats.credentials.nats_user is not None
    assert nats.credentials.nats_password is not None
    files = {"token": TOKEN, "nats.user": nats.credentials.nats_user, "nats.password": nats.credentials.nats_password}
    for name, content in files.items():
        (directory / name).write_text(content)
    stores = (f"--etcd={','.join(server.endpoints)}", f"--nats={nats.url}", f"--credentials={directory}")
    ports = ("--listen=127.0.0.1:0", "--session-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0")
    with running_command("scheduler", *stores, *ports, *flags) as command:
        yield command


async def _said(command: RunningCommand, event: str) -> dict[str, object]:
    fields = json.loads(await asyncio.to_thread(command.said, f'"event": "{event}"'))
    assert isinstance(fields, dict)
    return fields


@contextlib.asynccontextmanager
async def _node(node: Node, client: EtcdClient) -> AsyncIterator[None]:
    """Have a node in the cluster inside the block."""
    server = MessageServer(node_pb2.OrderBatch.FromString, node.serve)
    record = record_pb2.NodeRecord(
        node_id=node.node_id,
        address=f"127.0.0.1:{await server.start('127.0.0.1:0')}",
        capacity={"memory_mib": 65_536, "cpu_millis": 64_000, "disk_mib": 1_000_000},
        runtimes=["python3.11"],
    )
    await client.put(keys.node(node.node_id), encode(record))
    try:
        yield
    finally:
        await server.stop()


async def _put_functions(client: EtcdClient, count: int) -> None:
    names = [f"f{number:05}" for number in range(count)]
    for first in range(0, count, 100):
        await client.txn(
            compare=[],
            success=[
                put_op(keys.function_latest("default", name), encode(_function(name)))
                for name in names[first : first + 100]
            ],
        )


def _function(name: str) -> record_pb2.FunctionRecord:
    function = function_pb2.Function(
        function_name=name,
        version="$LATEST",
        runtime="python3.11",
        handler="app.handler",
        memory_mib=128,
        ephemeral_storage_mib=512,
        timeout=Duration(seconds=3),
        revision_id="r1",
        state=function_pb2.FUNCTION_STATE_ACTIVE,
    )
    return record_pb2.FunctionRecord(function=function, next_version=1)


@contextlib.asynccontextmanager
async def _session(address: str) -> AsyncIterator[tuple[RawSession, grpc.aio.Channel]]:
    connection = Connection(Endpoint(address, TOKEN))
    raw = RawSession(await open_stream(connection))
    try:
        yield raw, connection.channel
    finally:
        raw.stream.abort()
        await connection.close()


async def test_a_standby_ends_when_it_is_told(
    server: EtcdServer, client: EtcdClient, nats: NatsServer, tmp_path: Path
) -> None:
    """An operator need not kill what waits for another scheduler's end."""
    holder = Ownership(client, server.endpoints, server.credentials, record_pb2.SchedulerRecord(scheduler_id="holder"))
    async with asyncio.timeout(30), holder:
        with _daemon(server, nats, tmp_path, "--id=standby") as command:
            await _said(command, "standby")
            assert await asyncio.to_thread(command.end) == 0
        assert await client.get(keys.scheduler("standby")) is None
        assert not holder.lost.is_set()


async def test_warm_environments_outlive_a_restart_among_many_functions(
    server: EtcdServer, client: EtcdClient, nats: NatsServer, tmp_path: Path
) -> None:
    """Whether they are current is asked when the functions are known, and not before."""
    start = node_pb2.StartEnvironment(
        environment_id="warm", account="default", function_name="f01499", version="$LATEST", revision_id="r1"
    )
    welcome = node_pb2.Welcome(node_id="n-1", environments=[node_pb2.HeldEnvironment(start=start)])
    node = Node(echo, welcome=welcome)
    async with asyncio.timeout(60):
        await _put_functions(client, _FUNCTIONS)
        await client.put(keys.function_latest("default", "broken"), b"not a record")
        async with _node(node, client):
            with _daemon(server, nats, tmp_path, "--id=restarted") as command:
                address = str((await _said(command, "ready"))["grpc"])
                record = await client.get(keys.scheduler("restarted"))
                assert record is not None
                assert json.loads(record.value)["grpcAddress"] == address
                async with _session(address) as (raw, _):
                    await raw.send(1, open=opening("f01499", complete=True))
                    assert not (await raw.end(1)).HasField("service_error")
                    await raw.send(2, open=opening("broken", complete=True))
                    assert (await raw.end(2)).service_error.reason == "ServiceException"
                assert [opened.environment_id for opened in node.openings] == ["warm"]
                assert node.stops == []


async def test_a_scheduler_that_drains_says_so_first(
    server: EtcdServer, client: EtcdClient, nats: NatsServer, tmp_path: Path
) -> None:
    """Who balances load sends the next call elsewhere, while the last one here comes to its end."""
    node = Node(silent)
    async with asyncio.timeout(60), _node(node, client):
        await _put_functions(client, 1)
        with _daemon(server, nats, tmp_path, "--drain=900") as command:
            ready = await _said(command, "ready")
            async with _session(str(ready["grpc"])) as (raw, channel):
                await raw.send(1, open=opening("f00000", complete=True))
                await node.until(lambda: node.openings)
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), metadata=METADATA)
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
                command.process.terminate()
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                watch.cancel()
                assert await asyncio.to_thread(_readyz, int(str(ready["http_port"]))) == 503
                assert node.writer is not None
                echo(node, node.writer, next(iter(node.received)), node.openings[0])
                assert not (await raw.end(1)).HasField("service_error")
            assert await asyncio.to_thread(command.end) == 0


def _readyz(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "--insecure"),
        (["--listen=9400"], "'9400' is not HOST:PORT"),
        (["--http-listen=::1:9401"], "'::1:9401' is not HOST:PORT"),
        (["--credentials=."], "token"),
    ],
)
def test_a_door_that_would_be_open_or_nowhere_is_refused(
    flags: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing or malformed names itself before anything is listened on."""
    monkeypatch.chdir(tmp_path)
    done = lambent("scheduler", "--etcd=http://127.0.0.1:1", "--nats=nats://127.0.0.1:1", *flags, check=False)
    assert done.returncode != 0
    assert named in done.stderr
    assert "Traceback" not in done.stderr
