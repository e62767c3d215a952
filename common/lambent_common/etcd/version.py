"""Which releases of etcd can be used."""

from __future__ import annotations

import re

_OLDEST = (3, 4, 0)
"""The first whose watch responses may come in fragments, which a large transaction needs."""

_INCONSISTENT = ((3, 5, 0), (3, 5, 2))
"""These may lose data when they crash under load (etcd-io/etcd: CHANGELOG-3.5.md, "v3.5.3", issue 13766)."""


def unsupported_reason(version: str) -> str | None:
    """Say why this release cannot be used; None when it can."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return f"its version {version!r} cannot be read"
    number = (int(match[1]), int(match[2]), int(match[3]))
    if number < _OLDEST:
        return f"version {version} is too old; 3.4.0 or newer is needed"
    if _INCONSISTENT[0] <= number <= _INCONSISTENT[1]:
        return f"version {version} may lose data when it crashes; 3.5.3 or newer, or 3.4, is needed"
    return None
