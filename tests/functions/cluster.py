"""The function service on a real etcd and a real nats-server, as a scheduler puts it together."""

from __future__ import annotations

import asyncio
import io
import itertools
import tempfile
import zipfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.etcd_server import EtcdServer, etcd_server
from tests.nats_server import NatsServer, nats_server

from lambent.v1 import function_pb2
from lambent_common.packages import PackageStore
from lambent_scheduler.functions.activation import Activator
from lambent_scheduler.functions.names import Naming
from lambent_scheduler.functions.repository import FunctionRepository
from lambent_scheduler.functions.service import FunctionServicer
from lambent_scheduler.functions.table import FunctionTable
from lambent_scheduler.functions.upload import Uploads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.js import JetStreamContext

    from lambent_common.etcd import EtcdClient

REGION = "eu-test-1"
_accounts = itertools.count(1)


def zipped(source: str = "def handler(event, context): return event\n") -> bytes:
    """A package with one module; the same bytes at any time."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr(zipfile.ZipInfo("app.py"), source)
    return data.getvalue()


@dataclass
class Scheduler:
    """One scheduler's parts."""

    etcd: EtcdClient
    packages: PackageStore
    repository: FunctionRepository
    table: FunctionTable
    activator: Activator
    service: FunctionServicer


@dataclass
class Cluster:
    """Servers, and the parts of a first scheduler."""

    etcd_server: EtcdServer
    nats_server: NatsServer
    js: JetStreamContext
    scheduler: Scheduler
    uploaded: dict[bytes, str] = field(default_factory=dict)

    @property
    def service(self) -> FunctionServicer:
        """The service."""
        return self.scheduler.service

    @property
    def table(self) -> FunctionTable:
        """The scheduler's view."""
        return self.scheduler.table

    def account(self) -> str:
        """An account that no other test uses."""
        return f"account-{next(_accounts)}"

    async def code(self, source: str = "def handler(event, context): return event\n") -> str:
        """Upload a package and give its SHA-256."""

        async def chunks() -> AsyncIterator[function_pb2.UploadCodeRequest]:
            yield function_pb2.UploadCodeRequest(chunk=zipped(source))

        return (await self.service.UploadCode(chunks(), None)).code_sha256

    async def create(self, account: str, name: str = "f", **options: Any) -> function_pb2.Function:
        """Make a function and give it as the reply has it."""
        values: dict[str, Any] = {
            "runtime": "python3.11",
            "handler": "app.handler",
            "code_sha256": await self.code(),
            **options,
        }
        request = function_pb2.CreateFunctionRequest(account=account, function_name=name, **values)
        return (await self.service.CreateFunction(request, None)).function

    async def settled(self, account: str, name: str = "f", qualifier: str = "") -> function_pb2.Function:
        """Wait until a function is neither PENDING nor IN_PROGRESS, and give it."""
        changed = asyncio.Event()
        self.table.on_change(lambda *_: changed.set())
        async with asyncio.timeout(10):
            while True:
                changed.clear()
                function = await self.get(account, name, qualifier)
                waiting = function.last_update_status == function_pb2.LAST_UPDATE_STATUS_IN_PROGRESS
                if function.state != function_pb2.FUNCTION_STATE_PENDING and not waiting:
                    return function
                await changed.wait()

    async def make(self, account: str, name: str = "f", **options: Any) -> function_pb2.Function:
        """Make a function and wait until it is ACTIVE."""
        await self.create(account, name, **options)
        return await self.settled(account, name)

    async def get(self, account: str, name: str = "f", qualifier: str = "") -> function_pb2.Function:
        """Give a function."""
        request = function_pb2.GetFunctionRequest(account=account, function_name=name, qualifier=qualifier)
        return (await self.service.GetFunction(request, None)).function

    async def publish(self, account: str, name: str = "f", **options: str) -> function_pb2.Function:
        """Publish a version and give it."""
        request = function_pb2.PublishVersionRequest(account=account, function_name=name, **options)
        return (await self.service.PublishVersion(request, None)).function

    async def change(self, account: str, name: str = "f", **options: Any) -> function_pb2.Function:
        """Change the configuration, and wait until it serves."""
        request = function_pb2.UpdateFunctionConfigurationRequest(account=account, function_name=name, **options)
        await self.service.UpdateFunctionConfiguration(request, None)
        return await self.settled(account, name)


@asynccontextmanager
async def scheduler(etcd: EtcdServer, js: JetStreamContext, uploads: Path) -> AsyncIterator[Scheduler]:
    """Run a scheduler's function service."""
    client = await etcd.connect()
    async with client:
        naming = Naming(REGION)
        packages = await PackageStore.open(js)
        repository = FunctionRepository(client)
        table = FunctionTable(naming)
        activator = Activator(repository, packages, table)
        following = asyncio.create_task(table.follow(client))
        ready = asyncio.create_task(table.wait_until_ready())
        done, _ = await asyncio.wait({ready, following}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert ready in done, f"the watch did not begin: {following}"
        settling = asyncio.create_task(activator.run())
        service = FunctionServicer(
            naming=naming,
            repository=repository,
            table=table,
            packages=packages,
            uploads=Uploads(packages, uploads),
            activator=activator,
            architecture="x86_64",
        )
        try:
            yield Scheduler(client, packages, repository, table, activator, service)
        finally:
            for task in (following, settling):
                task.cancel()
            await asyncio.gather(following, settling, return_exceptions=True)


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    """Run everything; nothing is left at the end."""
    with tempfile.TemporaryDirectory(prefix="lambent-test-uploads-") as directory:
        async with etcd_server() as etcd, nats_server() as nats, nats.connect() as client:
            js = client.jetstream()
            async with scheduler(etcd, js, Path(directory)) as first:
                yield Cluster(etcd, nats, js, first)
            assert not await asyncio.to_thread(lambda: list(Path(directory).iterdir())), "an upload left its file"
