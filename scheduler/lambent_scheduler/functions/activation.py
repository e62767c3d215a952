"""Ending what create and update began: looks for the code package, then makes the function ACTIVE."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

import structlog

from lambent.errors import NoCapacityError, ServiceError
from lambent_common import keys
from lambent_scheduler.functions import model
from lambent_scheduler.functions.names import FunctionId
from lambent_scheduler.functions.repository import Loaded, Write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lambent_common.packages import PackageStore
    from lambent_scheduler.core.version import VersionSpec
    from lambent_scheduler.functions.repository import FunctionRepository
    from lambent_scheduler.functions.table import FunctionTable

log = structlog.get_logger(__name__)

# The scheduler that wrote the record settles it at once. Another one takes it for abandoned after this long.
_ABANDONED_AFTER_S = 2.0
# Between attempts while etcd or JetStream is away.
_RETRY_S = 1.0
# Settling is one read of the store and one transaction; more at once would only stand in line there.
_CONCURRENCY = 16


class Activator:
    """Settles functions that are PENDING or IN_PROGRESS.

    Those that this scheduler wrote are settled at once (`submit`); those that the table shows and nobody settles,
    because their scheduler died, after two seconds. Two schedulers that settle the same function do no harm: the
    second finds nothing left to do.
    """

    def __init__(self, repository: FunctionRepository, packages: PackageStore, table: FunctionTable) -> None:
        self._repository = repository
        self._packages = packages
        self._table = table
        self._due: dict[FunctionId, float] = {}  # bounded by the number of functions
        self._prepared: dict[FunctionId, dict[str, model.Preparation]] = {}  # by version; until it has been written
        self._wake = asyncio.Event()
        table.on_change(self._notice)

    def submit(self, function: FunctionId) -> None:
        """Have a function settled now."""
        self._schedule(function, 0.0)

    def prepared(self, spec: VersionSpec, error: ServiceError | None) -> None:
        """Have a version settled that waits for its preparation, which has ended: with an error, or well.

        NoCapacityError is no fault of its own: it becomes ACTIVE without.
        """
        if not self._table.is_preparing(spec.account, spec.function_name, spec.version):
            return
        init_error = "" if error is None or isinstance(error, NoCapacityError) else error.message
        function = FunctionId(spec.account, spec.function_name)
        preparation = model.Preparation(optimized=error is None, init_error=init_error)
        self._prepared.setdefault(function, {})[spec.version] = preparation
        self.submit(function)

    async def run(self) -> None:
        """Settle what is due, for ever."""
        for function in self._table.all_functions():
            self._notice(function.account, function.name)
        for function in self._prepared:
            self.submit(function)
        running = 0

        async def settle(function: FunctionId) -> None:
            nonlocal running
            try:
                await self._settle_or_retry(function)
            finally:
                running -= 1
                self._wake.set()

        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                now = time.monotonic()
                due = [function for function, at in self._due.items() if at <= now]
                for function in due[: _CONCURRENCY - running]:
                    del self._due[function]
                    running += 1
                    group.create_task(settle(function))
                await self._wait(now, full=running >= _CONCURRENCY)

    async def settle(self, function: FunctionId) -> None:
        """Settle one function; nothing happens when it is gone or settled already.

        Raises:
            UnavailableError: etcd or JetStream does not answer.
        """
        change = model.Change(time.time_ns(), str(uuid.uuid4()))
        missing = await self._missing_code(function)
        prepared = dict(self._prepared.get(function, ()))

        def decide(loaded: Loaded) -> tuple[Write, None]:
            settled = None
            if loaded.records is not None:
                settled = model.settle(loaded.records, change, missing_code=missing, prepared=prepared)
            if settled is None:
                return Write(), None
            latest, versions = settled
            account, name = function.account, function.name
            puts = {
                keys.function_latest(account, name): latest,
                **{keys.function_version(account, name, str(number)): record for number, record in versions.items()},
            }
            return Write(puts=puts), None

        _, revision = await self._repository.change(function, decide, whole=True)
        self._forget(function, prepared)
        if revision:
            log.info("function_settled", account=function.account, function=function.name, missing_code=sorted(missing))

    def _forget(self, function: FunctionId, prepared: Mapping[str, model.Preparation]) -> None:
        left = self._prepared.get(function, {})
        for version, preparation in prepared.items():
            if left.get(version) is preparation:
                del left[version]
        if not left:
            self._prepared.pop(function, None)

    async def _missing_code(self, function: FunctionId) -> frozenset[str]:
        loaded = await self._repository.load(function)
        if loaded.records is None:
            return frozenset()
        candidates = [loaded.records.latest.function, *(v.function for v in loaded.records.versions.values())]
        wanted = {candidate.code_sha256 for candidate in candidates if model.is_under_way(candidate)}
        return frozenset({sha256 for sha256 in wanted if not await self._packages.exists(sha256)})

    async def _settle_or_retry(self, function: FunctionId) -> None:
        try:
            await self.settle(function)
        except ServiceError as error:
            log.warning("function_not_settled", account=function.account, function=function.name, error=error.message)
            self._schedule(function, _RETRY_S)

    def _notice(self, account: str, name: str) -> None:
        function = FunctionId(account, name)
        if self._table.is_under_way(function):
            if function not in self._due:
                self._schedule(function, _ABANDONED_AFTER_S)
        elif function not in self._prepared:
            self._due.pop(function, None)

    def _schedule(self, function: FunctionId, delay_s: float) -> None:
        at = time.monotonic() + delay_s
        self._due[function] = min(at, self._due.get(function, at))
        self._wake.set()

    async def _wait(self, now: float, *, full: bool) -> None:
        """Wait until something is due or has changed."""
        next_at = None if full or not self._due else min(self._due.values())
        try:
            async with asyncio.timeout(None if next_at is None else max(0.0, next_at - now)):
                await self._wake.wait()
        except TimeoutError:
            pass
