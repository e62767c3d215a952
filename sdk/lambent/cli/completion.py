"""`lambent completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Examples:
      eval "$(lambent completion bash)"                        in ~/.bashrc
      eval "$(lambent completion zsh)"                         in ~/.zshrc
      lambent completion fish > ~/.config/fish/completions/lambent.fish
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines
    found = get_completion_class(shell)
    assert found is not None
    root = ctx.find_root()
    click.echo(found(root.command, {}, "lambent", "_LAMBENT_COMPLETE").source())
