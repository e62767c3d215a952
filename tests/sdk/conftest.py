"""A service on a real socket and a client of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.sdk import service as service_module
from tests.sdk.service import TOKEN, Service, serving

from lambent import AsyncClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(params=["grpc", "session port"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whichever way a session goes, its callers see the same."""
    way: str = request.param
    monkeypatch.setattr("lambent.session_stream._SESSION_PORT_TIMEOUT_S", 20.0)
    monkeypatch.setattr(service_module, "SESSION_PORT", way == "session port")
    return way


@pytest_asyncio.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    """Serve; and keep a cluster of this machine out of the test."""
    monkeypatch.setenv("LAMBENT_DATA_DIR", str(tmp_path / "none"))
    async with serving() as running:
        yield running


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.address, token=TOKEN) as connected:
        yield connected
