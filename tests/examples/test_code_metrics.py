"""The demo's own code on a few files, against the shared cluster."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import pytest_asyncio
from rich.console import Console
from tests.cluster import Cluster

from lambent import AsyncClient

DEMO = Path(__file__).parents[2] / "examples" / "code_metrics" / "demo.py"


@pytest.fixture
def output() -> io.StringIO:
    """What the demo prints."""
    return io.StringIO()


@pytest.fixture
def demo(output: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The demo as a module, with fewer calls for its figures."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # it adds its folder, for the function's code
    spec = importlib.util.spec_from_file_location("code_metrics_demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    module.console = Console(file=output, width=200)
    module.COLD_CALLS = 2
    module.WARM_CALLS = 5
    yield module
    del sys.modules["handler"]


@pytest_asyncio.fixture
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    """A client of the shared cluster; the functions that the test made are deleted."""
    async with AsyncClient(data_dir=cluster.data_dir) as client:
        before = {function.function_name async for function in client.functions.list()}
        yield client
        after = [function.function_name async for function in client.functions.list()]
        for name in set(after) - before:
            await client.functions.delete(name)


@pytest.fixture
def files(demo: ModuleType, tmp_path: Path) -> dict[str, Path]:
    """A few of the demo's files, those that are longer than a frame among them, and one that is no Python."""
    found = demo.source_files()
    largest = sorted(found, key=lambda name: -found[name].stat().st_size)[:8]
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    return {name: found[name] for name in [*sorted(found)[:8], *largest]} | {"broken.py": broken}


@pytest.mark.usefixtures("client")
async def test_demo_shows_what_it_promises(
    demo: ModuleType, files: dict[str, Path], cluster: Cluster, output: io.StringIO
) -> None:
    """Totals that are those of one local process, figures, a stream, an error with its trace, a timeout."""
    assert await demo.demo(cluster.data_dir, files)
    printed = output.getvalue()
    assert f"{len(files) - 1} files" in printed
    assert "cannot parse them: broken.py" in printed
    assert "the same code in one local process gives the same" in printed
    for figure in (
        "invocations per second",
        "cold starts among them",
        "cold p50",
        "warm p50",
        "warm p99",
        "nodes used",
    ):
        assert figure in printed
    assert "__future__.py: " in printed
    assert "FunctionError: SyntaxError: invalid syntax" in printed
    assert 'File "/var/task/handler.py"' in printed
    assert "Task timed out after 1.00 seconds" in printed


@pytest.mark.usefixtures("client")
async def test_demo_fails_when_the_answers_differ(
    demo: ModuleType, files: dict[str, Path], cluster: Cluster, output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is one: other code here, and the demo says so."""
    right = demo.local.handler
    monkeypatch.setattr(demo.local, "handler", lambda event: right(event) | {"lines": 0})
    assert not await demo.demo(cluster.data_dir, dict(list(files.items())[:2]))
    assert "gives other totals" in output.getvalue()


@pytest.mark.parametrize(("name", "shown"), [("broken", "show_failure"), ("endless", "show_timeout")])
async def test_demo_fails_when_a_failure_does_not_come(
    demo: ModuleType, client: AsyncClient, tmp_path: Path, name: str, shown: str
) -> None:
    """A cluster that lost its limits or its errors does not pass for one that has them."""
    (tmp_path / "handler.py").write_text("def handler(event, context): return 'all is well'\n")
    await client.deploy(name, tmp_path / "handler.py", handler="handler.handler")
    with pytest.raises(RuntimeError, match="all is well"):
        await getattr(demo, shown)(client)


def test_sources_are_those_of_the_standard_library(demo: ModuleType, output: io.StringIO) -> None:
    """Each once, by its path in the library, and it is said where they are."""
    found = demo.source_files()
    assert len(found) > 600
    assert found["ast.py"].name == "ast.py"
    assert not any("site-packages" in name or "dist-packages" in name for name in found)
    assert "source files of Python" in output.getvalue()


def test_tests_of_the_library_come_from_the_environment_where_the_system_has_none(
    demo: ModuleType, output: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's package of them is unpacked beside the environment; a file that is in both counts once."""
    library = tmp_path / "library"
    unpacked = tmp_path / "venv" / "testsuite" / library.relative_to("/")
    for path in (library / "ast.py", library / "site-packages" / "other.py", unpacked / "ast.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n")
    monkeypatch.setattr(demo.sysconfig, "get_path", lambda _name: str(library))
    monkeypatch.setattr(demo.sys, "prefix", str(tmp_path / "venv"))
    assert demo.source_files() == {"ast.py": library / "ast.py"}
    assert "tests are not here" in output.getvalue()

    (unpacked / "test").mkdir()
    (unpacked / "test" / "test_ast.py").write_text("x = 1\n")
    output.truncate(0)
    assert demo.source_files() == {"ast.py": library / "ast.py", "test/test_ast.py": unpacked / "test" / "test_ast.py"}
    assert "1 source files" in output.getvalue()
    assert "tests are not here" not in output.getvalue()
