"""FunctionService: reads requests, has `model` decide and the repository write, and answers as the caller asked.

Every rule and message is in `names`, `configuration`, `model` and `aliases`; the HTTP door translates to these same
methods.
"""
# ruff: noqa: N802, ARG002 - the methods' names and arguments are gRPC's

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, TypeVar

import structlog

from lambent.errors import InvalidParameterError, ResourceConflictError, ResourceNotFoundError, UnavailableError
from lambent.v1 import function_pb2, function_pb2_grpc, record_pb2
from lambent_common import keys
from lambent_scheduler.functions import aliases, configuration, model, paging
from lambent_scheduler.functions.names import LATEST, FunctionId, Naming, is_version_number
from lambent_scheduler.functions.repository import Loaded, Write

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable

    from google.protobuf.message import Message

    from lambent_common.packages import PackageStore
    from lambent_scheduler.functions.activation import Activator
    from lambent_scheduler.functions.repository import FunctionRepository
    from lambent_scheduler.functions.table import FunctionTable
    from lambent_scheduler.functions.upload import Uploads

_Result = TypeVar("_Result")

log = structlog.get_logger(__name__)

# AWS Lambda: concurrency of an account and region.
ACCOUNT_CONCURRENCY = 1_000

# A watch that is not interrupted shows a write within milliseconds. A writer waits longer, and once; a reader polls.
_READ_WAIT_S = 1.0
_WRITE_WAIT_S = 5.0


