"""The dispatcher in seeded random worlds: every rule holds after every step."""

from __future__ import annotations

import pytest
from tests.core.world import World


@pytest.mark.parametrize("first_seed", range(0, 2000, 100))
def test_every_rule_holds_in_every_world(first_seed: int) -> None:
    """Nodes that start slowly, refuse, fail and die, bursts, cancels, updates and drains break no rule.

    Never over a node's capacity, an account's or a function's limit; one end for each call; no more starts than waiting
    calls; counters equal to a recount; nobody waits beside free memory; in the end nothing is left.
    """
    for seed in range(first_seed, first_seed + 100):
        world = World(seed)
        try:
            world.run()
            world.check_rest()
        except AssertionError as error:
            raise AssertionError(f"seed {seed} at {world.now:.3f} s: {error}") from error


def test_the_same_seed_gives_the_same_world() -> None:
    """A failure can be replayed from its seed."""
    runs = []
    for _ in range(2):
        world = World(7)
        steps = world.run()
        runs.append((steps, [tuple(ends) for ends in world.ends.values()], world.dispatcher.cold_starts))
    assert runs[0] == runs[1]
