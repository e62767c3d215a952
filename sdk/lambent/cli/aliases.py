"""`lambent alias` and `lambent rollback`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lambent.cli.options import Exclusive, FunctionName, Share, cluster_command

if TYPE_CHECKING:
    from lambent.blocking import Client
    from lambent.cli.output import Output
    from lambent.results import Alias


@click.group()
def alias() -> None:
    """Name versions, and split calls between two of them.

    \b
    Examples:
      lambent alias create hello live --version 3
      lambent alias update hello live --version 3 --weight 4=0.1
      lambent alias list hello
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines


@alias.command("create")
@click.argument("name", type=FunctionName())
@click.argument("alias_name", metavar="ALIAS")
@click.option("--version", "version", required=True, help="Version that the alias points to.")
@click.option("--weight", type=Share(), help="VERSION=SHARE: send this share, 0 to 1, to another version.")
@click.option("--description", default="", help="At most 256 characters.")
@cluster_command
def create(
    client: Client,
    out: Output,
    *,
    name: str,
    alias_name: str,
    version: str,
    weight: tuple[str, float] | None,
    description: str,
) -> None:
    """Make ALIAS a name of a version of the function NAME.

    \b
    Example:
      lambent alias create hello live --version 3
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    made = client.functions.create_alias(
        name,
        alias_name,
        function_version=version,
        description=description,
        additional_version_weights=_weights(weight),
    )
    _show(out, made)


@alias.command("update")
@click.argument("name", type=FunctionName())
@click.argument("alias_name", metavar="ALIAS")
@click.option("--version", "version", help="Version that the alias is to point to.")
@click.option("--weight", type=Share(), help="VERSION=SHARE: send this share, 0 to 1, to another version.")
@click.option(
    "--no-weight", cls=Exclusive, excludes="weight", is_flag=True, help="Send everything to one version again."
)
@click.option("--description", help="At most 256 characters.")
@cluster_command
def update(
    client: Client,
    out: Output,
    *,
    name: str,
    alias_name: str,
    version: str | None,
    weight: tuple[str, float] | None,
    no_weight: bool,
    description: str | None,
) -> None:
    """Point ALIAS of the function NAME elsewhere. What is not given stays.

    \b
    Examples:
      lambent alias update hello live --version 4
      lambent alias update hello live --weight 5=0.1
      lambent alias update hello live --no-weight
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    changed = client.functions.update_alias(
        name,
        alias_name,
        function_version=version,
        description=description,
        additional_version_weights={} if no_weight else _weights(weight),
    )
    _show(out, changed)


@alias.command("list")
@click.argument("name", type=FunctionName())
@cluster_command
def list_aliases(client: Client, out: Output, *, name: str) -> None:
    """List the aliases of the function NAME.

    \b
    Example:
      lambent alias list hello
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    aliases = list(client.functions.list_aliases(name))
    if out.as_json:
        out.json(aliases)
        return
    out.table(
        ("ALIAS", "VERSION", "WEIGHTS", "PREVIOUS", "DESCRIPTION"),
        (
            (found.name, found.function_version, _shares(found), found.previous_function_version, found.description)
            for found in aliases
        ),
    )


@alias.command("delete")
@click.argument("name", type=FunctionName())
@click.argument("alias_name", metavar="ALIAS")
@cluster_command
def delete(client: Client, out: Output, *, name: str, alias_name: str) -> None:
    """Delete ALIAS of the function NAME. One that does not exist is no error.

    \b
    Example:
      lambent alias delete hello live
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    client.functions.delete_alias(name, alias_name)
    if out.as_json:
        out.json({"deleted": alias_name, "function_name": name})
    else:
        click.echo(f"deleted alias {alias_name} of {name}")


@click.command()
@click.argument("name", type=FunctionName())
@click.option("--alias", "alias_name", default="", help="Which alias; needed when the function has several.")
@cluster_command
def rollback(client: Client, out: Output, *, name: str, alias_name: str) -> None:
    """Put an alias back on its previous version.

    \b
    Examples:
      lambent rollback hello
      lambent rollback hello --alias live
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    _show(out, client.functions.rollback(name, alias=alias_name))


def _weights(weight: tuple[str, float] | None) -> dict[str, float] | None:
    return None if weight is None else dict((weight,))


def _shares(found: Alias) -> str:
    return ", ".join(f"{version}: {weight:.0%}" for version, weight in found.additional_version_weights.items())


def _show(out: Output, found: Alias) -> None:
    if out.as_json:
        out.json(found)
        return
    shares = f" ({_shares(found)})" if found.additional_version_weights else ""
    click.echo(f"{found.name} points to version {found.function_version}{shares}")
