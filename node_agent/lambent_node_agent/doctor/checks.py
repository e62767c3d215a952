"""Which facts are good enough; pure. A check is one line of `lambent doctor`."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent_common.machine import KEPT_DISK_MIB
from lambent_common.programs import ETCD, NATS_SERVER, Program, Version
from lambent_node_agent import isolation
from lambent_node_agent.isolation import Level, Protection
from lambent_node_agent.sandbox import NETWORK

if TYPE_CHECKING:
    from collections.abc import Callable

    from .facts import Facts, FoundProgram

# mount_setattr(2), by which sandboxes get their read-only mounts, came with 5.12.
MINIMUM_KERNEL = Version(5, 12, 0)

# Of its agent an environment takes these descriptors: control socket, pidfd, channel, log pipe, its memory group's peak
# and events, its freezer, and its network namespace. The rest is for schedulers, etcd, NATS, and packages on their way.
OPEN_FILES_PER_ENVIRONMENT = 8
OWN_OPEN_FILES = 1024
SMALLEST_FUNCTION_MIB = 128
# An environment may have 1,024 processes and threads (AWS Lambda quotas).
WANTED_PIDS = 32768

# etcd, nats-server, scheduler, agent and one function of 1,769 MB.
WANTED_MEMORY_MIB = 2560
MINIMUM_MEMORY_MIB = 768

NEEDED_CONTROLLERS = ("memory",)
WANTED_CONTROLLERS = {
    "cpu": Protection.CPU.without,
    "pids": "only rlimits count a function's processes, up to 742",
    "freezer": Protection.FREEZER.without,
}
"""Those that nothing depends on, and what is lost without each."""
DELEGATION = "systemd-run --user --scope --property=Delegate=yes lambent up"
"""How a user gets control groups on a machine with version 2 and systemd: systemd.resource-control(5)."""

# With packages and events on top of what is kept for the stores and code, and as much for functions' /tmp.
WANTED_DISK_MIB = 2 * KEPT_DISK_MIB
MINIMUM_DISK_MIB = 2048


class Status(enum.Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"  # works, with less protection or room
    MISSING = "missing"  # needed


@dataclass(frozen=True, slots=True)
class Check:
    """One line.

    Attributes:
        name: What was looked at.
        status: How it came out.
        detail: What was found.
        help: What would mend it; empty when nothing needs to.
    """

    name: str
    status: Status
    detail: str
    help: str = ""


def run_checks(facts: Facts, required: Level = Level.REDUCED) -> list[Check]:
    """Every check, in the order in which they are shown; `required` is the level of isolation that is good enough."""
    return [*(check(facts) for check in _CHECKS), _isolation(facts, required)]


def _user(facts: Facts) -> Check:
    detail, confinement = f"UID {facts.user_id}", facts.confinement
    if facts.confinement_error is not None:
        return Check("user", Status.MISSING, detail, f"{facts.confinement_error}.")
    if confinement is None:
        return Check("user", Status.OK, detail)
    if not confinement.uids:
        help_ = f"Functions share this UID, since {confinement.remark}."
        return Check("user", Status.WARNING, f"{detail}, in a user namespace with no UIDs for sandboxes", help_)
    return Check("user", Status.OK, f"{detail}, in a user namespace with {confinement.uids} UIDs for sandboxes")


def _kernel(facts: Facts) -> Check:
    version = Version.find(facts.kernel + ".0.0")
    if version is None or version < MINIMUM_KERNEL:
        return Check("kernel", Status.MISSING, facts.kernel, f"Linux {MINIMUM_KERNEL} or later is needed.")
    return Check("kernel", Status.OK, facts.kernel)


def _namespaces(facts: Facts) -> Check:
    refused = [f"{name} ({reason})" for name, reason in facts.namespaces.items() if reason is not None]
    if refused:
        help_ = "Run as root, in a container with CAP_SYS_ADMIN, on a kernel with all namespaces."
        return Check("namespaces", Status.MISSING, "cannot be made: " + ", ".join(refused), help_)
    return Check("namespaces", Status.OK, " ".join(facts.namespaces))


def _cgroups(facts: Facts) -> Check:
    kinds = {hierarchy.unified for hierarchy in facts.layout.hierarchies}
    kind = {(True,): "v2", (False,): "v1", (False, True): "hybrid of v1 and v2"}.get(tuple(sorted(kinds)), "none")
    wanted = (*NEEDED_CONTROLLERS, *WANTED_CONTROLLERS)
    found = [name for name in wanted if facts.usable.of(name) is not None]
    withheld = [name for name in wanted if name not in found and facts.layout.of(name) is not None]
    detail = f"{kind}, controllers: {' '.join(sorted(found)) or 'none'}"
    if withheld:
        detail += f"; not this user's: {' '.join(sorted(withheld))}"
    if lacking := ",".join(name for name in NEEDED_CONTROLLERS if name not in found):
        help_ = f"{_way_to_groups(facts, lacking)} Without it functions have no such limit: --allow-missing {lacking}."
        return Check("cgroups", Status.MISSING, detail, help_)
    if facts.unwritable_groups:
        where = ", ".join(map(str, facts.unwritable_groups))
        help_ = "Run as root; in a container, mount the cgroup filesystem writable."
        return Check("cgroups", Status.MISSING, f"{detail}; not writable: {where}", help_)
    if unwanted := [name for name in WANTED_CONTROLLERS if name not in found]:
        help_ = " ".join(f"Without {name} {WANTED_CONTROLLERS[name]}." for name in unwanted)
        return Check("cgroups", Status.WARNING, detail, help_)
    return Check("cgroups", Status.OK, detail)


def _way_to_groups(facts: Facts, lacking: str) -> str:
    """Say how the controllers that are lacking can be had."""
    if facts.confinement is None:
        return f"Mount the controllers {lacking}, or enable them at the kernel's command line."
    hierarchies = [facts.layout.of(name) for name in lacking.split(",")]
    if all(hierarchy is not None and hierarchy.unified for hierarchy in hierarchies):
        return f"Start it where systemd gives this user control groups: {DELEGATION}"
    return "Run as root, or have root make a group of version 1 for this user and start it in there."


def _seccomp(facts: Facts) -> Check:
    if facts.seccomp_error is not None:
        help_ = f"Without filters functions may make every system call: --allow-missing {Protection.SECCOMP.value}."
        return Check("seccomp", Status.MISSING, facts.seccomp_error, help_)
    return Check("seccomp", Status.OK, "system calls are filtered")


def _storage(facts: Facts) -> Check:
    if facts.missing is None:
        return Check("storage", Status.WARNING, "unknown, since no sandbox could be made", "")
    if (reason := facts.missing.get(Protection.DISK)) is None:
        return Check("storage", Status.OK, "functions' /tmp is on disk, and of a hard size")
    if facts.confinement is not None:
        return Check("storage", Status.WARNING, reason, "Only an agent of root has it on disk.")
    help_ = (
        "Functions' /tmp needs btrfs and loop devices in the kernel, and mkfs.btrfs (Debian: btrfs-progs). Without "
        f"them it is memory of the function: `lambent agent --allow-missing {Protection.DISK.value}`."
    )
    return Check("storage", Status.MISSING, reason, help_)


def _network(facts: Facts) -> Check:
    if facts.confinement is not None:
        return Check("network", Status.WARNING, "without root functions have loopback alone", "Use sudo.")
    if facts.network_error is not None:
        help_ = f"Without it functions have loopback alone: `lambent agent --allow-missing {NETWORK}`."
        return Check("network", Status.MISSING, facts.network_error, help_)
    return Check("network", Status.OK, "functions reach the internet, and nothing of this machine")


def _sandbox(facts: Facts) -> Check:
    if facts.sandbox_error is not None:
        help_ = "The lines above may tell why; otherwise run as root, outside of containers that forbid mounts."
        return Check("sandbox", Status.MISSING, f"none could be made: {facts.sandbox_error}", help_)
    return Check("sandbox", Status.OK, "one was made, ran a function and left nothing behind")


def _merging(facts: Facts) -> Check:
    """Nothing else needs it; whoever wants it reads here what it needs."""
    found = facts.merging_error or "the kernel merges equal pages"
    return Check("merging", Status.OK, f"only for `lambent agent --merge-memory`: {found}")


def _disk(facts: Facts) -> Check:
    detail = f"{facts.disk_free_mib} MiB free in {facts.data_dir}"
    if facts.disk_free_mib < MINIMUM_DISK_MIB:
        help_ = f"At least {MINIMUM_DISK_MIB} MiB are needed; `lambent up --data-dir` chooses another disk."
        return Check("disk", Status.MISSING, detail, help_)
    if facts.disk_free_mib < WANTED_DISK_MIB:
        return Check(
            "disk", Status.WARNING, detail, f"The stores, a node's code and /tmp may take {WANTED_DISK_MIB} MiB."
        )
    return Check("disk", Status.OK, detail)


def _limits(facts: Facts) -> Check:
    files = "no limit" if facts.open_files is None else str(facts.open_files)
    detail = f"open files {files}, processes {facts.pids}"
    environments = facts.machine.memory_mib // SMALLEST_FUNCTION_MIB
    wanted = OWN_OPEN_FILES + OPEN_FILES_PER_ENVIRONMENT * environments
    if facts.open_files is not None and facts.open_files < wanted:
        help_ = f"Raise it for the {environments} environments that fit into memory: ulimit -Hn {wanted}"
        return Check("limits", Status.WARNING, detail, help_)
    if facts.pids < WANTED_PIDS:
        help_ = f"Raise it for many environments: sysctl kernel.pid_max={WANTED_PIDS}"
        return Check("limits", Status.WARNING, detail, help_)
    return Check("limits", Status.OK, detail)


def _interpreters(facts: Facts) -> Check:
    if not facts.runtimes:
        return Check("interpreters", Status.MISSING, "no CPython found", "Install one: apt-get install python3")
    found = ", ".join(f"{name} ({path})" for name, path in facts.runtimes.items())
    return Check("interpreters", Status.OK, found)


def _program(program: Program, found: FoundProgram | None) -> Check:
    if found is None:
        return Check(program.name, Status.MISSING, "not installed", program.help)
    if found.version is None:
        return Check(program.name, Status.MISSING, f"{found.path} does not say its version", program.help)
    objection = program.objection(found.version)
    if objection is not None:
        return Check(program.name, Status.MISSING, f"{objection} ({found.path})", program.help)
    return Check(program.name, Status.OK, f"{found.version} ({found.path})")


def _etcd(facts: Facts) -> Check:
    return _program(ETCD, facts.etcd)


def _nats_server(facts: Facts) -> Check:
    return _program(NATS_SERVER, facts.nats_server)


def _memory(facts: Facts) -> Check:
    memory_mib = facts.machine.memory_mib
    detail = f"{memory_mib} MiB, {facts.machine.cpus:g} CPUs"
    if memory_mib < MINIMUM_MEMORY_MIB:
        return Check("memory", Status.MISSING, detail, f"At least {MINIMUM_MEMORY_MIB} MiB are needed.")
    if memory_mib < WANTED_MEMORY_MIB:
        return Check("memory", Status.WARNING, detail, "A function of 1,769 MB will not fit beside the cluster.")
    return Check("memory", Status.OK, detail)


def _isolation(facts: Facts, required: Level) -> Check:
    if facts.missing is None:
        return Check("isolation", Status.MISSING, "unknown, since no sandbox could be made", "Mend the lines above.")
    level = isolation.level_of(facts.missing)
    if not facts.missing:
        return Check("isolation", Status.OK, level.value)
    accepted = isolation.accepted(frozenset(), confined=facts.confinement is not None)
    refused = isolation.refusal(facts.missing, accepted, required)
    detail = f"{level.value}; not enforced: {isolation.names(facts.missing)}"
    reasons = "; ".join(f"{name.value}: {facts.missing[name]}" for name in isolation.in_order(facts.missing))
    return Check("isolation", Status.WARNING if refused is None else Status.MISSING, detail, f"{reasons}.")


_CHECKS: tuple[Callable[[Facts], Check], ...] = (
    _user,
    _kernel,
    _namespaces,
    _cgroups,
    _seccomp,
    _network,
    _limits,
    _interpreters,
    _etcd,
    _nats_server,
    _memory,
    _merging,
    _disk,
    _storage,
    _sandbox,
)
