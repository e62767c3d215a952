"""The project's own rules: generated code is current, imports go one way, tests do not sleep, locks are whole."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.generate_protos import generate

ROOT = Path(__file__).resolve().parents[2]

# Each package, where it lives, and what of ours it may import.
PACKAGES = {
    "lambent": ("sdk", set()),
    "lambent_common": ("common", {"lambent"}),
    "lambent_scheduler": ("scheduler", {"lambent", "lambent_common"}),
    "lambent_node_agent": ("node_agent", {"lambent", "lambent_common", "lambent_runtime"}),
    "lambent_runtime": ("node_agent", set()),
    "lambent_supervisor": ("supervisor", {"lambent", "lambent_common"}),
    "lambent_simulator": ("simulator", {"lambent", "lambent_common", "lambent_scheduler"}),
    "lambent_load": ("load_generator", {"lambent", "lambent_common"}),
}


def modules(package: str) -> list[Path]:
    """The source files of a package."""
    return sorted((ROOT / PACKAGES[package][0] / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of what a file imports from elsewhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    """SDK, common, then either daemon: whoever installs the SDK gets no daemon, and neither daemon needs the other.

    The simulator has the scheduler's decisions, and nothing has the simulator.
    """
    allowed = PACKAGES[package][1] | {package}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imported(path)
        if name in PACKAGES and name not in allowed
    }
    assert not wrong


def test_the_runtime_needs_the_standard_library_alone() -> None:
    """It runs in sandboxes, under interpreters that have nothing of ours installed."""
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("lambent_runtime")
        for name in imported(path)
        if name not in sys.stdlib_module_names | {"lambent_runtime"}
    }
    assert not wrong


def test_generated_code_is_current(tmp_path: Path) -> None:
    """Who changes a proto runs `make proto`; who changes the generated code by hand is found out."""
    generate(tmp_path)
    made = {path.name: path.read_text() for path in (tmp_path / "lambent" / "v1").iterdir()}
    by_hand = {"__init__.py"}
    files = [path for path in (ROOT / "sdk/lambent/v1").iterdir() if path.is_file() and path.name not in by_hand]
    committed = {path.name: path.read_text() for path in files}
    assert made.keys() == committed.keys()
    assert [name for name in made if made[name] != committed[name]] == []


def sleeps(path: Path) -> Iterator[int]:
    """Lines on which a file waits for time to pass; `sleep(0)` only lets others run.

    Code of functions under test is text in these files, and not looked at.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            gives_way = [ast.dump(argument) for argument in node.args] == [ast.dump(ast.Constant(0))]
            if called == "sleep" and not gives_way:
                yield node.lineno


def test_tests_do_not_sleep() -> None:
    """A test waits for what it tests, under a deadline; a sleep is too long on a good day, too short on a bad one."""
    found = [f"{path.relative_to(ROOT)}:{line}" for path in (ROOT / "tests").rglob("*.py") for line in sleeps(path)]
    assert found == []


def locked(name: str) -> dict[str, str]:
    """Package names and versions of a lock file."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE | re.IGNORECASE))


@pytest.mark.parametrize("name", ["runtime.lock", "dev.lock"])
def test_locks_pin_everything_and_name_no_index(name: str) -> None:
    """The same files come from whichever index or mirror a machine uses, or the installation stops."""
    text = (ROOT / "requirements" / name).read_text()
    assert "://" not in text
    assert "--index" not in text
    requirements = re.split(r"^(?=[a-z0-9])", text.replace("\\\n", " "), flags=re.MULTILINE | re.IGNORECASE)[1:]
    assert len(requirements) == len(locked(name)) > 20
    assert all("--hash=sha256:" in requirement for requirement in requirements)


def test_what_runs_is_what_is_tested() -> None:
    """The runtime's lock has the versions of the developers'."""
    developers = locked("dev.lock")
    assert {name: developers.get(name) for name in locked("runtime.lock")} == locked("runtime.lock")


def test_locks_cover_what_is_declared() -> None:
    """Who adds a dependency runs `make lock`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in requirements}

    assert names(project["dependencies"] + extras["build"]) <= locked("runtime.lock").keys()
    assert names(extras["dev"]) <= locked("dev.lock").keys()
