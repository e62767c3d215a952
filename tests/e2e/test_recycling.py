"""A cluster whose operator wants environments to be replaced: no call notices."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING

from tests.cluster import running_cluster_async

import lambent
from lambent.retry import Retries

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

# More than a scheduler keeps of a payload once it is sent: such a call cannot be sent to another environment.
LARGE = "x" * 600_000


async def test_calls_in_flight_do_not_notice_that_environments_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None fails, and no environment serves one more than it is to."""
    monkeypatch.setattr(Retries, "wait_s", lambda *_: None)  # what fails, fails
    (tmp_path / "app.py").write_text("def handler(event, context): return len(event)\n")
    flags = ("--memory=1024", "--recycle-after-invocations=3", "--recycle-after-hours=100")
    async with (
        asyncio.timeout(100),
        running_cluster_async(flags) as cluster,
        lambent.AsyncClient(data_dir=cluster.data_dir) as client,
    ):
        await client.deploy("recycled", tmp_path, handler="app.handler", memory_mib=128)
        done: list[lambent.InvokeResult] = []
        for _ in range(10):
            payloads = [LARGE, "small"] * 4
            done += await asyncio.gather(*(client.invoke("recycled", payload) for payload in payloads))
        assert [result.json() for result in done] == [len(LARGE), 5] * 40
        served = Counter(result.environment_id for result in done)
        assert max(served.values()) == 3
        text = await asyncio.to_thread(_metrics, cluster.http)
        assert 'lambent_node_frozen_environments{node_id="node-1"}' in text
        assert 'lambent_node_reclaimed_bytes_total{node_id="node-1"} 0.0' in text


def _metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
        return text
