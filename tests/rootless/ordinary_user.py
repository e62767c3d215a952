"""An ordinary user for tests: with a UID of its own, and with or without UIDs for sandboxes and control groups."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lambent_node_agent.cgroups import read_layout
from tests.cluster import COMMAND_TIMEOUT_S, LAMBENT, Cluster, command_environment

UID = 58_231
"""Nobody's on machines that run these tests."""
SUBORDINATE = 0x2000_0000
"""First of its UIDs for sandboxes; neither distributions nor agents of root use these."""
ROOT = Path(__file__).resolve().parents[2]

# Becomes the user in a mount namespace of its own, in which the system knows the user.
BECOME = """
import json, os, sys
from pathlib import Path
from lambent_runtime import linux

uid, groups, files, root, command = json.loads(sys.argv[1])
for group in groups:
    Path(group, "cgroup.procs").write_text("0")
linux.unshare(linux.CLONE_NEWNS)
linux.mount(None, "/", None, linux.MS_REC | linux.MS_SLAVE)
for target, source in files.items():
    linux.bind(source, target, 0)
closed = [path for path in Path(root).parents if not path.stat().st_mode & 0o001]
if closed:  # a checkout in a home that is closed to others
    checkout = linux.clone_mount(root, recursive=True)
    linux.mount("none", str(closed[-1]), "tmpfs", 0, "mode=755")
    os.makedirs(root)
    linux.attach_mount(checkout, root)
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
os.chdir("/")
os.execv(command[0], command)
"""


@dataclass(frozen=True, eq=False)
class OrdinaryUser:
    """Runs commands.

    Attributes:
        home: A directory of the user's.
        groups: Control groups that are the user's, which its commands run in.
        files: What is bound over files of /etc.
    """

    home: Path
    groups: tuple[Path, ...]
    files: dict[str, str]

    def lambent(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `lambent` to its end."""
        return self.run(str(LAMBENT), *arguments)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program, named by its path, to its end."""
        given = [UID, [str(group) for group in self.groups], self.files, str(ROOT), command]
        own = {"HOME": str(self.home), "XDG_RUNTIME_DIR": ""}
        return subprocess.run(
            [sys.executable, "-c", BECOME, json.dumps(given)],
            env=command_environment(self.data_dir) | own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )

    @functools.cache  # noqa: B019 - a user lives as long as a module's tests
    def doctor(self) -> tuple[dict[str, dict[str, str]], int]:
        """What `lambent doctor --require-isolation=full` says: its lines by name, and its exit status."""
        done = self.lambent("doctor", "--require-isolation=full", "--output=json")
        return {check["name"]: check for check in json.loads(done.stdout)["checks"]}, done.returncode

    @property
    def data_dir(self) -> Path:
        """The data directory of the user's cluster."""
        return self.home / "data"

    def start_cluster(self, *flags: str) -> Cluster:
        """Run `lambent up`, which must succeed."""
        ports = ("--grpc-port=0", "--http-port=0", "--memory=2048")
        done = self.lambent("up", "--detach", "--output=json", *ports, *flags)
        assert done.returncode == 0, done.stderr + self.logs()
        ready = json.loads(done.stdout)
        return Cluster(grpc=ready["grpc"], http=ready["http"], data_dir=Path(ready["data_dir"]))

    def logs(self) -> str:
        """The ends of the children's logs."""
        paths = sorted((self.data_dir / "logs").glob("*.log"))
        return "\n".join(line for path in paths for line in path.read_text(errors="replace").splitlines()[-20:])


@contextlib.contextmanager
def ordinary_user(*, uids: bool = False, groups: bool = False) -> Iterator[OrdinaryUser]:
    """Make one; nothing of it is left afterwards.

    Args:
        uids: It has a block in /etc/subuid and /etc/subgid.
        groups: It has control groups with all controllers.
    """
    with tempfile.TemporaryDirectory(prefix="lambent-test-") as directory, contextlib.ExitStack() as stack:
        place = Path(directory)
        place.chmod(0o755)
        home = place / "home"
        home.mkdir(0o700)
        os.chown(home, UID, UID)
        files = {"/etc/passwd": f"{Path('/etc/passwd').read_text()}ada:x:{UID}:{UID}::{home}:/bin/sh\n"}
        for name in ("/etc/subuid", "/etc/subgid"):
            if Path(name).exists():  # else there is nothing that would have to be hidden
                files[name] = f"ada:{SUBORDINATE}:65536\n" if uids else ""
        bound = {}
        for target, text in files.items():
            source = place / Path(target).name
            source.write_text(text)
            bound[target] = str(source)
        given = tuple(stack.enter_context(_control_group(path)) for path in _own_groups()) if groups else ()
        yield OrdinaryUser(home, given, bound)


def _own_groups() -> list[Path]:
    """Make room for groups with controllers below this process's own, in every hierarchy."""
    hierarchies = read_layout().hierarchies
    for hierarchy in hierarchies:
        if hierarchy.unified:
            wanted = " ".join(f"+{name}" for name in hierarchy.switched)
            (hierarchy.own / "cgroup.subtree_control").write_text(wanted)
    return [hierarchy.own for hierarchy in hierarchies]


@contextlib.contextmanager
def _control_group(parent: Path) -> Iterator[Path]:
    """A group that is the user's, as systemd delegates one: the directory and the files that move processes."""
    group = parent / f"lambent-test-{os.getpid()}"
    group.mkdir()
    try:
        for path in (group, *(group / name for name in ("cgroup.procs", "tasks", "cgroup.subtree_control"))):
            if path.exists():
                os.chown(path, UID, UID)
        yield group
    finally:
        group.rmdir()
