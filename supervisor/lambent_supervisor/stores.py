"""The children that keep state: etcd and nats-server, on loopback, with credentials."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent_common import credentials

from .child import ChildSpec
from .data_directory import write_atomically
from .ports import LOOPBACK, free_port
from .probes import etcd_serves, nats_serves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .child import Ready
    from .data_directory import DataDirectory

# etcd's own suggestion for the largest is 8 GiB; the design's write budgets keep 100,000 functions below one.
ETCD_QUOTA_BYTES = 4 << 30
# Watches resume within seconds; an hour of history is for a person who looks for what has happened.
ETCD_KEPT_HISTORY = "1h"

# A member that is alone elects itself after the election timeout: by default a restart would wait for it 1 to 2 s.
ETCD_HEARTBEAT_MS = 20

# An asynchronous event is at most 1 MiB (AWS Lambda quotas), and has headers.
NATS_MAX_PAYLOAD_BYTES = 2 << 20
# A crash of nats-server loses nothing, since the kernel has the pages; a crash of the machine loses at most this.
NATS_SYNC_INTERVAL = "1s"

_NATS_CONFIGURATION = """\
# Written anew at every start.
server_name: lambent
listen: "{host}:{port}"
max_payload: {max_payload}
authorization {{
  user: {user}
  password: {password}
}}
jetstream {{
  store_dir: {store}
  sync_interval: {sync_interval}
}}
"""


@dataclass(frozen=True, slots=True)
class Store:
    """A store that can be started.

    Attributes:
        url: Where daemons find it.
        spec: How it is started.
    """

    url: str
    spec: ChildSpec


@dataclass(frozen=True, slots=True)
class GivenStores:
    """Stores of the operator's own, in whose place none is started.

    Attributes:
        etcd: URLs, separated by commas; None starts one.
        nats: URLs, separated by commas; None starts one.
        credentials: Directory with what they ask for, in files named as in `lambent_common.credentials`.
    """

    etcd: str | None = None
    nats: str | None = None
    credentials: Path | None = None


def etcd_store(directory: DataDirectory, program: Path, environment: Mapping[str, str]) -> Store:
    """An etcd of one member on free ports; clients and peers must show a certificate of the cluster's authority."""
    client_port = free_port()
    client_url, peer_url = f"https://{LOOPBACK}:{client_port}", f"https://{LOOPBACK}:{free_port()}"
    authority = directory.authority
    server_tls = {"cert-file": authority / "etcd.pem", "key-file": authority / "etcd.key"}
    trusted = directory.credentials / credentials.ETCD_CA_FILE
    command = (
        str(program),
        "--name=lambent",
        f"--data-dir={directory.etcd}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=lambent={peer_url}",
        *(f"--{name}={path}" for name, path in server_tls.items()),
        *(f"--peer-{name}={path}" for name, path in server_tls.items()),
        f"--trusted-ca-file={trusted}",
        f"--peer-trusted-ca-file={trusted}",
        "--client-cert-auth",
        "--peer-client-cert-auth",
        "--auto-compaction-mode=periodic",
        f"--auto-compaction-retention={ETCD_KEPT_HISTORY}",
        f"--quota-backend-bytes={ETCD_QUOTA_BYTES}",
        f"--heartbeat-interval={ETCD_HEARTBEAT_MS}",
        f"--election-timeout={10 * ETCD_HEARTBEAT_MS}",
        "--logger=zap",
        "--log-outputs=stderr",
    )
    # etcd reads its flags from ETCD_* as well; those of an operator's other etcd are not for this one.
    own = {name: value for name, value in environment.items() if not name.startswith("ETCD_")}
    if platform.machine() == "aarch64":
        own["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # etcd 3.4 starts there only when told so

    async def probe() -> bool:
        return await etcd_serves(client_port, directory.credentials)

    return Store(client_url, ChildSpec("etcd", _always(command), own, directory.log("etcd"), probe))


def nats_store(
    directory: DataDirectory, program: Path, environment: Mapping[str, str], user: str, password: str
) -> Store:
    """A nats-server with JetStream in files on a free port; clients must give user and password."""
    port = free_port()
    configuration = directory.nats / "nats.conf"
    content = _NATS_CONFIGURATION.format(
        host=LOOPBACK,
        port=port,
        max_payload=NATS_MAX_PAYLOAD_BYTES,
        user=json.dumps(user),
        password=json.dumps(password),
        store=json.dumps(str(directory.nats)),
        sync_interval=json.dumps(NATS_SYNC_INTERVAL),
    )
    write_atomically(configuration, content.encode())

    async def probe() -> bool:
        return await nats_serves(port, user, password)

    command = (str(program), "--config", str(configuration))
    spec = ChildSpec("nats-server", _always(command), environment, directory.log("nats-server"), probe)
    return Store(f"nats://{LOOPBACK}:{port}", spec)


def _always(command: tuple[str, ...]) -> Callable[[Ready | None], tuple[str, ...]]:
    """The same command at every start."""
    return lambda _announced: command
