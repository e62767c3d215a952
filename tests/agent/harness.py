"""A real agent process with real etcd and NATS, and a scheduler's end of its stream that tests can drive."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
import uuid
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from nats.aio.client import Client
from tests.etcd_server import EtcdServer, etcd_server
from tests.nats_server import NatsServer, nats_server

from lambent.conversion import log_events
from lambent.framing import INITIAL_CREDIT_BYTES, MAX_FRAME_BYTES, PIECE_BYTES, FrameWriter
from lambent.message_stream import MessageStream, connect
from lambent.v1 import frame_pb2, log_pb2, node_pb2
from lambent_common.etcd import EtcdClient
from lambent_common.log_streams import log_subject
from lambent_common.packages import PackageStore

RUNTIME = f"python{sys.version_info[0]}.{sys.version_info[1]}"
ARN = "arn:aws:lambda:eu-test-1:000000000000:function:"
WAIT_S = 20
_TOKEN = "test-token"
MAIN = "from lambent_node_agent.command import agent; agent()"


def zip_of(source: str) -> bytes:
    """A package with one module, `app`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.py", source)
    return buffer.getvalue()


@dataclass
class Answer:
    """What came back for one call."""

    body: bytes = b""
    pieces: int = 0
    end: frame_pb2.End | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    first: asyncio.Event = field(default_factory=asyncio.Event)

    def json(self) -> object:
        """The body of a success."""
        assert self.end is not None
        assert not self.end.function_error, self.end
        assert not self.end.HasField("service_error"), self.end
        return json.loads(self.body)

    def error(self) -> dict[str, object]:
        """The error JSON of a function error."""
        assert self.end is not None
        assert self.end.function_error == "Unhandled", self.end
        error = json.loads(self.end.error_payload)
        assert isinstance(error, dict)
        return error


