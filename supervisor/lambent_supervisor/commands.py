"""`lambent up` and `lambent down`."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lambent.endpoint import DATA_DIR_VARIABLE, default_data_dir
from lambent_common.machine import free_disk_mib, read_machine
from lambent_common.programs import ETCD, NATS_SERVER

from .daemons import Recycling, SchedulerOptions
from .data_directory import Address, DataDirectory, LockedDataDirectory
from .detach import Report, start_detached
from .down import stop_cluster
from .errors import NodeShareError, SupervisorError
from .notices import move_output, tell
from .ports import check_free
from .programs import require
from .shares import divide
from .stores import GivenStores
from .supervisor import ClusterConfig, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .shares import NodeShare

# More agents than that on one machine are more than its CPUs have use for.
MAX_NODES = 64

_data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar=DATA_DIR_VARIABLE,
    show_envvar=True,
    help="Where the cluster keeps everything.  [default: lambent in $XDG_DATA_HOME or ~/.local/share]",
)
_output_option = click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)


class CommandFailedError(click.ClickException):
    """Ends a command with an error's message and its help."""

    def __init__(self, error: SupervisorError) -> None:
        super().__init__(error.message)
        self.help = error.help

    def show(self, file: Any = None) -> None:
        """Write message and help to standard error."""
        click.echo(f"Error: {self.message}\nHelp: {self.help}", file=file, err=file is None)


class WrongUsageError(CommandFailedError):
    """The same for what only another command line can mend."""

    exit_code = 2


@click.command()
@click.option("--nodes", type=click.IntRange(1, MAX_NODES), default=1, show_default=True, help="Number of node agents.")
@_data_dir_option
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=9400,
    show_default=True,
    help="On loopback; 0: any free one.",
)
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=9401,
    show_default=True,
    help="On loopback; 0: any free one.",
)
@click.option(
    "--memory",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Memory for functions, divided among the nodes.  [default: 80 % of the machine's or its cgroup's]",
)
@click.option(
    "--keep-alive",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long an idle environment is kept.",
)
@click.option(
    "--keep-alive-policy",
    type=click.Choice(["fixed", "histogram", "break-even"]),
    default="fixed",
    show_default=True,
    help="What decides how long idle environments stay: see docs/scaling.md.",
)
@click.option(
    "--eviction-policy",
    type=click.Choice(["least-recently-used", "greedy-dual"]),
    default="least-recently-used",
    show_default=True,
    help="What decides which idle environment makes room for another one.",
)
@click.option(
    "--placement-policy",
    type=click.Choice(["pack-then-spread", "tight", "least-loaded", "two-choices", "code-first"]),
    default="pack-then-spread",
    show_default=True,
    help="What decides which node gets a new environment.",
)
@click.option(
    "--max-queue-wait",
    type=click.FloatRange(min=0, max=900),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a call may wait for an environment.",
)
@click.option(
    "--allow-missing",
    default="",
    metavar="NAME[,NAME]",
    help="What of memory, pids, seccomp, disk and network functions may run without where the machine lacks it.",
)
@click.option(
    "--networks",
    type=click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True),
    metavar="FILE",
    help="Subnets and security groups that functions may name: docs/networks.md.",
)
@click.option(
    "--network-deny", default="", metavar="CIDR[,CIDR]", help="Where no function may connect to, whatever its network."
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
    default="reduced",
    show_default=True,
    metavar="LEVEL",
    help="full, standard or reduced: do not start where the machine protects itself less, whatever is allowed.",
)
@click.option(
    "--merge-memory",
    is_flag=True,
    help="Have the kernel (KSM) keep equal pages of idle functions once: for functions that trust each other.",
)
@click.option("--etcd", metavar="URL[,URL]", help="Use this etcd, which nobody else uses, and start none.")
@click.option("--nats", metavar="URL[,URL]", help="Use this NATS with JetStream, and start none.")
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Directory with what these ask for: etcd-ca.pem, etcd-client.pem, etcd-client.key, nats.user, nats.password.",
)
@click.option("--detach", is_flag=True, help="Return when the cluster is ready; it goes on in the background.")
@_output_option
@click.option("--report-fd", type=int, hidden=True)
def up(  # noqa: PLR0917, click gives the options by name
    nodes: int,
    data_dir: Path | None,
    grpc_port: int,
    http_port: int,
    memory: int | None,
    keep_alive: float,
    keep_alive_policy: str,
    eviction_policy: str,
    placement_policy: str,
    max_queue_wait: float,
    allow_missing: str,
    networks: Path | None,
    network_deny: str,
    recycle_after_invocations: int | None,
    recycle_after_hours: float | None,
    require_isolation: str,
    merge_memory: bool,
    etcd: str | None,
    nats: str | None,
    credentials: Path | None,
    detach: bool,
    output: str,
    report_fd: int | None,
) -> None:
    r"""Start a cluster on this machine and keep it until Ctrl-C.

    It consists of etcd, nats-server, a scheduler and node agents, each a child process of this one. Without root,
    sandboxes are made in a user namespace; what limits there are then is what `lambent doctor` tells.

    \b
    Examples:
      lambent up --memory 4096
      lambent up --detach --recycle-after-hours 24
      lambent up --allow-missing memory
      echo 1 | sudo tee /sys/kernel/mm/ksm/run && lambent up --merge-memory
      systemd-run --user --scope --property=Delegate=yes lambent up
    """
    directory = DataDirectory((data_dir or default_data_dir(os.environ)).absolute())
    if detach:
        given = click.get_current_context().params | {"data_dir": directory.root}
        flags = {name: value for name, value in given.items() if name not in {"detach", "output", "report_fd"}}
        arguments = [argument for name, value in flags.items() for argument in _as_arguments(name, value)]
        with _errors_shown():
            _say_ready(start_detached(arguments), directory, output=output, detached=True)
        return
    request = _Request(
        nodes=nodes,
        memory_mib=memory,
        agent_flags=(
            *_agent_flags(allow_missing, require_isolation, networks, network_deny),
            *(["--merge-memory"] if merge_memory else []),
            *Recycling(recycle_after_invocations, recycle_after_hours).flags(),
        ),
        scheduler=SchedulerOptions(
            grpc_port, http_port, keep_alive, max_queue_wait, keep_alive_policy, eviction_policy, placement_policy
        ),
        given=GivenStores(etcd, nats, credentials),
    )
    if report_fd is None:
        with _errors_shown():
            _run(directory, request, functools.partial(_say_ready, directory=directory, output=output, detached=False))
        return
    report = Report(report_fd)

    def on_ready(cluster: dict[str, str]) -> None:
        report.ready(cluster)
        move_output(directory.log("supervisor"))

    try:
        _run(directory, request, on_ready)
    except SupervisorError as error:
        report.failed(error)
        sys.exit(1)


