"""`lambent list`, `describe`, `versions`, `delete` and `concurrency`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from lambent.cli.options import Exclusive, FunctionName, cluster_command
from lambent.cli.output import Output, size, when

if TYPE_CHECKING:
    from lambent.blocking import Client
    from lambent.results import Function


@click.command("list")
@cluster_command
def list_functions(client: Client, out: Output) -> None:
    """List the functions.

    \b
    Examples:
      lambent list
      lambent list --output json | jq -r '.[].function_name'
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    functions = list(client.functions.list())
    if out.as_json:
        out.json(functions)
        return
    out.table(
        ("NAME", "RUNTIME", "HANDLER", "MEMORY", "TIMEOUT", "CODE", "MODIFIED"),
        (
            (
                function.function_name,
                function.runtime,
                function.handler,
                f"{function.memory_mib} MiB",
                f"{function.timeout_s:g} s",
                size(function.code_size_bytes),
                when(function.last_modified),
            )
            for function in functions
        ),
    )


@click.command()
@click.argument("name", type=FunctionName())
@click.option("--qualifier", default="", help="Version number, alias or $LATEST.")
@cluster_command
def describe(client: Client, out: Output, *, name: str, qualifier: str) -> None:
    """Show the configuration of the function NAME.

    \b
    Examples:
      lambent describe hello
      lambent describe hello --qualifier live --output json
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    function = client.functions.get(name, qualifier=qualifier)
    if out.as_json:
        out.json(function)
        return
    out.fields(_fields(function))


@click.command()
@click.argument("name", type=FunctionName())
@cluster_command
def versions(client: Client, out: Output, *, name: str) -> None:
    """List the versions of the function NAME.

    On a terminal and in a pipe, with the aliases that point to them.

    \b
    Example:
      lambent versions hello
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    found = list(client.functions.list_versions(name))
    if out.as_json:
        out.json(found)
        return
    aliases: dict[str, list[str]] = {}
    for alias in client.functions.list_aliases(name):
        aliases.setdefault(alias.function_version, []).append(alias.name)
        for version, weight in alias.additional_version_weights.items():
            aliases.setdefault(version, []).append(f"{alias.name} ({weight:.0%})")
    out.table(
        ("VERSION", "STATE", "ALIASES", "CODE", "SHA-256", "MODIFIED", "DESCRIPTION"),
        (
            (
                function.version,
                function.state.value,
                ", ".join(aliases.get(function.version, ())),
                size(function.code_size_bytes),
                function.code_sha256[:12],
                when(function.last_modified),
                function.description,
            )
            for function in found
        ),
    )


@click.command()
@click.argument("name", type=FunctionName())
@click.option("--qualifier", default="", help="Delete only this published version.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask. Scripts, without a terminal, are never asked.")
@cluster_command
def delete(client: Client, out: Output, *, name: str, qualifier: str, yes: bool) -> None:
    """Delete the function NAME, or one version of it.

    \b
    Examples:
      lambent delete hello
      lambent delete hello --qualifier 3 --yes
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    described = f"version {qualifier} of {name}" if qualifier else f"{name} with its versions and aliases"
    if not yes and out.terminal and sys.stdin.isatty():
        click.confirm(f"Delete {described}?", abort=True)
    client.functions.delete(name, qualifier=qualifier)
    if out.as_json:
        out.json({"deleted": name, "qualifier": qualifier})
    else:
        click.echo(f"deleted {described}")


@click.command()
@click.argument("name", type=FunctionName())
@click.option(
    "--reserve", type=click.IntRange(min=0), help="Reserve this many, and cap the function at it; 0 blocks it."
)
@click.option("--clear", cls=Exclusive, excludes="reserve", is_flag=True, help="Remove the reservation.")
@cluster_command
def concurrency(client: Client, out: Output, *, name: str, reserve: int | None, clear: bool) -> None:
    """Show or set a function's reserved concurrency.

    \b
    Examples:
      lambent concurrency hello
      lambent concurrency hello --reserve 20
      lambent concurrency hello --clear
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    if clear:
        client.functions.delete_concurrency(name)
        reserved = None
    elif reserve is not None:
        reserved = client.functions.put_concurrency(name, reserve)
    else:
        reserved = client.functions.get_concurrency(name)
    if out.as_json:
        out.json({"function_name": name, "reserved_concurrent_executions": reserved})
    else:
        click.echo("none reserved" if reserved is None else f"{reserved} reserved")


def _fields(function: Function) -> dict[str, str]:
    update = f", last update {function.last_update_status.value}" if function.last_update_status.value else ""
    reasons = " ".join(filter(None, (function.state_reason, function.last_update_status_reason)))
    fields = {
        "name": function.function_name,
        "version": function.version,
        "arn": function.function_arn,
        "state": f"{function.state.value}{update}" + (f" ({reasons})" if reasons else ""),
        "runtime": function.runtime,
        "handler": function.handler,
        "memory": f"{function.memory_mib} MiB",
        "timeout": f"{function.timeout_s:g} s",
        "/tmp": f"{function.ephemeral_storage_mib} MiB",  # noqa: S108 - a label
        "network": _network(function),
        "code": f"{size(function.code_size_bytes)}, sha256 {function.code_sha256}",
        "modified": when(function.last_modified),
        "revision": function.revision_id,
    }
    if function.snap_start:
        fields["SnapStart"] = "on, optimized" if function.snap_start_optimized else "on"
    if function.description:
        fields["description"] = function.description
    if function.reserved_concurrency is not None:
        fields["reserved concurrency"] = str(function.reserved_concurrency)
    for name, value in sorted(function.environment.items()):
        fields[f"env {name}"] = value
    return fields


def _network(function: Function) -> str:
    config = function.vpc_config
    if config.subnet_ids:
        return f"vpc {', '.join(config.subnet_ids)}, allowed by {', '.join(config.security_group_ids)}"
    return function.network.value
