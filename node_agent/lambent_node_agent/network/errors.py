"""What may go wrong with the network of sandboxes."""

from __future__ import annotations


class NetworkError(Exception):
    """The kernel refused a step of making networks for sandboxes, or lacks what they need."""
