"""`lambent scheduler`: the daemon's command line."""

from __future__ import annotations

import socket
from pathlib import Path

import click
import uvloop

from lambent.errors import InvalidParameterError, LambentError
from lambent_common.credentials import Credentials
from lambent_common.logging import configure_logging
from lambent_common.machine import raise_open_files_limit
from lambent_common.priority import prefer_daemon
from lambent_scheduler.config import SchedulerConfig
from lambent_scheduler.core import policies
from lambent_scheduler.daemon import serve


class _Address(click.ParamType[str]):
    """host:port, an IPv6 host in brackets."""

    name = "HOST:PORT"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        host, _, port = value.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not host or (":" in host and not bracketed) or not port.isdecimal() or int(port) > _MAX_PORT:
            self.fail(f"{value!r} is not HOST:PORT, such as 127.0.0.1:9400 or [::1]:9400", param, ctx)
        return value


_MAX_PORT = 65_535
_ADDRESS = _Address()


@click.command()
@click.option("--etcd", required=True, metavar="URL[,URL]", help="Members of the etcd cluster.")
@click.option("--nats", required=True, metavar="URL[,URL]", help="Members of the NATS cluster.")
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory with token, etcd-ca.pem, etcd-client.pem, etcd-client.key, nats.user, nats.password.",
)
@click.option("--listen", type=_ADDRESS, default="127.0.0.1:9400", show_default=True, help="gRPC address.")
@click.option(
    "--session-listen",
    type=_ADDRESS,
    default="127.0.0.1:0",
    show_default="127.0.0.1, any free port",
    help="Address for sessions of the SDK; callers that cannot reach it go by gRPC, which costs more.",
)
@click.option("--http-listen", type=_ADDRESS, default="127.0.0.1:9401", show_default=True, help="HTTP address.")
@click.option("--insecure", is_flag=True, help="Serve without a token: whoever reaches the port may run code here.")
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Host under which HTTP clients may call, beside localhost and that of --http-listen; may be repeated.",
)
@click.option(
    "--id",
    "scheduler_id",
    default=socket.gethostname,
    show_default="the host's name",
    help="Identity of this instance, unlike any other's: it takes over at once from an earlier life of its own.",
)
@click.option("--region", default="us-east-1", show_default=True, help="Region in ARNs.")
@click.option(
    "--keep-alive",
    "keep_alive_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long an idle environment stays; with a policy that learns, until it knows better.",
)
@click.option(
    "--keep-alive-policy",
    type=click.Choice(list(policies.KEEP_ALIVE)),
    default="fixed",
    show_default=True,
    help="What decides how long idle environments stay: see docs/scaling.md.",
)
@click.option(
    "--eviction-policy",
    type=click.Choice(list(policies.EVICTION)),
    default="least-recently-used",
    show_default=True,
    help="What decides which idle environment makes room for another one.",
)
@click.option(
    "--placement-policy",
    type=click.Choice(list(policies.PLACEMENT)),
    default="pack-then-spread",
    show_default=True,
    help="What decides which node gets a new environment.",
)
@click.option(
    "--max-queue-wait",
    "max_queue_wait_s",
    type=click.FloatRange(min=0, max=900),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest wait of a call for capacity.",
)
@click.option(
    "--account-concurrency",
    type=click.IntRange(min=1, max=1_000_000),
    default=1_000,
    show_default=True,
    help="Most invocations running or waiting at once.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(min=0, max=900),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long running calls may take after SIGTERM.",
)
@click.option("--ready-fd", type=int, hidden=True, help="Descriptor for the line that says where it serves.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def scheduler(  # noqa: PLR0917 - one parameter per option, all given by name
    etcd: str,
    nats: str,
    credentials: Path | None,
    listen: str,
    session_listen: str,
    http_listen: str,
    insecure: bool,
    allowed_hosts: tuple[str, ...],
    scheduler_id: str,
    region: str,
    keep_alive_s: float,
    keep_alive_policy: str,
    eviction_policy: str,
    placement_policy: str,
    max_queue_wait_s: float,
    account_concurrency: int,
    drain_s: float,
    ready_fd: int | None,
    log_level: str,
) -> None:
    """Run one scheduler of a cluster, in the foreground.

    \b
    Example, with etcd and NATS on this machine and without credentials:
      lambent scheduler --etcd http://127.0.0.1:2379 --nats nats://127.0.0.1:4222 --insecure
    """  # noqa: D301 - click's mark is the character itself
    configure_logging("scheduler", level=log_level)
    try:
        secrets = Credentials.load(credentials)
        if not secrets.token and not insecure:
            raise InvalidParameterError(
                "without a token whoever can reach the scheduler's port could deploy and run code: give --credentials "
                "with the cluster's token, or accept it with --insecure"
            )
        config = SchedulerConfig(
            scheduler_id=scheduler_id,
            etcd=tuple(etcd.split(",")),
            nats=tuple(nats.split(",")),
            credentials=secrets,
            listen=listen,
            session_listen=session_listen,
            http_listen=http_listen,
            allowed_hosts=allowed_hosts,
            region=region,
            keep_alive_s=keep_alive_s,
            keep_alive_policy=keep_alive_policy,
            eviction_policy=eviction_policy,
            placement_policy=placement_policy,
            max_queue_wait_s=max_queue_wait_s,
            account_concurrency=account_concurrency,
            drain_s=drain_s,
        )
        raise_open_files_limit()
        prefer_daemon()
        uvloop.run(serve(config, ready_fd))
    except (LambentError, OSError) as error:
        raise click.ClickException(str(error)) from error
