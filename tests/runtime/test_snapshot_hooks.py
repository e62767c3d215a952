"""What stands around the snapshot that is not taken."""

from __future__ import annotations

import random

from lambent_runtime.snapshot_hooks import run_after_restore


def test_what_a_function_has_seeded_stays_seeded() -> None:
    """No two environments share an init, so that nothing has to be drawn anew; a version does as $LATEST does."""
    random.seed(1)
    run_after_restore()
    assert random.random() == random.Random(1).random()