class FunctionServicer(function_pb2_grpc.FunctionServiceServicer):
    """Serves FunctionService. All methods raise classes of `lambent.errors`; the server's interceptor maps them.

    Args:
        naming: Region, for ARNs.
        repository: The records.
        table: This scheduler's view; a write shows in it before its caller is answered.
        packages: Stored code.
        uploads: Takes in new code.
        activator: Settles what create and update began.
        architecture: "x86_64" or "arm64": the nodes' own.
        account_concurrency: Concurrency of an account, of which reservations are taken.
    """

    def __init__(
        self,
        *,
        naming: Naming,
        repository: FunctionRepository,
        table: FunctionTable,
        packages: PackageStore,
        uploads: Uploads,
        activator: Activator,
        architecture: str,
        account_concurrency: int = ACCOUNT_CONCURRENCY,
    ) -> None:
        self._naming = naming
        self._repository = repository
        self._table = table
        self._packages = packages
        self._uploads = uploads
        self._activator = activator
        self._architecture = architecture
        self._account_concurrency = account_concurrency

    async def UploadCode(
        self, request_iterator: AsyncIterable[function_pb2.UploadCodeRequest], context: object
    ) -> function_pb2.UploadCodeResponse:
        """Store a package."""
        info = await self._uploads.receive(self._chunks(request_iterator))
        return function_pb2.UploadCodeResponse(code_sha256=info.sha256, code_size_bytes=info.size_bytes)

    async def CreateFunction(
        self, request: function_pb2.CreateFunctionRequest, context: object
    ) -> function_pb2.CreateFunctionResponse:
        """Make a function."""
        function = self._naming.read_new(request.account, request.function_name)
        values = configuration.from_create(request)
        values.validate()
        code = await self._code(request.code_sha256)
        change = _change()

        def decide(loaded: Loaded) -> tuple[Write, function_pb2.Function]:
            if loaded.records is not None:
                raise ResourceConflictError(f"Function already exist: {function.name}")
            outcome = model.create(function.name, self._architecture, values, code, change, publish=request.publish)
            return _write(function, outcome), outcome.reply

        reply = await self._change(function, decide)
        self._activator.submit(function)
        return function_pb2.CreateFunctionResponse(function=self._shown(function, reply, version=request.publish))

    async def GetFunction(
        self, request: function_pb2.GetFunctionRequest, context: object
    ) -> function_pb2.GetFunctionResponse:
        """Give a function, version or alias."""
        function, qualifier = self._naming.read(request.account, request.function_name, request.qualifier)
        arn = self._naming.arn(function, qualifier)
        records = (await self._loaded(function)).require(arn)
        version = qualifier or LATEST
        if version in records.aliases:
            version = records.aliases[version].alias.function_version
        found = _versions(records).get(version)
        if found is None:
            raise model.not_found(arn)
        response = function_pb2.GetFunctionResponse(function=found, reserved_concurrent_executions=records.reserved)
        response.function.function_arn = arn
        return response

    async def ListFunctions(
        self, request: function_pb2.ListFunctionsRequest, context: object
    ) -> function_pb2.ListFunctionsResponse:
        """Give a page of functions, from this scheduler's view."""
        account = self._naming.account(request.account)
        size = paging.page_size(request.page_size)
        found = self._table.functions(account, after=paging.read_token(request.page_token), count=size + 1)
        shown = (self._shown(FunctionId(account, function.function_name), function) for function in found)
        page, more = paging.fill(shown, size)
        return function_pb2.ListFunctionsResponse(
            functions=page, next_page_token=paging.token_after(page[-1].function_name) if more else ""
        )

    async def UpdateFunctionCode(
        self, request: function_pb2.UpdateFunctionCodeRequest, context: object
    ) -> function_pb2.UpdateFunctionCodeResponse:
        """Give $LATEST another code."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        arn = self._naming.arn(function)
        code = await self._code(request.code_sha256)
        change = _change()

        def decide(loaded: Loaded) -> tuple[Write, function_pb2.Function]:
            latest = loaded.require(arn).latest
            outcome = model.update_code(
                latest, code, change, arn=arn, revision_id=request.revision_id, publish=request.publish
            )
            if request.dry_run:
                return Write(), latest.function
            return _write(function, outcome), outcome.reply

        reply = await self._change(function, decide)
        if not request.dry_run:
            self._activator.submit(function)
        shown = self._shown(function, reply, version=request.publish and not request.dry_run)
        return function_pb2.UpdateFunctionCodeResponse(function=shown)

    async def UpdateFunctionConfiguration(
        self, request: function_pb2.UpdateFunctionConfigurationRequest, context: object
    ) -> function_pb2.UpdateFunctionConfigurationResponse:
        """Change the configuration of $LATEST."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        arn = self._naming.arn(function)
        values = configuration.from_update(request)
        values.validate()
        change = _change()

        def decide(loaded: Loaded) -> tuple[Write, function_pb2.Function]:
            latest = loaded.require(arn).latest
            outcome = model.update_configuration(latest, values, change, arn=arn, revision_id=request.revision_id)
            return _write(function, outcome), outcome.reply

        reply = await self._change(function, decide)
        self._activator.submit(function)
        return function_pb2.UpdateFunctionConfigurationResponse(function=self._shown(function, reply))

    async def DeleteFunction(
        self, request: function_pb2.DeleteFunctionRequest, context: object
    ) -> function_pb2.DeleteFunctionResponse:
        """Delete a function with all that belongs to it, or one version."""
        function, qualifier = self._naming.read(request.account, request.function_name, request.qualifier)
        if qualifier:
            await self._delete_version(function, qualifier)
        else:
            await self._delete_function(function)
        return function_pb2.DeleteFunctionResponse()

    async def PublishVersion(
        self, request: function_pb2.PublishVersionRequest, context: object
    ) -> function_pb2.PublishVersionResponse:
        """Freeze $LATEST as a version."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        arn = self._naming.arn(function)
        configuration.Changes(description=request.description).validate()

        def decide(loaded: Loaded) -> tuple[Write, function_pb2.Function]:
            records = loaded.require(arn)
            outcome = model.publish(
                records,
                arn=arn,
                code_sha256=request.code_sha256,
                description=request.description,
                revision_id=request.revision_id,
            )
            unchanged = outcome.latest is records.latest
            return Write() if unchanged else _write(function, outcome), outcome.reply

        reply = await self._change(function, decide, whole=True)
        return function_pb2.PublishVersionResponse(function=self._shown(function, reply, version=True))

    async def ListVersionsByFunction(
        self, request: function_pb2.ListVersionsByFunctionRequest, context: object
    ) -> function_pb2.ListVersionsByFunctionResponse:
        """Give a page of versions, $LATEST first."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        size = paging.page_size(request.page_size)
        after = _number_of(paging.read_token(request.page_token))
        records = (await self._loaded(function)).require(self._naming.arn(function))
        versions = [(0, records.latest.function)]
        versions += [(number, record.function) for number, record in sorted(records.versions.items())]
        found = [item for item in versions if item[0] > after]
        page, more = paging.fill((self._shown(function, version, version=True) for _, version in found), size)
        return function_pb2.ListVersionsByFunctionResponse(
            versions=page, next_page_token=paging.token_after(str(found[len(page) - 1][0])) if more else ""
        )

    async def CreateAlias(
        self, request: function_pb2.CreateAliasRequest, context: object
    ) -> function_pb2.CreateAliasResponse:
        """Name a version."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        revision_id = str(uuid.uuid4())

        def decide(loaded: Loaded) -> tuple[Write, record_pb2.AliasRecord]:
            records = loaded.require(self._naming.arn(function))
            record = aliases.create(
                request.name,
                request.function_version,
                request.description,
                request.additional_version_weights,
                revision_id,
                versions=_versions(records),
                arn=lambda qualifier: self._naming.arn(function, qualifier),
            )
            if request.name in records.aliases:
                arn = self._naming.arn(function, request.name)
                raise ResourceConflictError(f"Alias already exists: {arn}")
            return _alias_write(function, record), record

        record = await self._change(function, decide, whole=True)
        return function_pb2.CreateAliasResponse(alias=self._shown_alias(function, record))

    async def GetAlias(self, request: function_pb2.GetAliasRequest, context: object) -> function_pb2.GetAliasResponse:
        """Give an alias."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        aliases.check_name(request.name)
        records = (await self._repository.load(function)).require(self._naming.arn(function))
        record = records.aliases.get(request.name)
        if record is None:
            raise ResourceNotFoundError(f"Cannot find alias arn: {self._naming.arn(function, request.name)}")
        return function_pb2.GetAliasResponse(alias=self._shown_alias(function, record))

    async def ListAliases(
        self, request: function_pb2.ListAliasesRequest, context: object
    ) -> function_pb2.ListAliasesResponse:
        """Give a page of aliases, by name."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        size = paging.page_size(request.page_size)
        after = paging.read_token(request.page_token)
        records = (await self._repository.load(function)).require(self._naming.arn(function))
        found = [
            record
            for name, record in sorted(records.aliases.items())
            if name > after and (not request.function_version or aliases.uses(record.alias, request.function_version))
        ]
        page, more = paging.fill((self._shown_alias(function, record) for record in found), size)
        return function_pb2.ListAliasesResponse(
            aliases=page, next_page_token=paging.token_after(page[-1].name) if more else ""
        )

    async def UpdateAlias(
        self, request: function_pb2.UpdateAliasRequest, context: object
    ) -> function_pb2.UpdateAliasResponse:
        """Point an alias at another version, or change its weights."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        aliases.check_name(request.name)
        revision_id = str(uuid.uuid4())

        def decide(loaded: Loaded) -> tuple[Write, record_pb2.AliasRecord]:
            records = loaded.require(self._naming.arn(function))
            current = records.aliases.get(request.name)
            if current is None:
                raise ResourceNotFoundError(f"Alias not found: {self._naming.arn(function, request.name)}")
            record = aliases.update(
                current,
                request,
                revision_id,
                versions=_versions(records),
                arn=lambda qualifier: self._naming.arn(function, qualifier),
            )
            return _alias_write(function, record), record

        record = await self._change(function, decide, whole=True)
        return function_pb2.UpdateAliasResponse(alias=self._shown_alias(function, record))

    async def DeleteAlias(
        self, request: function_pb2.DeleteAliasRequest, context: object
    ) -> function_pb2.DeleteAliasResponse:
        """Delete an alias, also one that does not exist."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        aliases.check_name(request.name)

        def decide(loaded: Loaded) -> tuple[Write, None]:
            records = loaded.require(self._naming.arn(function))
            key = keys.function_alias(function.account, function.name, request.name)
            return Write(deletes=frozenset({key}) if request.name in records.aliases else frozenset()), None

        await self._change(function, decide, whole=True)
        return function_pb2.DeleteAliasResponse()

    async def PutFunctionConcurrency(
        self, request: function_pb2.PutFunctionConcurrencyRequest, context: object
    ) -> function_pb2.PutFunctionConcurrencyResponse:
        """Reserve concurrency."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        requested = request.reserved_concurrent_executions
        await self._reserve(function, requested)
        return function_pb2.PutFunctionConcurrencyResponse(reserved_concurrent_executions=requested)

    async def GetFunctionConcurrency(
        self, request: function_pb2.GetFunctionConcurrencyRequest, context: object
    ) -> function_pb2.GetFunctionConcurrencyResponse:
        """Give the reservation."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        records = (await self._repository.load(function)).require(self._naming.arn(function))
        return function_pb2.GetFunctionConcurrencyResponse(reserved_concurrent_executions=records.reserved)

    async def DeleteFunctionConcurrency(
        self, request: function_pb2.DeleteFunctionConcurrencyRequest, context: object
    ) -> function_pb2.DeleteFunctionConcurrencyResponse:
        """Remove the reservation."""
        function = self._naming.read_unqualified(request.account, request.function_name)
        await self._reserve(function, None)
        return function_pb2.DeleteFunctionConcurrencyResponse()

    async def _change(
        self,
        function: FunctionId,
        decide: Callable[[Loaded], tuple[Write, _Result]],
        *,
        whole: bool = False,
        with_account: bool = False,
    ) -> _Result:
        """Write what is decided, and wait until this scheduler's own view shows it."""
        result, revision = await self._repository.change(function, decide, whole=whole, with_account=with_account)
        # When it does not show, it is written all the same: an error would make the caller do it again.
        await self._until_seen(function, revision, _WRITE_WAIT_S)
        return result

    async def _loaded(self, function: FunctionId) -> Loaded:
        """Read a function, and wait until this scheduler's own view shows what was read.

        Whoever is told that a function is ACTIVE, or updated, invokes it next, and that is decided by the view.
        """
        loaded = await self._repository.load(function)
        await self._until_seen(function, loaded.revision, _READ_WAIT_S)
        return loaded

    async def _until_seen(self, function: FunctionId, revision: int, timeout_s: float) -> None:
        try:
            await self._table.wait_for_revision(revision, timeout_s=timeout_s)
        except UnavailableError:
            log.warning("view_behind", account=function.account, function=function.name, revision=revision)

    async def _delete_function(self, function: FunctionId) -> None:
        def decide(loaded: Loaded) -> tuple[Write, None]:
            records = loaded.require(self._naming.arn(function))
            puts = {}
            if records.reserved is not None:
                puts[keys.account_reserved(function.account)] = record_pb2.AccountReservationRecord(
                    reserved_concurrent_executions=max(0, loaded.account_reserved - records.reserved)
                )
            return Write(puts=puts, delete_function=True), None

        await self._change(function, decide, whole=True, with_account=True)

    async def _delete_version(self, function: FunctionId, version: str) -> None:
        if version == LATEST:
            raise InvalidParameterError("$LATEST version cannot be deleted without deleting the function.")
        if not is_version_number(version):
            raise InvalidParameterError("Deletion of aliases is not currently supported.")

        def decide(loaded: Loaded) -> tuple[Write, None]:
            records = loaded.require(self._naming.arn(function))
            if int(version) not in records.versions:
                return Write(), None
            users = sorted(name for name, record in records.aliases.items() if aliases.uses(record.alias, version))
            if users:
                raise ResourceConflictError(
                    f"Unable to delete version because the following aliases reference it: [{', '.join(users)}]"
                )
            key = keys.function_version(function.account, function.name, str(int(version)))
            return Write(deletes=frozenset({key})), None

        await self._change(function, decide, whole=True)

    async def _reserve(self, function: FunctionId, requested: int | None) -> None:
        """Set a function's reservation and the account's sum in one transaction; None removes it."""
        own_key = keys.function_concurrency(function.account, function.name)
        sum_key = keys.account_reserved(function.account)

        def decide(loaded: Loaded) -> tuple[Write, None]:
            before = loaded.require(self._naming.arn(function)).reserved
            if before == requested:
                return Write(), None
            total = model.reserve(
                account_limit=self._account_concurrency,
                account_reserved=loaded.account_reserved,
                before=before,
                requested=requested or 0,
            )
            total_record = record_pb2.AccountReservationRecord(reserved_concurrent_executions=total)
            if requested is None:
                return Write(puts={sum_key: total_record}, deletes=frozenset({own_key})), None
            own_record = record_pb2.ReservedConcurrencyRecord(reserved_concurrent_executions=requested)
            return Write(puts={sum_key: total_record, own_key: own_record}), None

        await self._change(function, decide, whole=True, with_account=True)

    async def _code(self, sha256: str) -> model.Code:
        """Give a package that was uploaded, kept from being swept for another day."""
        if not sha256:
            raise InvalidParameterError("Please provide a source for function code.")
        info = await self._packages.claim(sha256)
        return model.Code(info.sha256, info.size_bytes)

    async def _chunks(self, requests: AsyncIterable[function_pb2.UploadCodeRequest]) -> AsyncIterator[bytes]:
        first = True
        async for request in requests:
            if first:
                self._naming.account(request.account)
                first = False
            yield request.chunk

    def _shown(
        self, function: FunctionId, record: function_pb2.Function, *, version: bool = False
    ) -> function_pb2.Function:
        """Give a function with its ARN, qualified by its version when asked for."""
        shown = function_pb2.Function()
        shown.CopyFrom(record)
        shown.function_arn = self._naming.arn(function, record.version if version else "")
        return shown

    def _shown_alias(self, function: FunctionId, record: record_pb2.AliasRecord) -> function_pb2.Alias:
        shown = function_pb2.Alias()
        shown.CopyFrom(record.alias)
        shown.alias_arn = self._naming.arn(function, record.alias.name)
        return shown


