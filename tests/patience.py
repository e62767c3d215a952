"""How long tests wait for what is not wrong, only slow."""

from __future__ import annotations

import os

from lambent_node_agent.sandbox import demand, sandbox, zygote_client

PATIENCE = float(os.environ.get("LAMBENT_TEST_PATIENCE", "1"))
"""Factor on the tests' own deadlines, and by `be_patient` on the agent's. `make test-vm` sets 5: emulated code is some
fifteen times slower, and the deadlines have room for three times as it is."""


def be_patient() -> None:
    """Give sandboxes of this process so much more time to do what takes milliseconds otherwise.

    A pool that is filled so slowly would forget meanwhile what it is filled for.
    """
    demand.HALF_LIFE_S *= PATIENCE
    sandbox.SETUP_TIMEOUT_S *= PATIENCE
    sandbox.KILL_TIMEOUT_S *= PATIENCE
    sandbox.FORK_END_TIMEOUT_S *= PATIENCE
    zygote_client.START_TIMEOUT_S *= PATIENCE
    zygote_client.FORK_TIMEOUT_S *= PATIENCE
    zygote_client.STOP_TIMEOUT_S *= PATIENCE
