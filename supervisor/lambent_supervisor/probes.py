"""Ask etcd, nats-server and the scheduler whether they serve; the stores as the daemons will, with credentials."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import TYPE_CHECKING

from lambent_common import credentials

from .errors import ChildFailedError
from .ports import LOOPBACK

if TYPE_CHECKING:
    from pathlib import Path

PROBE_TIMEOUT_S = 2.0
_READY_INTERVAL_S = 0.01
_ANSWER_LIMIT_BYTES = 1 << 16


async def etcd_serves(port: int, directory: Path) -> bool:
    """Whether etcd's /health says so: true once there is a leader."""
    answer = await ask_etcd(port, directory, "GET", "/health", timeout_s=PROBE_TIMEOUT_S)
    return answer is not None and answer.get("health") == "true"


async def nats_serves(port: int, user: str, password: str) -> bool:
    """Whether nats-server lets the user in; it listens once JetStream has read its store."""
    options = {"user": user, "pass": password, "verbose": False, "pedantic": False, "lang": "python", "version": "0"}
    request = f"CONNECT {json.dumps(options)}\r\nPING\r\n"
    return b"PONG" in await _exchange(port, request.encode(), b"PONG", None, PROBE_TIMEOUT_S)


async def wait_until_ready(http: str, timeout_s: float) -> None:
    """Return when the scheduler's /readyz says that calls can be served.

    Args:
        http: URL of its HTTP side.
        timeout_s: How long it may take.

    Raises:
        ChildFailedError: It took longer; the message has the scheduler's reason.
    """
    port = int(http.rpartition(":")[2])
    reason: str | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                reason = await _unready_reason(port)
                if reason is None:
                    return
                await asyncio.sleep(_READY_INTERVAL_S)
    except TimeoutError as error:
        raise ChildFailedError(
            f"the cluster was not ready within {timeout_s:g} s: {reason or 'the scheduler does not answer'}",
            help_="Its logs are in the data directory.",
        ) from error


async def _unready_reason(port: int) -> str | None:
    """Why calls cannot be served; None when they can, empty when there is no answer."""
    request = f"GET /readyz HTTP/1.0\r\nHost: {LOOPBACK}\r\n\r\n"
    head, _, content = (await _exchange(port, request.encode(), None, None, PROBE_TIMEOUT_S)).partition(b"\r\n\r\n")
    return None if b" 200 " in head.partition(b"\r\n")[0] else content.decode(errors="replace").strip()


async def ask_etcd(port: int, directory: Path, method: str, path: str, *, timeout_s: float) -> dict[str, object] | None:
    """Make a request of etcd's HTTP side; None when it does not answer with a JSON object in time.

    Args:
        port: On loopback.
        directory: Holds the client's certificate.
        method: GET or POST; the body of a POST is an empty object.
        path: Of /health, or of the gateway, such as /v3/maintenance/status.
        timeout_s: For the whole exchange.

    Raises:
        OSError: The certificate cannot be read.
    """
    context = ssl.create_default_context(cafile=directory / credentials.ETCD_CA_FILE)
    context.load_cert_chain(directory / credentials.ETCD_CERTIFICATE_FILE, directory / credentials.ETCD_KEY_FILE)
    body = "{}" if method == "POST" else ""
    # With version 1.0 the server closes the connection behind its answer.
    request = f"{method} {path} HTTP/1.0\r\nHost: {LOOPBACK}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    answer = await _exchange(port, request.encode(), None, context, timeout_s)
    head, _, content = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        return None
    try:
        parsed = json.loads(content)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


async def _exchange(
    port: int, request: bytes, until: bytes | None, context: ssl.SSLContext | None, timeout_s: float
) -> bytes:
    """Send a request and read until these bytes or the end come; empty when nobody listens or the time is up."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=context)
            try:
                writer.write(request)
                answer = b""
                while len(answer) < _ANSWER_LIMIT_BYTES and (piece := await reader.read(4096)):
                    answer += piece
                    if until is not None and until in answer:
                        break
                return answer
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""
