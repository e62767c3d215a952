"""`lambent doctor`: one line for each thing that sandboxes and the cluster need."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lambent_common.machine import Machine
from lambent_common.programs import Version
from lambent_node_agent.cgroups import Layout, read_layout
from lambent_node_agent.cgroups.layout import Hierarchy
from lambent_node_agent.doctor.checks import Check, Status, run_checks
from lambent_node_agent.doctor.facts import NAMESPACES, Facts, FoundProgram
from lambent_node_agent.isolation import Level, Protection
from lambent_node_agent.sandbox import Confinement
from tests.cluster import COMMAND_TIMEOUT_S, lambent

UNIFIED = Hierarchy(
    Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup"), True, frozenset({"memory", "cpu", "pids", "freezer"})
)
GOOD = Facts(
    user_id=0,
    confinement=None,
    confinement_error=None,
    kernel="6.1.0-31-amd64",
    namespaces=dict.fromkeys(NAMESPACES),
    layout=Layout((UNIFIED,)),
    usable=Layout((UNIFIED,)),
    unwritable_groups=(),
    seccomp_error=None,
    network_error=None,
    merging_error=None,
    open_files=1 << 20,
    pids=4194304,
    runtimes={"python3.11": Path("/usr/bin/python3.11")},
    etcd=FoundProgram(Path("/usr/bin/etcd"), Version(3, 4, 23)),
    nats_server=FoundProgram(Path("/opt/nats-server"), Version(2, 12, 1)),
    machine=Machine(8192, 4.0),
    data_dir=Path("/root/.local/share/lambent"),
    disk_free_mib=100_000,
    sandbox_error=None,
    missing={},
)


def named(facts: Facts, name: str) -> Check:
    """The line of this name."""
    (found,) = [check for check in run_checks(facts) if check.name == name]
    return found


def test_a_debian_machine_has_everything() -> None:
    """Then every line is good, and none offers help."""
    assert {check.status for check in run_checks(GOOD)} == {Status.OK}
    assert not any(check.help for check in run_checks(GOOD))


def layout_of(*hierarchies: Hierarchy) -> Layout:
    return Layout(hierarchies)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("user", {"user_id": 1000, "confinement_error": "the kernel refuses a user namespace"}, "1000"),
        ("kernel", {"kernel": "5.10.0-28-amd64"}, "5.10"),
        ("namespaces", {"namespaces": GOOD.namespaces | {"net": "Operation not permitted"}}, "net (Operation not"),
        ("cgroups", {"layout": Layout(()), "usable": Layout(())}, "none"),
        ("cgroups", {"unwritable_groups": (Path("/sys/fs/cgroup"),)}, "not writable: /sys/fs/cgroup"),
        ("network", {"network_error": "libnftables.so.1 is not installed"}, "libnftables.so.1"),
        ("disk", {"disk_free_mib": 500}, "500 MiB free in /root"),
        (
            "storage",
            {"missing": {Protection.DISK: "no storage on disk: mkfs.btrfs is not installed"}},
            "mkfs.btrfs is not installed",
        ),
        ("isolation", {"missing": None}, "unknown"),
        ("sandbox", {"sandbox_error": "open_tree(/x): Function not implemented"}, "open_tree"),
        ("interpreters", {"runtimes": {}}, "no CPython"),
        ("etcd", {"etcd": None}, "not installed"),
        ("etcd", {"etcd": FoundProgram(Path("/opt/etcd"), Version(3, 5, 1))}, "3.5.1 may lose data"),
        ("etcd", {"etcd": FoundProgram(Path("/opt/etcd"), Version(3, 3, 25))}, "too old"),
        ("etcd", {"etcd": FoundProgram(Path("/opt/etcd"), None)}, "/opt/etcd does not say"),
        ("nats-server", {"nats_server": None}, "not installed"),
        ("nats-server", {"nats_server": FoundProgram(Path("/n"), Version(2, 10, 9))}, "too old"),
        ("memory", {"machine": Machine(512, 1.0)}, "512 MiB"),
    ],
)
def test_what_is_needed_and_missing_is_said_with_help(name: str, change: dict[str, object], words: str) -> None:
    """The line says what was found, and what to do."""
    check = named(dataclasses.replace(GOOD, **change), name)  # type: ignore[arg-type]  # a field's name and its value
    assert check.status is Status.MISSING
    assert words in check.detail
    assert check.help


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("disk", {"disk_free_mib": 4000}),
        ("limits", {"open_files": 1024}),
        ("limits", {"open_files": 4096, "machine": Machine(128 * 1024, 16.0)}),
        ("limits", {"pids": 4096}),
        ("memory", {"machine": Machine(2048, 1.0)}),
        ("cgroups", {"usable": layout_of(dataclasses.replace(UNIFIED, controllers=UNIFIED.controllers - {"cpu"}))}),
        ("cgroups", {"usable": layout_of(dataclasses.replace(UNIFIED, controllers=UNIFIED.controllers - {"freezer"}))}),
        ("cgroups", {"usable": layout_of(dataclasses.replace(UNIFIED, controllers=UNIFIED.controllers - {"pids"}))}),
        ("user", {"user_id": 1000, "confinement": Confinement(0, "newuidmap is not installed")}),
        ("isolation", {"missing": {Protection.CPU: "functions share CPUs unfairly"}}),
    ],
)
def test_what_only_weakens_is_a_warning(name: str, change: dict[str, object]) -> None:
    """The cluster starts all the same."""
    check = named(dataclasses.replace(GOOD, **change), name)  # type: ignore[arg-type]  # a field's name and its value
    assert check.status is Status.WARNING
    assert check.help


def test_missing_filters_of_system_calls_can_be_accepted_by_name() -> None:
    """The agent refuses to start otherwise, and both say the same."""
    check = named(dataclasses.replace(GOOD, seccomp_error="libseccomp.so.2 is not installed"), "seccomp")
    assert check.status is Status.MISSING
    assert check.detail == "libseccomp.so.2 is not installed"
    assert "--allow-missing seccomp" in check.help


def test_merging_of_memory_is_told_and_not_missed() -> None:
    """Most clusters are to do without it."""
    without = named(dataclasses.replace(GOOD, merging_error="this kernel cannot merge pages"), "merging")
    assert without == Check(
        "merging", Status.OK, "only for `lambent agent --merge-memory`: this kernel cannot merge pages"
    )
    assert named(GOOD, "merging").detail.endswith("the kernel merges equal pages")


def test_a_missing_controller_can_be_accepted_by_name() -> None:
    """The agent refuses to start otherwise, and both say the same."""
    check = named(dataclasses.replace(GOOD, usable=Layout(())), "cgroups")
    assert "--allow-missing memory" in check.help


ORDINARY = dataclasses.replace(GOOD, user_id=1000, confinement=Confinement(65536), usable=Layout(()))


def test_a_user_is_told_how_systemd_delegates_control_groups() -> None:
    """A command to copy, where it would help."""
    check = named(ORDINARY, "cgroups")
    assert check.status is Status.MISSING
    assert "not this user's: cpu freezer memory pids" in check.detail
    assert "systemd-run --user --scope --property=Delegate=yes lambent up" in check.help
    old = dataclasses.replace(ORDINARY, layout=layout_of(dataclasses.replace(UNIFIED, unified=False)))
    assert "systemd-run" not in named(old, "cgroups").help


def test_uids_for_sandboxes_are_good() -> None:
    """Then a user's sandboxes are as far from each other as root's."""
    assert named(ORDINARY, "user") == Check(
        "user", Status.OK, "UID 1000, in a user namespace with 65536 UIDs for sandboxes"
    )


@pytest.mark.parametrize(("required", "status"), [(Level.FULL, Status.MISSING), (Level.STANDARD, Status.WARNING)])
def test_a_machine_below_the_required_level_is_not_ready(required: Level, status: Status) -> None:
    """The line tells the level, and what it lacks for the best one."""
    facts = dataclasses.replace(GOOD, missing={Protection.CPU: "functions share CPUs unfairly"})
    check = run_checks(facts, required)[-1]
    assert (check.name, check.status) == ("isolation", status)
    assert check.detail == "standard; not enforced: cpu"
    assert "functions share CPUs unfairly" in check.help


def test_doctor_tries_what_it_promises() -> None:
    """Prerequisites by name are there, and the kernel says no all the same: no room for a sandbox's locks here."""
    hide = "import sys\nfrom lambent_runtime import linux\nlinux.unshare(linux.CLONE_NEWNS)\n"
    hide += "linux.mount(None, '/', None, linux.MS_REC | linux.MS_PRIVATE)\n"
    hide += "linux.mount('none', '/run', 'tmpfs', linux.MS_RDONLY)\n"
    hide += "from lambent.cli.main import main\nsys.argv = ['lambent', 'doctor', '--output=json']\nmain()\n"
    command = [sys.executable, "-c", hide]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["namespaces"]["status"] == "ok"
    assert checks["sandbox"]["status"] == "missing"
    assert "/run/lambent" in checks["sandbox"]["detail"]
    assert done.returncode == 1


