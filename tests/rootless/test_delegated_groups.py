"""Which control groups are a user's to make groups in."""

from __future__ import annotations

from pathlib import Path

from lambent_node_agent.cgroups import Layout
from lambent_node_agent.cgroups.layout import LEAF, Hierarchy

MOUNT = Path("/sys/fs/cgroup")
SCOPE = MOUNT / "user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope"
ALL = frozenset({"memory", "cpu", "pids"})


def unified(own: Path) -> Layout:
    return Layout((Hierarchy(MOUNT, own, True, ALL),))


def test_what_systemd_delegates_is_used_from_the_own_group_on_downwards() -> None:
    """Above it everything is root's; of the controllers there are those that it was given."""
    asked: list[Path] = []

    def controllers(group: Path) -> set[str]:
        asked.append(group)
        return {"memory", "pids", "io"}

    found = unified(SCOPE).delegated(lambda group: group == SCOPE, controllers)
    assert found == Layout((Hierarchy(SCOPE, SCOPE, True, frozenset({"memory", "pids"})),))
    assert asked == [SCOPE]


def test_a_second_agent_uses_the_group_that_the_first_one_moved_it_out_of() -> None:
    """The first agent's processes, and their later children, are in a leaf: groups with controllers have none."""
    found = unified(SCOPE / LEAF).delegated(lambda group: group == SCOPE, lambda _group: set(ALL))
    assert found == Layout((Hierarchy(SCOPE, SCOPE, True, ALL),))


def test_without_delegation_nothing_is_left() -> None:
    """A login session's scope is root's; a delegated group without controllers is of no use."""
    assert unified(SCOPE).delegated(lambda _group: False, lambda _group: set(ALL)) == Layout(())
    assert unified(SCOPE).delegated(lambda _group: True, lambda _group: set()) == Layout(())


def test_each_hierarchy_of_version_1_is_the_user_s_or_not() -> None:
    """Root may have made a group in one of them."""
    memory = Hierarchy(MOUNT / "memory", MOUNT / "memory/ada", False, frozenset({"memory"}))
    pids = Hierarchy(MOUNT / "pids", MOUNT / "pids", False, frozenset({"pids"}))
    found = Layout((memory, pids)).delegated(lambda group: group == memory.own, lambda _group: set())
    assert found == Layout((Hierarchy(memory.own, memory.own, False, frozenset({"memory"})),))