@click.command()
@_data_dir_option
@_output_option
def down(data_dir: Path | None, output: str) -> None:
    """Stop the cluster that `lambent up` started, and remove whatever one that was killed has left."""
    directory = DataDirectory(data_dir or default_data_dir(os.environ))
    with _errors_shown():
        stopped = stop_cluster(directory)
    if output == "json":
        click.echo(json.dumps({"data_dir": str(directory.root), "stopped": stopped}))
    else:
        click.echo(f"Stopped the cluster in {directory.root}." if stopped else f"No cluster runs in {directory.root}.")


@dataclass(frozen=True, slots=True)
class _Request:
    """What the operator asked for.

    Attributes:
        nodes: Number of agents.
        memory_mib: Memory of all of them together; None for the default.
        agent_flags: What all agents are told.
        scheduler: What the scheduler is told.
        given: Stores that are not to be started.
    """

    nodes: int
    memory_mib: int | None
    agent_flags: tuple[str, ...]
    scheduler: SchedulerOptions
    given: GivenStores


def _as_arguments(option: str, value: object) -> list[str]:
    """Write an option, by the name that click gives it, as on a command line; nothing when it was not given."""
    flag = f"--{option.replace('_', '-')}"
    if value is None or value is False:
        return []
    return [flag if value is True else f"{flag}={value}"]


def _agent_flags(
    allow_missing: str, require_isolation: str, networks: Path | None, network_deny: str
) -> tuple[str, ...]:
    flags = [
        f"--allow-missing={allow_missing}",
        f"--require-isolation={require_isolation}",
        f"--network-deny={network_deny}",
    ]
    return tuple(flags if networks is None else [*flags, f"--networks={networks}"])


def _run(directory: DataDirectory, request: _Request, on_ready: Callable[[dict[str, str]], None]) -> None:
    """Check everything that can be checked beforehand, then supervise until a signal comes."""
    search_path = os.environ.get("PATH", os.defpath)
    etcd = None if request.given.etcd else require(ETCD, search_path)
    nats = None if request.given.nats else require(NATS_SERVER, search_path)
    share = divide(read_machine(), request.nodes, request.memory_mib, free_disk_mib(directory.root))
    notice = functools.partial(_notice, log=directory.log("supervisor"))
    with LockedDataDirectory(directory) as locked:
        check_free(request.scheduler.grpc_port, "--grpc-port")
        check_free(request.scheduler.http_port, "--http-port")
        stores = [str(program) for program in (etcd, nats) if program is not None]
        notice(f"starting {', '.join([*stores, 'a scheduler'])} and {_of_nodes(request.nodes, share)}")
        if share.remark is not None:
            notice(share.remark)
        if os.geteuid() != 0:
            notice("without root: `lambent doctor` and the node's labels tell which limits are not enforced")
        # Variables of the CLI would be taken for the daemons' own.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LAMBENT_")}
        config = ClusterConfig(
            nodes=request.nodes,
            share=share,
            agent_flags=request.agent_flags,
            scheduler=request.scheduler,
            etcd_program=None if etcd is None else etcd.path,
            nats_program=None if nats is None else nats.path,
            given=request.given,
            environment=environment,
        )

        def ready(address: Address) -> None:
            on_ready({"grpc": address.grpc, "http": address.http, "data_dir": str(directory.root)})

        asyncio.run(Supervisor(config, locked, notice).run(ready))


def _say_ready(cluster: dict[str, str], directory: DataDirectory, *, output: str, detached: bool) -> None:
    if output == "json":
        text = json.dumps(cluster)
    else:
        stop = f"Stop it with: lambent down --data-dir {directory.root}" if detached else "Stop it with Ctrl-C."
        text = f"Ready: gRPC {cluster['grpc']}, HTTP {cluster['http']}, data in {directory.root}\n{stop}"
    tell(text, directory.log("supervisor"), err=False)


def _notice(text: str, log: Path) -> None:
    """Tell the operator; with the time when it goes into a file."""
    stamp = "" if sys.stderr.isatty() else dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ ")
    tell(f"{stamp}lambent: {text}", log)


def _of_nodes(nodes: int, share: NodeShare) -> str:
    count = "1 node" if nodes == 1 else f"{nodes} nodes, each"
    return f"{count} with {share.memory_mib} MiB and {share.cpus:g} CPUs"


@contextlib.contextmanager
def _errors_shown() -> Iterator[None]:
    try:
        yield
    except SupervisorError as error:
        raise (WrongUsageError if isinstance(error, NodeShareError) else CommandFailedError)(error) from error