@pytest.mark.parametrize(("unified", "words"), [((False, False), "v1,"), ((False, True), "hybrid"), ((True,), "v2,")])
def test_the_version_of_the_control_groups_is_named(unified: tuple[bool, ...], words: str) -> None:
    """Hosts have the old one, the new one or both."""
    parts = (
        [frozenset({"memory", "freezer"}), frozenset({"pids", "cpu"})] if len(unified) == 2 else [UNIFIED.controllers]
    )
    layout = layout_of(
        *(
            Hierarchy(Path(f"/g{number}"), Path(f"/g{number}"), kind, parts[number])
            for number, kind in enumerate(unified)
        )
    )
    check = named(dataclasses.replace(GOOD, layout=layout, usable=layout), "cgroups")
    assert check.status is Status.OK
    assert check.detail.startswith(words)


def test_doctor_finds_this_machine_fit() -> None:
    """The machine that runs these tests can run a cluster; the command says so in its exit status."""
    done = lambent("doctor", "--output=json")
    assert not done.stderr, "what it made is taken off the machine again"
    report = json.loads(done.stdout)
    assert report["ready"] is True
    assert len(report["checks"]) == len(run_checks(GOOD))
    words = {(True,): "v2,", (False,): "v1,", (False, True): "hybrid"}
    unified = tuple(sorted({hierarchy.unified for hierarchy in read_layout().hierarchies}))
    [groups] = [check["detail"] for check in report["checks"] if check["name"] == "cgroups"]
    assert groups.startswith(words[unified])
    assert len(lambent("doctor").stdout.splitlines()) == len(report["checks"])


def test_doctor_fails_when_something_needed_is_missing() -> None:
    """Scripts read the exit status."""
    done = lambent("doctor", check=False, environment={"PATH": "/nonexistent"})
    assert done.returncode == 1
    assert "not installed" in done.stdout
    assert "apt-get install etcd-server" in done.stdout
