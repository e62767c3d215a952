"""etcd and NATS of the operator's own: the daemons alone, as on many machines, and `lambent up` beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest_asyncio
from tests.cluster import RunningCommand, running_command, start_cluster, stop_cluster
from tests.etcd_server import EtcdServer, etcd_server
from tests.nats_server import NatsServer, nats_server

from lambent import AsyncClient

TIMEOUT_S = 60
ANY_PORTS = ("--listen=127.0.0.1:0", "--session-listen=127.0.0.1:0", "--http-listen=127.0.0.1:0")
HANDLER = "def handler(event, context): return event\n"


@dataclass(frozen=True)
class Machine:
    """An etcd that wants a client certificate, a NATS that wants a password, and where the secrets are."""

    etcd: EtcdServer
    nats: NatsServer
    directory: Path
    token: str

    @property
    def flags(self) -> tuple[str, ...]:
        """Where the stores are, and what they ask for."""
        stores = (f"--etcd={','.join(self.etcd.endpoints)}", f"--nats={self.nats.url}")
        return (*stores, f"--credentials={self.directory / 'credentials'}")

    @contextlib.asynccontextmanager
    async def daemon(self, *arguments: str) -> AsyncIterator[RunningCommand]:
        """Run a daemon inside the block; it ends well on SIGTERM."""
        with running_command(*arguments, *self.flags) as command:
            yield command
            assert await asyncio.to_thread(command.end) == 0


async def said(command: RunningCommand, event: str) -> dict[str, object]:
    """Wait until a daemon logs an event of this name."""
    fields = json.loads(await asyncio.to_thread(command.said, f'"event": "{event}"'))
    assert isinstance(fields, dict)
    return fields


@pytest_asyncio.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with etcd_server(tls=True) as etcd, nats_server() as nats, asyncio.timeout(TIMEOUT_S):
        found = Machine(etcd, nats, tmp_path, token=secrets.token_hex(16))
        secret, password = etcd.credentials, nats.credentials
        files = {
            "token": found.token,
            "etcd-ca.pem": (secret.etcd_ca or b"").decode(),
            "etcd-client.pem": (secret.etcd_cert or b"").decode(),
            "etcd-client.key": (secret.etcd_key or b"").decode(),
            "nats.user": password.nats_user or "",
            "nats.password": password.nats_password or "",
        }
        (tmp_path / "credentials").mkdir()
        for name, content in files.items():
            (tmp_path / "credentials" / name).write_text(content)
        (tmp_path / "app.py").write_text(HANDLER)
        yield found


async def test_daemons_alone_make_a_cluster(machine: Machine) -> None:
    """A scheduler and an agent that know of nothing but the stores find each other and serve."""
    state = machine.directory / "state"
    capacity = ("--memory=512", "--cpus=1.5", "--label=zone=cellar", "--label=disk=", "--id=alone")
    async with machine.daemon("scheduler", *ANY_PORTS) as scheduler:
        grpc = str((await said(scheduler, "ready"))["grpc"])
        async with (
            machine.daemon("agent", "--listen=127.0.0.1:0", f"--state-dir={state}", *capacity) as agent,
            AsyncClient(grpc, token=machine.token) as client,
        ):
            address = (await said(agent, "ready"))["address"]
            await said(scheduler, "node_attached")
            (node,) = [node async for node in client.nodes()]
            assert (node.node_id, node.address, node.attached) == ("alone", address, True)
            given = {name: value for name, value in node.labels.items() if not name.startswith("lambent.")}
            assert given == {"zone": "cellar", "disk": ""}
            assert (node.capacity["memory_mib"], node.capacity["cpu_millis"]) == (512, 1500)
            await client.deploy("echo", machine.directory / "app.py", handler="app.handler", memory_mib=128)
            assert (await client.invoke("echo", {"n": 1})).json() == {"n": 1}


async def test_a_standby_ends_when_it_is_told_to(machine: Machine) -> None:
    """It waits for as long as the other scheduler lives, but not against an operator's will."""
    async with machine.daemon("scheduler", *ANY_PORTS) as first:
        await said(first, "ready")
        async with machine.daemon("scheduler", *ANY_PORTS, "--id=second") as second:
            await said(second, "standby")


async def test_up_uses_the_stores_that_it_is_given(machine: Machine) -> None:
    """It starts none of its own, leaves them running, and finds there what it had written."""
    data_dir = machine.directory / "data"
    for attempt in range(2):
        cluster = await asyncio.to_thread(start_cluster, data_dir, "--memory=512", *machine.flags)
        try:
            assert set(json.loads((data_dir / "processes.json").read_text())) == {"scheduler", "node-1"}
            async with AsyncClient(data_dir=cluster.data_dir) as client:
                if attempt == 0:
                    await client.deploy("echo", machine.directory / "app.py", handler="app.handler", memory_mib=128)
                assert (await client.invoke("echo", attempt)).json() == attempt
                assert (await client.status()).healthy
        finally:
            await asyncio.to_thread(stop_cluster, data_dir)
