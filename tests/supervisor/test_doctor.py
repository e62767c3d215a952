"""`lambent doctor`: one line for each thing that sandboxes and the cluster need."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lambent_common.machine import Machine
from lambent_common.programs import Version
from lambent_node_agent.cgroups import Layout
from lambent_node_agent.cgroups.layout import Hierarchy
from lambent_node_agent.doctor.checks import Check, Status, run_checks
from lambent_node_agent.doctor.facts import NAMESPACES, Facts, FoundProgram
from tests.cluster import lambent

UNIFIED = Hierarchy(Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup"), True, frozenset({"memory", "cpu", "pids"}))
GOOD = Facts(
    user_id=0,
    kernel="6.1.0-31-amd64",
    namespaces=dict.fromkeys(NAMESPACES),
    layout=Layout((UNIFIED,)),
    unwritable_groups=(),
    filesystems=frozenset({"tmpfs", "overlay", "nodev"}),
    seccomp_actions=("kill_process", "errno", "allow"),
    open_files=1 << 20,
    pids=4194304,
    runtimes={"python3.11": Path("/usr/bin/python3.11")},
    etcd=FoundProgram(Path("/usr/bin/etcd"), Version(3, 4, 23)),
    nats_server=FoundProgram(Path("/opt/nats-server"), Version(2, 12, 1)),
    machine=Machine(8192, 4.0),
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
        ("root", {"user_id": 1000}, "1000"),
        ("kernel", {"kernel": "5.10.0-28-amd64"}, "5.10"),
        ("namespaces", {"namespaces": GOOD.namespaces | {"net": "Operation not permitted"}}, "net (Operation not"),
        ("cgroups", {"layout": Layout(())}, "none"),
        ("cgroups", {"unwritable_groups": (Path("/sys/fs/cgroup"),)}, "not writable: /sys/fs/cgroup"),
        ("filesystems", {"filesystems": frozenset({"ext4"})}, "no tmpfs"),
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
        ("seccomp", {"seccomp_actions": ()}),
        ("filesystems", {"filesystems": frozenset({"tmpfs"})}),
        ("limits", {"open_files": 1024}),
        ("limits", {"pids": 4096}),
        ("memory", {"machine": Machine(2048, 1.0)}),
        ("cgroups", {"layout": layout_of(dataclasses.replace(UNIFIED, controllers=frozenset({"memory", "pids"})))}),
    ],
)
def test_what_only_weakens_is_a_warning(name: str, change: dict[str, object]) -> None:
    """The cluster starts all the same."""
    check = named(dataclasses.replace(GOOD, **change), name)  # type: ignore[arg-type]  # a field's name and its value
    assert check.status is Status.WARNING
    assert check.help


@pytest.mark.parametrize(("unified", "words"), [((False, False), "v1,"), ((False, True), "hybrid"), ((True,), "v2,")])
def test_the_version_of_the_control_groups_is_named(unified: tuple[bool, ...], words: str) -> None:
    """Hosts have the old one, the new one or both."""
    parts = [frozenset({"memory"}), frozenset({"pids", "cpu"})] if len(unified) == 2 else [UNIFIED.controllers]
    layout = layout_of(
        *(
            Hierarchy(Path(f"/g{number}"), Path(f"/g{number}"), kind, parts[number])
            for number, kind in enumerate(unified)
        )
    )
    check = named(dataclasses.replace(GOOD, layout=layout), "cgroups")
    assert check.status is Status.OK
    assert check.detail.startswith(words)


def test_doctor_finds_this_machine_fit() -> None:
    """The machine that runs these tests can run a cluster; the command says so in its exit status."""
    done = lambent("doctor", "--output=json")
    report = json.loads(done.stdout)
    assert report["ready"] is True
    assert len(report["checks"]) == len(run_checks(GOOD))
    assert len(lambent("doctor").stdout.splitlines()) == len(report["checks"])


def test_doctor_fails_when_something_needed_is_missing() -> None:
    """Scripts read the exit status."""
    done = lambent("doctor", check=False, environment={"PATH": "/nonexistent"})
    assert done.returncode == 1
    assert "not installed" in done.stdout
    assert "apt-get install etcd-server" in done.stdout
