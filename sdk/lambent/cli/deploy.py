"""`lambent deploy`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lambent.cli.options import Assignment, FunctionName, Seconds, cluster_command
from lambent.cli.output import Output, size
from lambent.results import NetworkMode, VpcConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lambent.blocking import Client


@click.command()
@click.argument("name", type=FunctionName())
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--handler", metavar="MODULE.FUNCTION", help="What to call, for example app.handler. Needed the first time."
)
@click.option("--runtime", help="For example python3.11. [default: this interpreter's version]")
@click.option(
    "--memory-mib", type=click.IntRange(128, 10_240), help="Memory; CPU is proportional to it. [default: 128]"
)
@click.option("--timeout-s", type=Seconds(1, 900), help="Longest run of one invocation. [default: 3]")
@click.option("--env", "environment", type=Assignment(), multiple=True, help="An environment variable; repeatable.")
@click.option("--clear-env", is_flag=True, help="Remove the environment variables that are not given by --env.")
@click.option("--ephemeral-storage-mib", type=click.IntRange(512, 10_240), help="Size of /tmp. [default: 512]")
@click.option(
    "--snap-start/--no-snap-start",
    default=None,
    help="Have environments of published versions initialised before calls come for them. [default: no]",
)
@click.option("--description", help="At most 256 characters.")
@click.option(
    "--network",
    type=click.Choice([mode.value for mode in NetworkMode]),
    help="Where connections may go: nowhere, or to public addresses. [default: egress]",
)
@click.option("--subnet-ids", metavar="ID[,ID]", help="Networks of the operator to connect to instead; '' ends that.")
@click.option("--security-group-ids", metavar="ID[,ID]", help="What of these networks is allowed.")
@click.option(
    "--requirements",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Requirements file, installed beside the code for the runtime's Python version.",
)
@click.option("--publish", is_flag=True, help="Publish a version of the result.")
@click.option("--alias", default="", help="Put this alias on the published version; implies --publish.")
@cluster_command
def deploy(
    client: Client,
    out: Output,
    *,
    name: str,
    path: Path,
    handler: str | None,
    runtime: str | None,
    memory_mib: int | None,
    timeout_s: float | None,
    environment: tuple[tuple[str, str], ...],
    clear_env: bool,
    ephemeral_storage_mib: int | None,
    snap_start: bool | None,
    description: str | None,
    network: str | None,
    subnet_ids: str | None,
    security_group_ids: str | None,
    requirements: Path | None,
    publish: bool,
    alias: str,
) -> None:
    """Create the function NAME from the code at PATH, or update it.

    PATH is a folder, a source file or a zip. What is not given stays as it is; what is the same already is not
    touched.

    \b
    Examples:
      lambent deploy hello ./hello --handler app.handler
      lambent deploy hello ./hello.zip --memory-mib 512 --timeout-s 10 --env MODE=fast
      lambent deploy hello ./hello --subnet-ids subnet-db --security-group-ids sg-postgres
      lambent deploy hello ./hello --requirements ./hello/requirements.txt --alias live
      lambent deploy model ./model --snap-start --alias live
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    variables = dict(environment) if environment or clear_env else None
    with _progress(out) as on_progress:
        function = client.deploy(
            name,
            path,
            handler=handler,
            runtime=runtime,
            memory_mib=memory_mib,
            timeout_s=timeout_s,
            environment=variables,
            ephemeral_storage_mib=ephemeral_storage_mib,
            snap_start=snap_start,
            description=description,
            network=None if network is None else NetworkMode(network),
            vpc_config=_vpc_config(subnet_ids, security_group_ids),
            requirements=requirements,
            publish=publish,
            alias=alias,
            on_progress=on_progress,
        )
    if out.as_json:
        out.json(function)
        return
    suffix = f", alias {alias}" if alias else ""
    click.echo(
        f"{function.function_name} version {function.version}{suffix}: {function.runtime}, {function.memory_mib} MiB, "
        f"{size(function.code_size_bytes)}, {function.code_sha256[:12]}"
    )


def _vpc_config(subnet_ids: str | None, security_group_ids: str | None) -> VpcConfig | None:
    if subnet_ids is None and security_group_ids is None:
        return None
    return VpcConfig(_ids(subnet_ids), _ids(security_group_ids))


def _ids(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (text or "").split(",")))


@contextlib.contextmanager
def _progress(out: Output) -> Iterator[Callable[[int, int], None] | None]:
    """Show the upload on a terminal."""
    if not out.terminal:
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 - only terminals pay for it
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415 - as above

    columns = (TextColumn("uploading"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def on_progress(sent_bytes: int, total_bytes: int) -> None:
            progress.update(task, completed=sent_bytes, total=total_bytes)

        yield on_progress
