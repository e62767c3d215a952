"""The supervisor's decisions: pauses between restarts, the division of the machine, versions."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_common.machine import Machine, available_memory, read_machine
from lambent_common.programs import ETCD, NATS_SERVER, Version
from lambent_node_agent.command import agent
from lambent_scheduler.command import scheduler
from lambent_supervisor.backoff import LONGEST_DELAY_S, WELL_AFTER_S, Backoff
from lambent_supervisor.commands import MAX_NODES, up
from lambent_supervisor.defragmentation import is_worth_it
from lambent_supervisor.errors import NodeShareError
from lambent_supervisor.shares import MINIMUM_NODE_MEMORY_MIB, divide


@given(st.lists(st.sampled_from([0.0, 1.0, WELL_AFTER_S - 0.1]), min_size=1, max_size=2000))
def test_pauses_grow_up_to_a_bound(runs_s: list[float]) -> None:
    """A child that cannot start neither fills its log nor is given up."""
    backoff, last = Backoff(), 0.0
    for ran_s in runs_s:
        backoff = backoff.ended(ran_s)
        assert last <= backoff.delay_s <= LONGEST_DELAY_S
        last = backoff.delay_s


def test_pause_is_short_again_after_a_good_run() -> None:
    """What happened last night does not slow down today's restart."""
    tired = Backoff(failures=20)
    assert tired.ended(WELL_AFTER_S).delay_s == Backoff().ended(0).delay_s


@given(st.integers(128, 1 << 20), st.integers(1, 64), st.none() | st.integers(1, 1 << 21))
def test_nodes_declare_no_more_than_was_given(memory_mib: int, nodes: int, asked: int | None) -> None:
    """The sum over the nodes is what the operator declared, or 80 % of the machine; or it is refused."""
    total = int(memory_mib * 0.8) if asked is None else asked
    try:
        share = divide(Machine(memory_mib, 2.0), nodes, asked, 100_000)
    except NodeShareError:
        assert total // nodes < MINIMUM_NODE_MEMORY_MIB
    else:
        assert total - nodes < share.memory_mib * nodes <= total
        assert (share.remark is not None) == (total > memory_mib)


@given(st.floats(0.1, 256), st.integers(1, MAX_NODES))
def test_every_node_s_share_is_one_that_an_agent_takes(cpus: float, nodes: int) -> None:
    """On a small machine many nodes have little of a CPU each; functions share it."""
    (limit,) = [option.type for option in agent.params if option.name == "cpus"]
    assert isinstance(limit, click.FloatRange)
    limit.convert(float(f"{divide(Machine(65536, cpus), nodes, None, 100_000).cpus:g}"), None, None)


def test_default_ports_are_the_documented_ones() -> None:
    """Clients and firewalls are told of them; on loopback, as `up` gives no choice of host."""
    defaults = {option.name: option.default for option in up.params}
    assert (defaults["grpc_port"], defaults["http_port"]) == (9400, 9401)
    alone = {option.name: option.default for option in scheduler.params}
    assert (alone["listen"], alone["http_listen"]) == ("127.0.0.1:9400", "127.0.0.1:9401")


@pytest.mark.parametrize("name", ["keep_alive_policy", "eviction_policy", "placement_policy"])
def test_up_and_the_scheduler_offer_the_same_policies(name: str) -> None:
    """A name that the scheduler does not know is refused by `up`, and not in the log of a child that cannot start."""
    offers = [option for command in (up, scheduler) for option in command.params if option.name == name]
    choices = [option.type.choices for option in offers if isinstance(option.type, click.Choice)]
    assert len(choices) == 2
    assert choices[0] == choices[1]
    assert offers[0].default == offers[1].default


