"""The command, as tests of the CLI run it."""

from __future__ import annotations

from tests.cli.conftest import Ran, Run, lambent

__all__ = ["Ran", "Run", "lambent"]
