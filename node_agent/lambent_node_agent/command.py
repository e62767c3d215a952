"""`lambent agent`: the daemon's command line."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import click
import uvloop

from lambent.errors import LambentError
from lambent_common.credentials import Credentials
from lambent_common.logging import configure_logging
from lambent_common.machine import (
    DEFAULT_MEMORY_SHARE,
    MINIMUM_DISK_MIB,
    default_disk_mib,
    free_disk_mib,
    raise_open_files_limit,
    read_machine,
)
from lambent_common.priority import prefer_daemon
from lambent_node_agent.config import AgentConfig, parse_labels, parse_protections
from lambent_node_agent.daemon import serve
from lambent_node_agent.environment.model import Lifetime
from lambent_node_agent.isolation import Level
from lambent_node_agent.network_settings import read_network_settings
from lambent_node_agent.rootless import enter_user_namespace, is_root, lock_dir
from lambent_node_agent.sandbox import DEFAULT_LOCK_DIR, SandboxError, enter_private_mount_namespace


@click.command()
@click.option("--etcd", required=True, metavar="URL[,URL]", help="Members of the etcd cluster.")
@click.option("--nats", required=True, metavar="URL[,URL]", help="Members of the NATS cluster.")
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory with token, etcd-ca.pem, etcd-client.pem, etcd-client.key, nats.user, nats.password.",
)
@click.option("--insecure", is_flag=True, help="Serve without a token: whoever reaches the port may run code here.")
@click.option(
    "--listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT",
    help="Address that schedulers must reach; port 0 picks a free one.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/lambent/agent"),
    show_default=True,
    help="Where code, mount points and functions' /tmp are kept.",
)
@click.option("--id", "node_id", default=None, metavar="ID", help="Unique in the cluster.  [default: the host's name]")
@click.option(
    "--memory",
    "memory_mib",
    type=click.IntRange(min=128),
    metavar="MIB",
    help="Memory for functions, in MiB.  [default: 80 % of what the machine or its cgroup has]",
)
@click.option("--cpus", type=click.FloatRange(min=0.001), metavar="N", help="CPUs for functions.  [default: all]")
@click.option(
    "--disk",
    "disk_mib",
    type=click.IntRange(min=MINIMUM_DISK_MIB),
    metavar="MIB",
    help="Disk for functions' /tmp, in MiB.  [default: what is free in --state-dir but 10 GiB, or half of less]",
)
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label of the node; may be repeated.")
@click.option(
    "--owner",
    default=None,
    metavar="MARK",
    help="Mark in names of cgroups and directories, unique on this machine.  [default: the id]",
)
@click.option(
    "--pool-size",
    type=click.IntRange(min=0, max=100),
    default=2,
    show_default=True,
    help="Ready-made sandboxes that are at least kept for each runtime in use; more while more functions start: up to "
    "100, and to 5 % of the memory for functions.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(min=0, max=900),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running invocations may take after SIGTERM.",
)
@click.option(
    "--allow-missing",
    default="",
    metavar="NAME[,NAME]",
    help="What of memory, pids, seccomp, disk and network functions may run without where the machine lacks it.",
)
@click.option(
    "--networks",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Subnets and security groups that functions may name: docs/networks.md.",
)
@click.option(
    "--network-deny", default="", metavar="CIDR[,CIDR]", help="Where no function may connect to, whatever its network."
)
@click.option(
    "--network-range",
    metavar="CIDR",
    help="Addresses for environments, /19 or larger, that this machine speaks to nobody at.  [default: 198.18.0.0/15]",
)
@click.option(
    "--recycle-after-invocations",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replace an environment after so many invocations.  [default: never]",
)
@click.option(
    "--recycle-after-hours",
    type=click.FloatRange(min=0, min_open=True),
    metavar="HOURS",
    help="Replace an environment of this age, after the invocation that it serves.  [default: never]",
)
@click.option(
    "--require-isolation",
    type=click.Choice([level.value for level in Level]),
    default=Level.REDUCED.value,
    show_default=True,
    help="Do not start where this machine protects itself less, whatever is allowed; see docs/security.md.",
)
@click.option(
    "--merge-memory",
    is_flag=True,
    help="Have the kernel (KSM) keep equal pages of idle functions once: for functions that trust each other; see "
    "docs/security.md.",
)
@click.option("--ready-fd", type=int, hidden=True, help="Descriptor for the line that says where it serves.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def agent(  # noqa: PLR0917 - one parameter per option
    etcd: str,
    nats: str,
    credentials: Path | None,
    insecure: bool,
    listen: str,
    state_dir: Path,
    node_id: str | None,
    memory_mib: int | None,
    cpus: float | None,
    disk_mib: int | None,
    labels: tuple[str, ...],
    owner: str | None,
    pool_size: int,
    drain_s: float,
    allow_missing: str,
    recycle_after_invocations: int | None,
    recycle_after_hours: float | None,
    require_isolation: str,
    networks: Path | None,
    network_deny: str,
    network_range: str | None,
    merge_memory: bool,
    ready_fd: int | None,
    log_level: str,
) -> None:
    r"""Run the agent of this machine, in the foreground.

    As root, or as a user whom the kernel lets have a user namespace: with what limits then is what `lambent doctor`
    tells.

    \b
    Example, with etcd and NATS on this machine:
      lambent agent --etcd http://127.0.0.1:2379 --nats nats://127.0.0.1:4222 --credentials DIR
    The same, with environments that live for a day at most:
      lambent agent ... --recycle-after-hours 24
    """
    configure_logging("agent", level=log_level)
    try:
        confinement, locks = None, DEFAULT_LOCK_DIR
        if not is_root():
            confinement, locks = enter_user_namespace(), lock_dir(os.environ)
        node_id = node_id or socket.gethostname().partition(".")[0]
        config = AgentConfig(
            node_id=node_id,
            etcd=tuple(etcd.split(",")),
            nats=tuple(nats.split(",")),
            credentials=Credentials.load(credentials),
            insecure=insecure,
            listen=listen,
            state_dir=state_dir.absolute(),
            memory_mib=memory_mib or int(read_machine().memory_mib * DEFAULT_MEMORY_SHARE),
            cpus=cpus or read_machine().cpus,
            disk_mib=disk_mib or default_disk_mib(free_disk_mib(state_dir.absolute())),
            labels=parse_labels(labels),
            owner=owner or node_id,
            pool_size=pool_size,
            drain_s=drain_s,
            allow_missing=parse_protections(allow_missing),
            lifetime=Lifetime(recycle_after_invocations or math.inf, (recycle_after_hours or math.inf) * 3600),
            require_isolation=Level(require_isolation),
            lock_dir=locks,
            confinement=confinement,
            network=read_network_settings(
                addresses=network_range,
                denied=network_deny,
                networks=networks,
                stores=(*etcd.split(","), *nats.split(",")),
            ),
            merge_memory=merge_memory,
        )
        raise_open_files_limit()
        prefer_daemon()
        # Before the first thread: a mount namespace belongs to a thread and is passed on to those it starts.
        enter_private_mount_namespace()
        uvloop.run(serve(config, ready_fd))
    except (LambentError, SandboxError, OSError) as error:
        raise click.ClickException(str(error)) from error
