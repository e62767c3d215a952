"""How long tests wait for what is not wrong, only slow."""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("LAMBENT_TEST_PATIENCE", "1"))
"""Factor on the tests' own deadlines; nothing of the product reads it. `make test-vm` sets 5: emulated code runs some
fifteen times slower, and the deadlines have room for three times as it is."""
