"""The command as a whole: help, completion, daemons' commands, pipes."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click
import pytest
from tests.cli.conftest import Run
from tests.sdk.service import Service

from lambent.cli import main

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = (sys.executable, "-c", "from lambent.cli.main import main; main()")


def _commands(group: click.Group, prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    ctx = click.Context(group)
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in main._COMMANDS if group is main.cli else group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += _commands(command, (*prefix, name))
        else:
            found.append(((*prefix, name), command))
    return found


@pytest.mark.parametrize(("path", "command"), _commands(main.cli))
def test_every_command_explains_itself_and_can_speak_json(path: tuple[str, ...], command: click.Command) -> None:
    """Help says what it does and shows an example; every option has a word of its own."""
    help_text = command.get_help(click.Context(command, info_name=path[-1]))
    assert command.help
    assert "Example" in help_text
    if path != ("completion",):
        assert "--output" in help_text
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_help_lists_commands_of_use_first() -> None:
    """And works although one of the daemons cannot be imported."""
    ran = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.index("  deploy ") < ran.stdout.index("  up ")


def test_command_that_cannot_be_loaded_says_so_and_spoils_nothing(
    lambent: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SDK alone on a laptop has no daemons."""
    point = importlib.metadata.EntryPoint("up", "no_such_module:up", "lambent.commands")
    monkeypatch.setattr(main, "_entry_points", lambda: importlib.metadata.EntryPoints([point]))
    assert lambent("--help").code == 0
    ran = lambent("up", "--nodes", "2")
    assert ran.code == 1
    assert "`lambent up` cannot be loaded" in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_one_the_shell_accepts(lambent: Run, tmp_path: Path, shell: str) -> None:
    """Checked by the shell itself where it is installed."""
    ran = lambent("completion", shell)
    assert ran.code == 0
    assert "_LAMBENT_COMPLETE" in ran.out
    if shutil.which(shell) is not None:
        script = tmp_path / "completion"
        script.write_text(ran.out)
        subprocess.run([shell, "-n", str(script)], check=True, timeout=20)


def test_shell_completes_function_names(
    service: Service, lambent: Run, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster knows them."""
    for name in ("hello", "help", "other"):
        lambent("deploy", name, str(code), "--handler", "app.handler")
    monkeypatch.setenv("COMP_WORDS", "lambent invoke hel")
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("_LAMBENT_COMPLETE", "bash_complete")
    ran = lambent()
    assert ran.out.split() == ["plain,hello", "plain,help"]


def test_completion_waits_for_no_cluster(
    lambent: Run, tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever presses TAB gets nothing soon, not something late."""
    (tmp_path / "cluster.json").write_text(f'{{"grpc": "127.0.0.1:{unused_tcp_port}"}}')
    monkeypatch.setenv("LAMBENT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COMP_WORDS", "lambent invoke hel")
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("_LAMBENT_COMPLETE", "bash_complete")
    began = time.monotonic()
    assert lambent().out.split() == []
    assert time.monotonic() - began < 6


def test_reader_that_has_enough_is_no_error(service: Service, tmp_path: Path) -> None:
    """`lambent list | head -1` prints a line and no traceback."""
    shell = f"{sys.executable} -c 'from lambent.cli.main import main; main()' nodes | true"
    ran = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.stderr) == ("", "")
