"""What tests of several parts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One real cluster of two nodes for all tests that do not break it; each uses functions of its own names."""
    with running_cluster("--nodes=2", "--memory=4096") as running:
        yield running
