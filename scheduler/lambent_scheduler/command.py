"""`lambent scheduler`: the daemon's command line."""

from __future__ import annotations

from pathlib import Path

import click
import uvloop

from lambent.errors import LambentError
from lambent_common.credentials import Credentials
from lambent_common.logging import configure_logging
from lambent_scheduler.config import SchedulerConfig
from lambent_scheduler.daemon import serve


@click.command()
@click.option("--etcd", required=True, metavar="URL[,URL]", help="Members of the etcd cluster.")
@click.option("--nats", required=True, metavar="URL[,URL]", help="Members of the NATS cluster.")
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory with token, etcd-ca.pem, etcd-client.pem, etcd-client.key, nats.user, nats.password.",
)
@click.option("--listen", default="127.0.0.1:9400", show_default=True, metavar="HOST:PORT", help="gRPC address.")
@click.option("--http-listen", default="127.0.0.1:9401", show_default=True, metavar="HOST:PORT", help="HTTP address.")
@click.option("--id", "scheduler_id", default="scheduler-0", show_default=True, help="Identity of this instance.")
@click.option("--region", default="us-east-1", show_default=True, help="Region in ARNs.")
@click.option(
    "--keep-alive",
    "keep_alive_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long an idle environment stays.",
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
    http_listen: str,
    scheduler_id: str,
    region: str,
    keep_alive_s: float,
    max_queue_wait_s: float,
    account_concurrency: int,
    drain_s: float,
    ready_fd: int | None,
    log_level: str,
) -> None:
    r"""Run one scheduler of a cluster, in the foreground.

    \b
    Example, with etcd and NATS on this machine and without credentials:
      lambent scheduler --etcd http://127.0.0.1:2379 --nats nats://127.0.0.1:4222
    """
    configure_logging("scheduler", level=log_level)
    try:
        config = SchedulerConfig(
            scheduler_id=scheduler_id,
            etcd=tuple(etcd.split(",")),
            nats=tuple(nats.split(",")),
            credentials=Credentials.load(credentials),
            listen=listen,
            http_listen=http_listen,
            region=region,
            keep_alive_s=keep_alive_s,
            max_queue_wait_s=max_queue_wait_s,
            account_concurrency=account_concurrency,
            drain_s=drain_s,
        )
        uvloop.run(serve(config, ready_fd))
    except (LambentError, OSError) as error:
        raise click.ClickException(str(error)) from error