def _change() -> model.Change:
    return model.Change(time.time_ns(), str(uuid.uuid4()))


def _write(function: FunctionId, outcome: model.Outcome) -> Write:
    account, name = function.account, function.name
    puts: dict[str, Message] = {keys.function_latest(account, name): outcome.latest}
    if outcome.published is not None:
        puts[keys.function_version(account, name, outcome.published.function.version)] = outcome.published
    return Write(puts=puts)


def _alias_write(function: FunctionId, record: record_pb2.AliasRecord) -> Write:
    account, name, alias = function.account, function.name, record.alias
    versions = {alias.function_version, *alias.additional_version_weights} - {LATEST}
    return Write(
        puts={keys.function_alias(account, name, alias.name): record},
        # Named one by one: that a key was deleted does not show in the comparison of the whole prefix.
        requires=frozenset(keys.function_version(account, name, version) for version in versions),
    )


def _versions(records: model.FunctionRecords) -> dict[str, function_pb2.Function]:
    """Give all versions by their names, $LATEST among them."""
    versions = {str(number): record.function for number, record in records.versions.items()}
    return {LATEST: records.latest.function, **versions}


def _number_of(token: str) -> int:
    """Give the version number in a page token; -1 for the first page, which begins with $LATEST (0)."""
    if not token:
        return -1
    if not token.isdecimal():
        raise InvalidParameterError("The marker is of another list. Please begin again without one.")
    return int(token)