class Scheduler:
    """One stream to the agent."""

    def __init__(self, address: str, scheduler_id: str) -> None:
        self._address = address
        self._stream: MessageStream[node_pb2.NodeOrder, node_pb2.EventBatch]
        self._scheduler_id = scheduler_id
        self.writer: FrameWriter[node_pb2.NodeOrder] = FrameWriter(self._write)
        self.welcome = node_pb2.Welcome()
        self.status = node_pb2.NodeStatus()
        self.status_changed = asyncio.Event()
        self.spent: list[str] = []
        self.answers: dict[int, Answer] = {}
        self.auto_credit = True
        self.partition = 0
        self.epoch = 0
        self._ready: dict[str, asyncio.Future[node_pb2.EnvironmentReady]] = {}
        self._stopped: dict[str, asyncio.Future[node_pb2.EnvironmentStopped]] = {}
        self._call_id = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def _write(self, orders: list[node_pb2.NodeOrder]) -> None:
        await self._stream.write(orders)

    async def attach(self) -> None:
        """Say Hello and wait for Welcome."""
        self._stream = await connect(self._address, node_pb2.EventBatch.FromString, timeout_s=WAIT_S)
        self.writer.send(node_pb2.NodeOrder(hello=node_pb2.Hello(scheduler_id=self._scheduler_id, token=_TOKEN)))
        self._tasks = [asyncio.create_task(self.writer.run())]
        async with asyncio.timeout(WAIT_S):
            first = await self._stream.read()
        assert first is not None
        self.welcome = first.events[0].welcome
        self._tasks.append(asyncio.create_task(self._read()))

    async def close(self) -> None:
        """Drop the stream, as a scheduler that dies does."""
        self._stream.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self) -> None:
        while (batch := await self._stream.read()) is not None:
            for event in batch.events:
                self._receive(event)

    def _receive(self, event: node_pb2.NodeEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "environment_ready":
            future = self.ready(event.environment_ready.environment_id)
            if not future.done():
                future.set_result(event.environment_ready)
        elif kind == "status":
            self.status = event.status
            self.status_changed.set()
        elif kind == "environment_spent":
            self.spent.append(event.environment_spent.environment_id)
        elif kind == "environment_stopped":
            self.stopped(event.environment_stopped.environment_id).set_result(event.environment_stopped)
        elif kind == "data":
            answer = self.answers[event.call_id]
            answer.body += event.data.payload
            answer.pieces += 1
            answer.first.set()
            assert len(event.data.payload) <= PIECE_BYTES
            if self.auto_credit:
                self.grant(event.call_id, len(event.data.payload))
        elif kind == "end":
            answer = self.answers[event.call_id]
            answer.body += event.end.payload
            answer.end = event.end
            answer.done.set()

    def grant(self, call_id: int, credit_bytes: int) -> None:
        """Give credit for more of an answer."""
        window = frame_pb2.Window(credit_bytes=credit_bytes)
        self.writer.send(node_pb2.NodeOrder(call_id=call_id, window=window))

    def ready(self, environment_id: str) -> asyncio.Future[node_pb2.EnvironmentReady]:
        """Done when the environment was reported ready."""
        return self._ready.setdefault(environment_id, asyncio.get_running_loop().create_future())

    def stopped(self, environment_id: str) -> asyncio.Future[node_pb2.EnvironmentStopped]:
        """Done when the environment was reported stopped."""
        return self._stopped.setdefault(environment_id, asyncio.get_running_loop().create_future())

    def order_start(self, start: node_pb2.StartEnvironment) -> None:
        """Order an environment."""
        order = node_pb2.NodeOrder(start_environment=start, partition=self.partition, owner_epoch=self.epoch)
        self.writer.send(order)

    async def start(self, start: node_pb2.StartEnvironment) -> str:
        """Order an environment and wait until it is ready."""
        self.order_start(start)
        ready, stopped = self.ready(start.environment_id), self.stopped(start.environment_id)
        await asyncio.wait((ready, stopped), return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_S)
        assert not stopped.done(), stopped.result()
        assert ready.done(), "neither ready nor stopped"
        return start.environment_id

    async def stop(self, environment_id: str, *, drain: bool = False) -> node_pb2.EnvironmentStopped:
        """Order the end of an environment and wait for it."""
        stop = node_pb2.StopEnvironment(environment_id=environment_id, reason="idle", drain=drain)
        order = node_pb2.NodeOrder(stop_environment=stop, partition=self.partition, owner_epoch=self.epoch)
        self.writer.send(order)
        async with asyncio.timeout(WAIT_S):
            return await self.stopped(environment_id)

    def open(self, environment_id: str, event: object = None, **fields: object) -> int:
        """Start a call and give its id; the answer is in `answers`."""
        self._call_id += 1
        call_id = self._call_id
        self.answers[call_id] = Answer()
        payload = event if isinstance(event, bytes) else json.dumps(event).encode()
        opening = node_pb2.InvokeOpen(
            environment_id=environment_id,
            request_id=str(uuid.uuid4()),
            invoked_function_arn=ARN + "f",
            payload=payload[:MAX_FRAME_BYTES],
            complete=len(payload) <= MAX_FRAME_BYTES,
        )
        if "complete" in fields:
            opening.complete = bool(fields.pop("complete"))
        opening.MergeFrom(node_pb2.InvokeOpen(**fields))  # type: ignore[arg-type] # the tests' own keywords
        order = node_pb2.NodeOrder(call_id=call_id, open=opening, partition=self.partition, owner_epoch=self.epoch)
        self.writer.send(order)
        rest = payload[MAX_FRAME_BYTES:]
        if rest:
            assert len(rest) <= INITIAL_CREDIT_BYTES, "the harness sends no more than the first credit"
            for start in range(0, len(rest), PIECE_BYTES):
                data = frame_pb2.Data(payload=rest[start : start + PIECE_BYTES])
                self.writer.send(node_pb2.NodeOrder(call_id=call_id, data=data))
            self.end_payload(call_id)
        return call_id

    async def answer(self, call_id: int) -> Answer:
        """Wait for the END of a call."""
        answer = self.answers[call_id]
        async with asyncio.timeout(WAIT_S):
            await answer.done.wait()
        return answer

    async def invoke(self, environment_id: str, event: object = None, **fields: object) -> Answer:
        """Call and wait for the END."""
        return await self.answer(self.open(environment_id, event, **fields))

    def end_payload(self, call_id: int, payload: bytes = b"") -> None:
        """Send the last piece of a payload."""
        self.writer.send(node_pb2.NodeOrder(call_id=call_id, end=frame_pb2.End(payload=payload)))

    def cancel(self, call_id: int) -> None:
        """Say that a call is no longer wanted."""
        self.writer.send(node_pb2.NodeOrder(call_id=call_id, cancel=frame_pb2.Cancel()))


class AgentLog:
    """What an agent writes to its standard error."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._more = asyncio.Event()

    def __str__(self) -> str:
        return "".join(self.lines)

    async def collect(self, stream: asyncio.StreamReader) -> None:
        """Read until the agent ends."""
        while line := await stream.readline():
            self.lines.append(line.decode(errors="replace"))
            self._more.set()

    async def line(self, *texts: str) -> str:
        """Wait for a line with all these texts in it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                self._more.clear()
                for line in self.lines:
                    if all(text in line for text in texts):
                        return line
                await self._more.wait()


@dataclass
class World:
    """etcd, NATS and one agent."""

    etcd: EtcdServer
    nats: NatsServer
    connection: Client
    address: str
    agent: asyncio.subprocess.Process
    packages: PackageStore
    directory: Path
    log: AgentLog

    @contextlib.asynccontextmanager
    async def scheduler(self, scheduler_id: str = "scheduler-0") -> AsyncIterator[Scheduler]:
        """Attach to the agent."""
        scheduler = Scheduler(self.address, scheduler_id)
        try:
            await scheduler.attach()
            yield scheduler
        finally:
            await scheduler.close()

    async def function(self, source: str, **fields: object) -> node_pb2.StartEnvironment:
        """Store code, and give the order for an environment of it with handler `app.handler`."""
        package = self.directory / f"{uuid.uuid4()}.zip"
        package.write_bytes(zip_of(source))
        info = await self.packages.put(package)
        start = node_pb2.StartEnvironment(
            environment_id=str(uuid.uuid4()),
            account="default",
            function_name=f"f-{uuid.uuid4().hex[:8]}",
            version="$LATEST",
            revision_id=str(uuid.uuid4()),
            runtime=RUNTIME,
            handler="app.handler",
            code_sha256=info.sha256,
            code_size_bytes=info.size_bytes,
            memory_mib=256,
            ephemeral_storage_mib=512,
            timeout_us=10_000_000,
            function_arn=ARN + "f",
        )
        start.MergeFrom(node_pb2.StartEnvironment(**fields))  # type: ignore[arg-type] # the tests' own keywords
        return start

    async def logged(self, start: node_pb2.StartEnvironment, last: str) -> list[str]:
        """Wait until a line that begins with `last` has arrived in JetStream; give all lines so far."""
        subscription = await self.connection.jetstream().subscribe(
            log_subject(start.account, start.function_name), ordered_consumer=True
        )
        lines: list[str] = []
        try:
            async with asyncio.timeout(WAIT_S):
                while not any(line.startswith(last) for line in lines):
                    message = await subscription.next_msg(timeout=WAIT_S)
                    lines += [event.message for event in log_events(log_pb2.LogBatch.FromString(message.data))]
        except TimeoutError as error:
            raise AssertionError(f"no line {last!r} in {lines}") from error
        finally:
            await subscription.unsubscribe()
        return lines

    async def connect_etcd(self) -> EtcdClient:
        """A client of the world's etcd."""
        return await self.etcd.connect()


def _credentials_directory(directory: Path, nats: NatsServer) -> Path:
    credentials = directory / "credentials"
    credentials.mkdir(exist_ok=True)
    (credentials / "token").write_text(_TOKEN)
    (credentials / "nats.user").write_text(nats.credentials.nats_user or "")
    (credentials / "nats.password").write_text(nats.credentials.nats_password or "")
    return credentials


async def start_agent(
    directory: Path,
    etcd: EtcdServer,
    nats: NatsServer,
    *options: str,
    log: AgentLog,
    with_token: bool = True,
    main: str = MAIN,
) -> tuple[asyncio.subprocess.Process, str]:
    """Start an agent, by a program that may first change it; returns it and its address once it is ready.

    Raises:
        AssertionError: It ended before; the text is what it wrote.
    """
    read_fd, write_fd = os.pipe()
    nats_url, credentials = nats.url, ["--credentials", str(_credentials_directory(directory, nats))]
    if not with_token:
        secrets = nats.credentials
        nats_url, credentials = nats.url.replace("//", f"//{secrets.nats_user}:{secrets.nats_password}@"), []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", main, "--etcd", ",".join(etcd.endpoints), "--nats", nats_url),
        *(*credentials, "--state-dir", str(directory / "state"), "--id", "node-1"),
        *("--memory", "4096", "--cpus", "2", "--owner", f"test-{os.getpid()}", "--ready-fd", str(write_fd)),
        *options,
        pass_fds=(write_fd,),
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(write_fd)
    assert process.stderr is not None
    collecting = asyncio.create_task(log.collect(process.stderr))
    _keep(collecting)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb")
    )
    try:
        async with asyncio.timeout(WAIT_S):
            line = await reader.readline()
    finally:
        transport.close()
    if not line:
        await process.wait()
        await collecting
        raise AssertionError(str(log))
    address = json.loads(line)["node"]
    assert isinstance(address, str)
    return process, address


_readers: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    _readers.add(task)
    task.add_done_callback(_readers.discard)


async def stop_agent(process: asyncio.subprocess.Process) -> int:
    """Ask an agent to stop and wait for its end."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(WAIT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode


@contextlib.asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    """Run everything inside the block; the agent has to stop cleanly at its end."""
    log = AgentLog()
    async with etcd_server() as etcd, nats_server() as nats, nats.connect() as connection:
        process, address = await start_agent(directory, etcd, nats, log=log)
        try:
            packages = await PackageStore.open(connection.jetstream())
            yield World(etcd, nats, connection, address, process, packages, directory, log)
        finally:
            code = await stop_agent(process)
        assert code == 0, str(log)
