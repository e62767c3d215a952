"""`tools/setup` in a checkout of its own: what it makes, when it makes it anew, what it says when something lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "tools" / "setup"
NOBODY = 65_534
TOOLS = ["sh", "id", "cat", "cut", "sha256sum", "dirname", "mktemp", "rm", "mv", "touch", "tail", "dpkg-deb", "tar"]

# A package that needs nothing from an index: its build backend is in its own folder.
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small"
version = "1"
"""
BACKEND = """
import zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = "small-1-py3-none-any.whl"
    files = {
        "small.py": "def main(): print('it runs')",
        "small-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\n",
        "small-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: own\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "small-1.dist-info/entry_points.txt": "[console_scripts]\\nsmall = small:main\\n",
    }
    files["small-1.dist-info/RECORD"] = "".join(f"{path},,\\n" for path in files)
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""


class Checkout:
    """A checkout that has `tools/setup` and what that reads, and that others than root can read.

    Attributes:
        root: Where it is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "tools").mkdir(parents=True)
        (root / "requirements").mkdir()
        shutil.copy(SETUP, root / "tools" / "setup")
        for name in ("runtime", "dev"):
            (root / "requirements" / f"{name}.lock").write_text("# nothing\n")
        (root / "pyproject.toml").write_text(PYPROJECT)
        (root / "backend.py").write_text(BACKEND)

    def setup(self, kind: str, *, path: str = "", root: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the set-up.

        Args:
            kind: What for.
            path: Where programs are looked for; PATH unless given.
            root: False to run as somebody who may not install anything.
        """
        return subprocess.run(
            [self.root / "tools" / "setup", kind],
            env={**os.environ, "PATH": path or os.environ["PATH"], "PIP_NO_INDEX": "1"},
            user=None if root or os.geteuid() != 0 else NOBODY,
            capture_output=True,
            text=True,
            check=False,
        )

    def run_script(self) -> str:
        """Run the command that the package brings."""
        command = [self.root / ".venv" / "bin" / "small"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that everybody can read."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="module")
def checkout(folder: Path) -> Checkout:
    """One that is set up for everything; tests leave it so."""
    made = Checkout(folder / "checkout")
    done = made.setup("dev")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def programs(folder: Path) -> Iterator[Path]:
    """A folder with the programs that the set-up itself runs, and with no etcd, bubblewrap and apt-get."""
    programs = folder / "programs"
    programs.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    yield programs
    shutil.rmtree(programs)


def program(path: Path, script: str) -> None:
    """Write a program for the set-up to find."""
    path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}")
    path.chmod(0o755)


def test_second_set_up_has_nothing_to_do(checkout: Checkout) -> None:
    """Every target of the Makefile runs it first: it takes well under the two seconds that it may, and says nothing."""
    assert checkout.run_script() == "it runs\n"
    start = time.monotonic()
    second = checkout.setup("dev")
    assert time.monotonic() - start < 2
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_moved_checkout_is_set_up_again(checkout: Checkout) -> None:
    """The scripts of an environment name the path of their interpreter."""
    before = checkout.root
    checkout.root = before.rename(before.with_name("moved"))
    moved = checkout.setup("dev")
    assert moved.returncode == 0, moved.stderr
    assert "making .venv" in moved.stderr
    assert checkout.run_script() == "it runs\n"
    scripts = [path for path in (checkout.root / ".venv" / "bin").iterdir() if not path.is_symlink()]
    assert not [path.name for path in scripts if bytes(before) in path.read_bytes()]


def test_changed_lock_is_installed(checkout: Checkout) -> None:
    """Whoever pulls a new dependency need not know of it."""
    (checkout.root / "requirements" / "dev.lock").write_text("# nothing, but otherwise\n")
    changed = checkout.setup("dev")
    assert changed.returncode == 0
    assert changed.stderr == "setup: installing requirements/dev.lock\n"
    assert checkout.setup("dev").stderr == ""


@pytest.mark.parametrize("kind", ["runtime", "demo", "dev", "bench"])
def test_missing_package_is_one_line_that_says_what_to_install(checkout: Checkout, programs: Path, kind: str) -> None:
    """Who is not root cannot have it installed, and is told the command."""
    program(programs / "apt-get", "echo called >&2; exit 1")
    missing = checkout.setup(kind, path=str(programs), root=False)
    assert missing.returncode == 1
    assert missing.stderr == "setup: missing: etcd-server. Install with: sudo apt-get install etcd-server\n"


def test_without_bubblewrap_the_bench_goes_on(checkout: Checkout, programs: Path) -> None:
    """Its rows then say what is missing; the rest is measured."""
    program(programs / "etcd", "")
    program(programs / "apt-get", "echo called >&2; exit 1")
    went_on = checkout.setup("bench", path=str(programs), root=False)
    assert went_on.returncode == 0
    assert went_on.stderr == "setup: missing: bubblewrap. Install with: sudo apt-get install bubblewrap\n"


def test_unknown_kind_is_refused(checkout: Checkout) -> None:
    """A slip in the Makefile does not pass for a set-up."""
    assert checkout.setup("everything").returncode == 2


@pytest.fixture
def without_tests(checkout: Checkout, programs: Path) -> Iterator[Checkout]:
    """A checkout on a machine whose Python comes without the standard library's tests."""
    python = (checkout.root / ".venv" / ".home").read_text().split()[1]
    has_tests = "import importlib.util, sys; sys.exit(importlib.util.find_spec('test.test_ast') is None)"
    if subprocess.run([python, "-c", has_tests], check=False).returncode == 0:
        pytest.skip("this system's Python has its tests")
    assert checkout.setup("runtime").returncode == 0
    program(programs / "etcd", "")
    yield checkout
    (checkout.root / ".venv" / ".no-testsuite").unlink(missing_ok=True)
    shutil.rmtree(checkout.root / ".venv" / "testsuite", ignore_errors=True)


def test_tests_of_python_are_unpacked_for_the_demo(without_tests: Checkout, programs: Path, tmp_path: Path) -> None:
    """Debian's package of them is not installed, and so changes nothing outside the checkout."""
    package = tmp_path / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN" / "control").write_text(
        "Package: tests\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: tests\n"
    )
    (package / "usr" / "test").mkdir(parents=True)
    (package / "usr" / "test" / "test_ast.py").write_text("x = 1\n")
    for folder in (package, package / "DEBIAN"):
        folder.chmod(0o755)
    archive = tmp_path / "tests.deb"
    subprocess.run(["dpkg-deb", "--build", package, archive], check=True, stdout=subprocess.DEVNULL)
    program(programs / "apt-get", f'[ "$1" = download ] && cat {archive} >"$2.deb"\n')
    unpacked = without_tests.setup("demo", path=str(programs))
    assert unpacked.returncode == 0
    assert unpacked.stderr.startswith("setup: unpacking libpython3.")
    assert unpacked.stderr.count("\n") == 1
    assert (without_tests.root / ".venv" / "testsuite" / "usr" / "test" / "test_ast.py").read_text() == "x = 1\n"
    assert without_tests.setup("demo", path=str(programs)).stderr == ""


def test_demo_goes_on_without_the_tests_of_python(without_tests: Checkout, programs: Path) -> None:
    """A network that is not there costs one attempt, not one a run."""
    program(programs / "apt-get", "echo 'no network' >&2; exit 100")
    first = without_tests.setup("demo", path=str(programs))
    assert first.returncode == 0
    assert "no network" in first.stderr
    assert "the demo reads the files that there are" in first.stderr
    second = without_tests.setup("demo", path=str(programs))
    assert (second.returncode, second.stderr) == (0, "")
