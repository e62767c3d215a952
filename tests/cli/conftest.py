"""A service, the data directory that names it, and the command run against it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from tests.sdk.service import TOKEN, Service, serving_in_thread

from lambent.cli.main import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Read the output."""
        return json.loads(self.out)


class Run(Protocol):
    """Run a command in this process: the same code as the process's, without half a second of imports."""

    def __call__(self, *arguments: str) -> Ran:
        """Give what it left."""
        ...


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """Serve, as a cluster of this machine whose data directory says where."""
    with serving_in_thread() as running:
        data_dir = tmp_path / "data"
        data_dir.mkdir()
        (data_dir / "cluster.json").write_text(json.dumps({"grpc": running.address, "http": ""}))
        (data_dir / "token").write_text(TOKEN)
        monkeypatch.setenv("LAMBENT_DATA_DIR", str(data_dir))
        yield running


@pytest.fixture
def lambent(capfd: pytest.CaptureFixture[str]) -> Run:
    def invoke(*arguments: str) -> Ran:
        try:
            code = run(arguments)
        except SystemExit as stop:  # Completion ends the process itself.
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return invoke


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "app.py").write_text("def handler(event, context): return event\n")
    return folder
