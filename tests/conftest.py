"""What tests of several parts share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from lambent_supervisor.ports import free_port
from tests.cluster import Cluster, running_cluster

# A shell that runs the tests in the background has them start with SIGINT ignored, which every process started here
# would inherit; tests that press Ctrl-C need it as at a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example takes the time that it takes on a busy machine; speed is measured in benchmarks/.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One real cluster of two nodes for all tests that do not break it; each uses functions of its own names."""
    with running_cluster("--nodes=2", "--memory=4096") as running:
        yield running


@pytest.fixture
def unused_tcp_port() -> int:
    """A port for a server that comes, goes and comes again, in place of pytest-asyncio's: see `free_port`."""
    return free_port()
