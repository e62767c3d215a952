"""Levels of isolation: which protections each has, when functions must not run, and what a node says of itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lambent_node_agent import isolation
from lambent_node_agent.isolation import NEEDED, Level, Protection

missing_sets = st.dictionaries(st.sampled_from(Protection), st.just("the kernel lacks it"))
allowed_sets = st.frozensets(st.sampled_from([protection.value for protection in NEEDED]))


def test_each_level_has_all_that_the_ones_after_it_have() -> None:
    """Who requires one is served by every better one."""
    full, standard, reduced = (level.protections for level in Level)
    assert full == set(Protection) - {Protection.DISK}
    assert full > standard > reduced
    assert standard >= set(NEEDED) - {Protection.DISK}


@given(missing_sets)
def test_a_level_says_exactly_what_is_there(missing: dict[Protection, str]) -> None:
    """All of its protections are, and no better level's."""
    level = isolation.level_of(missing)
    assert not level.protections & set(missing)
    better = list(Level)[: list(Level).index(level)]
    assert all(other.protections & set(missing) for other in better)


@given(missing_sets, allowed_sets, st.sampled_from(Level))
def test_functions_run_where_nothing_is_missing_but_what_was_accepted(
    missing: dict[Protection, str], allowed: frozenset[str], required: Level
) -> None:
    """A required level cannot be talked down by what is allowed; every refusal names what it is for."""
    below = required.protections & set(missing)
    unaccepted = [protection for protection in NEEDED if protection in missing and protection.value not in allowed]
    said = isolation.refusal(missing, allowed, required)
    assert (said is None) == (not below and not unaccepted)
    for protection in below or unaccepted:
        assert said is not None
        assert f"{protection.value} is not enforced (the kernel lacks it)" in said


@given(missing_sets)
def test_accepting_what_a_refusal_names_is_enough(missing: dict[Protection, str]) -> None:
    """The flag that it offers can be copied."""
    said = isolation.refusal(missing, frozenset(), Level.REDUCED)
    if said is not None:
        offered = said.rpartition("--allow-missing ")[2]
        assert isolation.refusal(missing, frozenset(offered.split(",")), Level.REDUCED) is None


@given(missing_sets)
def test_labels_name_the_level_and_what_is_not_enforced(missing: dict[Protection, str]) -> None:
    """A node that enforces everything has no second label."""
    labels = isolation.labels(missing)
    assert labels["lambent.isolation"] == isolation.level_of(missing).value
    named = labels.get("lambent.not-enforced", "").split(",") if missing else []
    assert named == [protection.value for protection in Protection if protection in missing]
    assert ("lambent.not-enforced" in labels) == bool(missing)
