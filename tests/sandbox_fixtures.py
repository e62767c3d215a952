"""Fixtures of sandbox tests: one host for each module, in a mount namespace of the test run's own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from lambent_node_agent.sandbox import enter_private_mount_namespace
from tests.patience import be_patient
from tests.sandbox_harness import Lab, lab


@pytest.fixture(scope="session")
def mount_namespace() -> None:
    """What the agent does first."""
    if os.geteuid() != 0:
        pytest.skip("sandboxes need root")
    be_patient()
    enter_private_mount_namespace()


def _make_place(factory: pytest.TempPathFactory) -> Path:
    """Make a directory that the sandboxes' users may read."""
    directory: Path = factory.mktemp("sandbox")
    directory.chmod(0o755)
    return directory


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for the hosts of one test."""
    return _make_place(tmp_path_factory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    mount_namespace: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Lab]:
    """Give a host without a pool, shared by the tests of a module."""
    async with lab(_make_place(tmp_path_factory), request.module.__name__.rpartition(".")[2].replace("_", "-")) as made:
        yield made
