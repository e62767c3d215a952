"""`tools/setup` in a checkout of its own: what it makes, when it makes it anew, what it says when something lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "tools" / "setup"
NOBODY = 65_534
TOOLS = [
    "sh",
    "id",
    "cat",
    "cut",
    "sha256sum",
    "dirname",
    "mktemp",
    "rm",
    "mv",
    "touch",
    "tail",
    "dpkg-deb",
    "tar",
    "grep",
    "chmod",
    "head",
    "sed",
    "uname",
]

# Takes a lock as apt does; with a second argument, keeps it until it is killed.
LOCK = """
import fcntl, signal, sys

file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
if len(sys.argv) > 2:
    print("held", flush=True)
    signal.pause()
"""

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


@pytest.fixture
def as_root(programs: Path) -> Path:
    """The folder of programs, where the set-up takes itself for root, and etcd can be installed."""
    (programs / "id").unlink()
    program(programs / "id", "echo 0")
    program(programs / "systemctl", "")
    return programs


def can_install_etcd(programs: Path, update: str) -> None:
    """Write an apt-get whose update is this script."""
    program(
        programs / "apt-get",
        f"""
        case $1 in
        update) {update} ;;
        install) : >{programs}/etcd; chmod +x {programs}/etcd ;;
        esac
        """,
    )


@pytest.fixture
def own_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the lock of the package lists of an apt-get that leaves the system's alone."""
    if not Path("/usr/bin/apt-get").exists():
        pytest.skip("this system has no apt-get")
    for folder in ("lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/sources.list.d"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "status").touch()
    configuration = tmp_path / "apt.conf"
    configuration.write_text(
        f'Dir::State "{tmp_path}"; Dir::State::status "{tmp_path}/status"; Dir::Cache "{tmp_path}/cache";'
        f'Dir::Etc "{tmp_path}/etc"; APT::Sandbox::User "";'
    )
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    return tmp_path / "lists" / "lock"


def test_lists_that_another_program_updates_are_waited_for(
    checkout: Checkout, as_root: Path, own_apt: Path, tmp_path: Path
) -> None:
    """A new machine does so by itself, just when somebody sets this up."""
    (script := tmp_path / "lock.py").write_text(LOCK)
    with subprocess.Popen([sys.executable, script, own_apt, "hold"], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            can_install_etcd(as_root, "exec /usr/bin/apt-get update")
            program(as_root / "sleep", f"kill {holder.pid}; exec {sys.executable} {script} {own_apt}")
            program(as_root / "newuidmap", "")
            waited = checkout.setup("dev", path=str(as_root))
        finally:
            holder.kill()
    assert waited.returncode == 0, waited.stderr
    assert waited.stderr.splitlines() == [
        "setup: apt-get install etcd-server",
        "setup: another program holds apt's lock; waiting for it, 300 s at most",
    ]


@pytest.mark.parametrize(("text", "waits_s"), [("Could not get lock", 300), ("The repository is not signed", 0)])
def test_update_that_fails_is_shown(checkout: Checkout, as_root: Path, tmp_path: Path, text: str, waits_s: int) -> None:
    """Once the time for the lock is over; whatever else is wrong, waiting does not help."""
    (slept := tmp_path / "slept").touch()
    can_install_etcd(as_root, f"echo 'E: {text}'; exit 100")
    program(as_root / "sleep", f'echo "$1" >>{slept}')
    failed = checkout.setup("dev", path=str(as_root))
    assert failed.returncode == 1
    assert slept.read_text() == "1\n" * waits_s
    assert failed.stderr.count("waiting") == min(waits_s, 1)
    assert f"E: {text}\nsetup: apt-get update failed; the whole output is in " in failed.stderr


def test_unknown_kind_is_refused(checkout: Checkout) -> None:
    """A slip in the Makefile does not pass for a set-up."""
    assert checkout.setup("everything").returncode == 2


def build_package(directory: Path, archive: Path, files: dict[str, str]) -> None:
    """Write a Debian package of these files."""
    control = (
        "Package: built\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: built\n"
    )
    for name, text in {"DEBIAN/control": control, **files}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    for folder in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    subprocess.run(["dpkg-deb", "--build", directory, archive], check=True, stdout=subprocess.DEVNULL)


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
    archive = tmp_path / "tests.deb"
    build_package(tmp_path / "package", archive, {"usr/test/test_ast.py": "x = 1\n"})
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


@pytest.fixture
def for_vm(checkout: Checkout, programs: Path) -> Iterator[Checkout]:
    """A checkout on a Debian machine that has all that boots a virtual machine, but no kernel for it."""
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines() or os.uname().machine != "x86_64":
        pytest.skip("the kernel is Debian's, for x86_64")
    for name in ("etcd", "qemu-system-x86_64", "busybox", "modprobe", "file", "mkfs.ext4"):
        program(programs / name, "")
    program(programs / "apt-cache", "echo linux-image-amd64; echo '  Depends: linux-image-6.1.0-amd64'\n")
    yield checkout
    shutil.rmtree(checkout.root / ".venv" / "kernel", ignore_errors=True)


def test_kernel_is_unpacked_for_the_virtual_machine(for_vm: Checkout, programs: Path, tmp_path: Path) -> None:
    """It is not installed: a developer's own machine boots as before."""
    build_package(tmp_path / "package", tmp_path / "kernel.deb", {"boot/vmlinuz-6.1.0-amd64": "kernel"})
    package = tmp_path / "kernel.deb"
    program(programs / "apt-get", f'[ "$1 $2" != "download linux-image-6.1.0-amd64" ] || cat {package} >kernel.deb\n')
    unpacked = for_vm.setup("vm", path=str(programs))
    assert unpacked.returncode == 0, unpacked.stderr
    assert unpacked.stderr == "setup: unpacking the package of linux-image-amd64 into .venv/kernel\n"
    assert (for_vm.root / ".venv" / "kernel" / "boot" / "vmlinuz-6.1.0-amd64").read_text() == "kernel"
    assert for_vm.setup("vm", path=str(programs)).stderr == ""


def test_without_its_kernel_there_is_no_virtual_machine(for_vm: Checkout, programs: Path) -> None:
    """The set-up fails and says why, which is how a run of all tests knows to leave these out."""
    program(programs / "apt-get", "echo 'no network' >&2; exit 100")
    failed = for_vm.setup("vm", path=str(programs), root=False)
    assert failed.returncode == 1
    assert "no network" in failed.stderr
    assert not (for_vm.root / ".venv" / "kernel").exists()
