"""What all tests of the invocation path share."""

from __future__ import annotations

import pytest
from tests.invocation import front


@pytest.fixture(autouse=True, params=["grpc", "session port"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way a session goes, its rules are the same."""
    monkeypatch.setattr("lambent.session_stream._SESSION_PORT_TIMEOUT_S", 20.0)
    monkeypatch.setattr(front, "SESSION_PORT", request.param == "session port")
