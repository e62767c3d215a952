"""Fencing: an order of a scheduler that no longer owns a partition is refused."""

from __future__ import annotations

from lambent.errors import StaleEpochError


class EpochFence:
    """The highest epoch seen for each partition; there are 256 of them."""

    def __init__(self) -> None:
        self._highest: dict[int, int] = {}

    def check(self, partition: int, epoch: int) -> None:
        """Take note of an order's epoch.

        Raises:
            StaleEpochError: A newer owner has given orders for the partition.
        """
        highest = self._highest.get(partition, 0)
        if epoch < highest:
            raise StaleEpochError(f"partition {partition} has an owner of epoch {highest}; the order has {epoch}")
        if epoch > highest:
            self._highest[partition] = epoch
