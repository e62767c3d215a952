"""One cluster for all tests of a module; each test has an account of its own in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio
from tests.functions.cluster import Cluster, cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lambent() -> AsyncIterator[Cluster]:
    async with cluster() as running:
        yield running
