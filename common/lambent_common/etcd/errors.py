"""What can go wrong with etcd."""

from __future__ import annotations

from lambent.errors import UnavailableError


class EtcdUnavailableError(UnavailableError):
    """No etcd member answered in time. What was asked may or may not have been done."""
