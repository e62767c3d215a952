"""`lambent nodes` and `lambent status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lambent.cli.options import cluster_command
from lambent.cli.output import SERVICE_FAILED, Output, plain, when

if TYPE_CHECKING:
    from lambent.blocking import Client
    from lambent.results import Node


@click.command()
@cluster_command
def nodes(client: Client, out: Output) -> None:
    """List the nodes that are alive.

    With what is reserved of what they offer.

    \b
    Examples:
      lambent nodes
      lambent nodes --output json | jq '.[].capacity.memory_mib'
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    found = list(client.nodes())
    if out.as_json:
        out.json(found)
        return
    out.table(
        ("NODE", "ADDRESS", "STATE", "MEMORY", "CPU", "ENVIRONMENTS", "RUNTIMES", "LABELS", "SINCE"),
        (
            (
                node.node_id,
                node.address,
                _state(node),
                f"{node.reserved.get('memory_mib', 0)}/{node.capacity.get('memory_mib', 0)} MiB",
                f"{node.reserved.get('cpu_millis', 0) / 1000:g}/{node.capacity.get('cpu_millis', 0) / 1000:g}",
                str(node.environments),
                " ".join(node.runtimes),
                " ".join(f"{name}={value}" for name, value in sorted(node.labels.items())),
                when(node.start_time),
            )
            for node in found
        ),
    )


@click.command()
@cluster_command
@click.pass_context
def status(ctx: click.Context, client: Client, out: Output) -> None:
    """Show how the cluster is. Exits with 1 when a part of it does not answer.

    \b
    Example:
      lambent status
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    found = client.status()
    if out.as_json:
        described = plain(found)
        assert isinstance(described, dict)
        out.json({"healthy": found.healthy, "grpc": client.endpoint.grpc, **described})
    else:
        fields = {"cluster": f"{client.endpoint.grpc}, version {found.version}"}
        for component in found.components:
            state = "healthy" if component.healthy else "NOT HEALTHY"
            fields[component.name] = " ".join(filter(None, (state, component.version, component.message)))
        fields |= {
            "nodes": str(found.nodes),
            "functions": str(found.functions),
            "environments": str(found.environments),
            "concurrency": f"{found.concurrent_executions} of {found.account_concurrency_limit}",
            "waiting": str(found.waiting),
            "invocations": f"{found.invocations}, {found.cold_starts} cold starts, {found.throttles} throttled",
        }
        out.fields(fields)
    if not found.healthy:
        ctx.exit(SERVICE_FAILED)


def _state(node: Node) -> str:
    if node.draining:
        return "draining"
    return "ready" if node.attached else "not attached"