def test_more_memory_than_there_is_is_allowed_and_said() -> None:
    """Functions rarely use what they declare; the operator decides, knowingly."""
    share = divide(Machine(1024, 2.0), 2, 4096, 100_000)
    assert share.memory_mib == 2048
    assert share.remark is not None
    assert "4096 MiB" in share.remark
    assert "1024 MiB" in share.remark


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Machine(2000, 0.0)),
        (
            {"sys/fs/cgroup/a/b/memory.max": "1048576000\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000"},
            Machine(1000, 0.0),
        ),
        ({"sys/fs/cgroup/a/memory.max": "524288000\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, Machine(500, 0.0)),
        ({"sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, Machine(2000, 0.5)),
    ],
    ids=["no limit", "own group", "group above", "quota"],
)
def test_limits_of_the_cgroup_count(tmp_path: Path, files: dict[str, str], expected: Machine) -> None:
    """In a container the machine's memory is not ours to give away."""
    content = {"proc/meminfo": "MemTotal:  2048000 kB\n", "proc/self/cgroup": "0::/a/b\n", **files}
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = read_machine(tmp_path)
    assert machine.memory_mib == expected.memory_mib
    if expected.cpus:
        assert machine.cpus == expected.cpus


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 500 << 10),
        ({"sys/fs/cgroup/a/memory.max": "max", "sys/fs/cgroup/a/memory.current": "700000"}, 500 << 10),
        (
            {
                "sys/fs/cgroup/a/memory.max": "400000",
                "sys/fs/cgroup/a/memory.current": "350000",
                "sys/fs/cgroup/a/memory.stat": "anon 1\nactive_file 20000\ninactive_file 10000\n",
            },
            80_000,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/box\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "400000",
                "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "350000",
                "sys/fs/cgroup/memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 30000\n",
            },
            80_000,
        ),
    ],
    ids=["machine", "group without a limit", "version 2", "version 1"],
)
def test_what_is_left_counts_files_in_memory(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    """The kernel takes those back by itself: a group that is full of them is not short of memory."""
    content = {"proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 500 kB\n", "proc/self/cgroup": "0::/a\n", **files}
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == expected


def test_limits_of_a_version_1_cgroup_count(tmp_path: Path) -> None:
    """The same on hosts that still have the old hierarchies."""
    content = {
        "proc/meminfo": "MemTotal:  2048000 kB\n",
        "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "1048576000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "25000\n",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    }
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_machine(tmp_path) == Machine(1000, 0.25)


@pytest.mark.parametrize(
    ("size_mib", "in_use_mib", "worth"),
    [(1, 0, False), (64, 0, True), (127, 63, True), (1000, 501, False), (0, 0, False)],
)
def test_etcd_is_defragmented_when_half_of_much_is_free(size_mib: int, in_use_mib: int, worth: bool) -> None:
    """It answers nothing meanwhile, so it has to be worth the pause."""
    assert is_worth_it(size_mib << 20, in_use_mib << 20) is worth


@pytest.mark.parametrize("text", ["3.3.27", "3.5.0", "3.5.1", "3.5.2", "2.3.8"])
def test_etcd_versions_that_lose_data_or_are_too_old_are_refused(text: str) -> None:
    """3.5.0 to 3.5.2 may lose data after a crash, and PyPI has one of them."""
    version = Version.find(f"etcd Version: {text}\nGit SHA: 99018a77b\n")
    assert version is not None
    objection = ETCD.objection(version)
    assert objection is not None
    assert text in objection


@pytest.mark.parametrize("text", ["3.4.0", "3.4.23", "3.4.30", "3.5.3", "3.5.21", "3.6.0"])
def test_sound_etcd_versions_are_accepted(text: str) -> None:
    """Debian's and Ubuntu's are among them."""
    version = Version.find(f"etcd Version: {text}")
    assert version is not None
    assert ETCD.objection(version) is None


@pytest.mark.parametrize(("text", "refused"), [("v2.11.9", True), ("v2.12.0", False), ("v2.15.1", False)])
def test_nats_server_needs_scheduled_messages(text: str, refused: bool) -> None:
    """They came with 2.12."""
    version = Version.find(f"nats-server: {text}")
    assert version is not None
    assert (NATS_SERVER.objection(version) is not None) == refused
