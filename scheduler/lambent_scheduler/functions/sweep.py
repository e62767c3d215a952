"""Deleting code packages that no function has referred to for a day, and what uploads that died left."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from lambent.errors import ServiceError

if TYPE_CHECKING:
    from lambent_common.packages import PackageInfo, PackageStore
    from lambent_scheduler.functions.repository import FunctionRepository

log = structlog.get_logger(__name__)

# Time for an upload to become a function, for a rollback, and for nodes to fetch what they still run.
KEEP_S = 24 * 3600.0
# A sweep reads every function record once: often enough for a day's grace, rare enough not to be noticed.
_INTERVAL_S = 3600.0


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a look at all packages leads to."""

    mark: tuple[PackageInfo, ...]
    unmark: tuple[PackageInfo, ...]
    delete: tuple[PackageInfo, ...]


def plan(packages: list[PackageInfo], referenced: set[str], now: float) -> Sweep:
    """Decide about every package. Pure.

    Args:
        packages: As stored, read before `referenced`: what was claimed in between fails the comparison of its sequence.
        referenced: SHA-256 that some function refers to.
        now: Unix time in seconds.
    """
    mark, unmark, delete = [], [], []
    for package in packages:
        if package.sha256 in referenced:
            if package.unreferenced_since is not None:
                unmark.append(package)
        elif package.unreferenced_since is None:
            mark.append(package)
        elif now - package.unreferenced_since >= KEEP_S:
            delete.append(package)
    return Sweep(tuple(mark), tuple(unmark), tuple(delete))


class PackageSweep:
    """Sweeps once an hour. Every scheduler may run one: marks and deletions compare what they replace."""

    def __init__(self, repository: FunctionRepository, packages: PackageStore) -> None:
        self._repository = repository
        self._packages = packages

    async def run(self) -> None:
        """Sweep for ever; an outage costs one turn."""
        while True:
            # Schedulers that were started together are not to sweep together.
            await asyncio.sleep(_INTERVAL_S * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            try:
                await self.sweep(time.time())
            except ServiceError as error:
                log.warning("package_sweep_failed", error=error.message)

    async def sweep(self, now: float) -> Sweep:
        """Look at all packages once; `now` is Unix time in seconds.

        Raises:
            UnavailableError: etcd or JetStream does not answer.
        """
        packages = await self._packages.list()
        sweep = plan(packages, await self._repository.referenced_code(), now)
        for package in sweep.unmark:
            await self._packages.mark_unreferenced(package, None)
        for package in sweep.mark:
            await self._packages.mark_unreferenced(package, now)
        for package in sweep.delete:
            if await self._packages.delete_unchanged(package):
                log.info("package_deleted", sha256=package.sha256, size_bytes=package.size_bytes)
        if uploads := await self._packages.delete_abandoned(now - KEEP_S):
            log.info("abandoned_uploads_deleted", uploads=uploads)
        return sweep
