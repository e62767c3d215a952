"""The control plane's calls about functions: FunctionService as the SDK offers it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from lambent import conversion, upload
from lambent.errors import (
    DeadlineExceededError,
    InvalidParameterError,
    ResourceConflictError,
)
from lambent.packaging import CodePackage, build_package
from lambent.results import FunctionState, LastUpdateStatus
from lambent.v1 import function_pb2, function_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from pathlib import Path

    from lambent.connection import Connection
    from lambent.results import Alias, Function, NetworkMode, VpcConfig
    from lambent.upload import UploadProgress

    Code = Path | str | bytes | CodePackage

_SETTLE_TIMEOUT_S = 30.0
"""A function settles in under a second; half a minute means that something is wrong."""

_FIRST_POLL_S = 0.005
_LAST_POLL_S = 0.25
"""Polls start quick, since most changes settle at once, and get rarer."""


class Functions:
    """Functions, versions, aliases and reserved concurrency: `client.functions`.

    Every method raises the typed errors of `lambent.errors`: FunctionNotFoundError, InvalidParameterError and so on.
    """

    def __init__(self, connect: Callable[[], Connection], account: str) -> None:
        self._connect = connect
        self._account = account
        self._cached: tuple[Connection, function_pb2_grpc.FunctionServiceStub] | None = None

    async def create(
        self,
        name: str,
        code: Code,
        *,
        handler: str,
        runtime: str = "",
        memory_mib: int | None = None,
        timeout_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        ephemeral_storage_mib: int | None = None,
        snap_start: bool = False,
        description: str = "",
        role: str = "",
        requirements: Path | str | Iterable[str] | None = None,
        publish: bool = False,
        network: NetworkMode | str | None = None,
        vpc_config: VpcConfig | None = None,
        on_progress: UploadProgress | None = None,
    ) -> Function:
        """Upload code and make a function of it. The result is PENDING; `wait_until_settled` waits for ACTIVE.

        Args:
            name: 1 to 64 characters of [A-Za-z0-9_-].
            code: A folder, a source file, a zip (path or bytes) or a package.
            handler: `module.function`.
            runtime: For example `python3.11`; empty means the version of this interpreter.
            memory_mib: [128, 10240]; None means 128.
            timeout_s: [1, 900]; None means 3.
            environment: The function's environment variables.
            ephemeral_storage_mib: Size of /tmp, [512, 10240]; None means 512.
            snap_start: True to have environments of published versions initialised before calls come for them.
            description: At most 256 characters.
            role: Role ARN, kept and given back.
            requirements: A requirements file or specifiers to install beside the code.
            publish: True to publish version 1 as well.
            network: Where its connections may go; None means EGRESS.
            vpc_config: The operator's networks that it may connect to instead.
            on_progress: Called with bytes sent and bytes in all.

        Raises:
            ResourceConflictError: A function of this name exists.
        """
        stored = await self.upload_code(code, requirements=requirements, runtime=runtime, on_progress=on_progress)
        connection, stub = self._stub()
        reply = await connection.unary(
            stub.CreateFunction,
            function_pb2.CreateFunctionRequest(
                account=self._account,
                function_name=name,
                runtime=runtime or default_runtime(),
                role=role,
                handler=handler,
                description=description,
                timeout=conversion.duration("timeout_s", timeout_s),
                memory_mib=_size("memory_mib", memory_mib),
                ephemeral_storage_mib=_size("ephemeral_storage_mib", ephemeral_storage_mib),
                environment_variables=environment,
                code_sha256=stored,
                publish=publish,
                snap_start=conversion.snap_start(snap_start),
                network_mode=conversion.network_mode(network) or function_pb2.NETWORK_MODE_UNSPECIFIED,
                vpc_config=conversion.vpc_config(vpc_config),
            ),
        )
        return conversion.function(reply.function)

    async def get(self, name: str, *, qualifier: str = "") -> Function:
        """Give one function version; an alias gives the version it points to."""
        connection, stub = self._stub()
        reply = await connection.unary(
            stub.GetFunction,
            function_pb2.GetFunctionRequest(account=self._account, function_name=name, qualifier=qualifier),
            idempotent=True,
        )
        reserved = reply.reserved_concurrent_executions if reply.HasField("reserved_concurrent_executions") else None
        return conversion.function(reply.function, reserved_concurrency=reserved)

    async def list(self) -> AsyncIterator[Function]:
        """Give $LATEST of every function, by name, page by page."""
        connection, stub = self._stub()
        token = ""
        while True:
            reply = await connection.unary(
                stub.ListFunctions,
                function_pb2.ListFunctionsRequest(account=self._account, page_token=token),
                idempotent=True,
            )
            for function in reply.functions:
                yield conversion.function(function)
            if not (token := reply.next_page_token):
                return

    async def update_code(
        self,
        name: str,
        code: Code,
        *,
        requirements: Path | str | Iterable[str] | None = None,
        runtime: str = "",
        revision_id: str = "",
        publish: bool = False,
        dry_run: bool = False,
        on_progress: UploadProgress | None = None,
    ) -> Function:
        """Upload code and put it in place of $LATEST's.

        Args:
            name: Name or ARN.
            code: As for `create`.
            requirements: As for `create`.
            runtime: Version that requirements are installed for.
            revision_id: When given, refused unless $LATEST has this revision.
            publish: True to publish a version as well.
            dry_run: True to check only.
            on_progress: Called with bytes sent and bytes in all.

        Raises:
            PreconditionFailedError: $LATEST has another revision.
            ResourceConflictError: Another update is in progress.
        """
        stored = await self.upload_code(code, requirements=requirements, runtime=runtime, on_progress=on_progress)
        connection, stub = self._stub()
        reply = await connection.unary(
            stub.UpdateFunctionCode,
            function_pb2.UpdateFunctionCodeRequest(
                account=self._account,
                function_name=name,
                code_sha256=stored,
                revision_id=revision_id,
                publish=publish,
                dry_run=dry_run,
            ),
        )
        return conversion.function(reply.function)

    async def update_configuration(
        self,
        name: str,
        *,
        handler: str | None = None,
        runtime: str | None = None,
        memory_mib: int | None = None,
        timeout_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        ephemeral_storage_mib: int | None = None,
        snap_start: bool | None = None,
        description: str | None = None,
        role: str | None = None,
        network: NetworkMode | str | None = None,
        vpc_config: VpcConfig | None = None,
        revision_id: str = "",
    ) -> Function:
        """Change what is given; None leaves a value as it is. `environment` replaces all variables.

        Raises:
            PreconditionFailedError: $LATEST has another revision.
            ResourceConflictError: Another update is in progress.
        """
        connection, stub = self._stub()
        variables = None if environment is None else function_pb2.EnvironmentVariables(variables=environment)
        reply = await connection.unary(
            stub.UpdateFunctionConfiguration,
            function_pb2.UpdateFunctionConfigurationRequest(
                account=self._account,
                function_name=name,
                runtime=runtime,
                role=role,
                handler=handler,
                description=description,
                timeout=conversion.duration("timeout_s", timeout_s),
                memory_mib=None if memory_mib is None else _natural("memory_mib", memory_mib),
                ephemeral_storage_mib=None
                if ephemeral_storage_mib is None
                else _natural("ephemeral_storage_mib", ephemeral_storage_mib),
                environment=variables,
                snap_start=conversion.snap_start(snap_start),
                revision_id=revision_id,
                network_mode=conversion.network_mode(network),
                vpc_config=conversion.vpc_config(vpc_config),
            ),
        )
        return conversion.function(reply.function)

    async def delete(self, name: str, *, qualifier: str = "") -> None:
        """Delete a function with its versions and aliases, or one published version."""
        connection, stub = self._stub()
        request = function_pb2.DeleteFunctionRequest(account=self._account, function_name=name, qualifier=qualifier)
        await connection.unary(stub.DeleteFunction, request)

    async def publish_version(
        self, name: str, *, description: str = "", code_sha256: str = "", revision_id: str = ""
    ) -> Function:
        """Freeze $LATEST as a numbered version; gives the newest version again when nothing changed since.

        With SnapStart it is PENDING, and takes calls when `wait_until_settled` with its number has returned. One that
        FAILED is not given again: another one is made.
        """
        connection, stub = self._stub()
        reply = await connection.unary(
            stub.PublishVersion,
            function_pb2.PublishVersionRequest(
                account=self._account,
                function_name=name,
                code_sha256=code_sha256,
                description=description,
                revision_id=revision_id,
            ),
        )
        return conversion.function(reply.function)

    async def list_versions(self, name: str) -> AsyncIterator[Function]:
        """Give $LATEST, then the published versions by number."""
        connection, stub = self._stub()
        token = ""
        while True:
            reply = await connection.unary(
                stub.ListVersionsByFunction,
                function_pb2.ListVersionsByFunctionRequest(account=self._account, function_name=name, page_token=token),
                idempotent=True,
            )
            for version in reply.versions:
                yield conversion.function(version)
            if not (token := reply.next_page_token):
                return

    async def create_alias(
        self,
        name: str,
        alias: str,
        *,
        function_version: str,
        description: str = "",
        additional_version_weights: Mapping[str, float] | None = None,
    ) -> Alias:
        """Name a version, or split its calls with one other version by weight."""
        connection, stub = self._stub()
        reply = await connection.unary(
            stub.CreateAlias,
            function_pb2.CreateAliasRequest(
                account=self._account,
                function_name=name,
                name=alias,
                function_version=function_version,
                description=description,
                additional_version_weights=additional_version_weights,
            ),
        )
        return conversion.alias(reply.alias)

    async def get_alias(self, name: str, alias: str) -> Alias:
        """Give one alias."""
        connection, stub = self._stub()
        request = function_pb2.GetAliasRequest(account=self._account, function_name=name, name=alias)
        reply = await connection.unary(stub.GetAlias, request, idempotent=True)
        return conversion.alias(reply.alias)

    async def list_aliases(self, name: str, *, function_version: str = "") -> AsyncIterator[Alias]:
        """Give the aliases by name; with `function_version` only those that point to it."""
        connection, stub = self._stub()
        token = ""
        while True:
            reply = await connection.unary(
                stub.ListAliases,
                function_pb2.ListAliasesRequest(
                    account=self._account, function_name=name, function_version=function_version, page_token=token
                ),
                idempotent=True,
            )
            for alias in reply.aliases:
                yield conversion.alias(alias)
            if not (token := reply.next_page_token):
                return

    async def update_alias(
        self,
        name: str,
        alias: str,
        *,
        function_version: str | None = None,
        description: str | None = None,
        additional_version_weights: Mapping[str, float] | None = None,
        revision_id: str = "",
    ) -> Alias:
        """Point an alias elsewhere. None leaves a value as it is; empty weights clear them."""
        connection, stub = self._stub()
        routing = (
            None
            if additional_version_weights is None
            else function_pb2.RoutingConfig(additional_version_weights=additional_version_weights)
        )
        reply = await connection.unary(
            stub.UpdateAlias,
            function_pb2.UpdateAliasRequest(
                account=self._account,
                function_name=name,
                name=alias,
                function_version=function_version,
                description=description,
                routing_config=routing,
                revision_id=revision_id,
            ),
        )
        return conversion.alias(reply.alias)

    async def delete_alias(self, name: str, alias: str) -> None:
        """Delete an alias; one that does not exist is no error."""
        connection, stub = self._stub()
        request = function_pb2.DeleteAliasRequest(account=self._account, function_name=name, name=alias)
        await connection.unary(stub.DeleteAlias, request, idempotent=True)

    async def rollback(self, name: str, *, alias: str = "") -> Alias:
        """Put an alias back on the version it pointed to before, with no weights.

        Args:
            name: Name or ARN.
            alias: May be empty when the function has exactly one.

        Raises:
            InvalidParameterError: The function has no alias, or several and none is named.
            ResourceConflictError: The alias never pointed elsewhere.
            PreconditionFailedError: Somebody changed the alias at the same time.
        """
        current = await (self.get_alias(name, alias) if alias else self._only_alias(name))
        if not current.previous_function_version:
            raise ResourceConflictError(
                f"alias {current.name!r} of {name!r} has pointed to version {current.function_version} from the "
                "beginning; there is nothing to go back to"
            )
        return await self.update_alias(
            name,
            current.name,
            function_version=current.previous_function_version,
            additional_version_weights={},
            revision_id=current.revision_id,
        )

    async def put_concurrency(self, name: str, reserved: int) -> int:
        """Reserve a part of the account's concurrency for a function, and cap the function at it. 0 blocks it."""
        connection, stub = self._stub()
        request = function_pb2.PutFunctionConcurrencyRequest(
            account=self._account,
            function_name=name,
            reserved_concurrent_executions=_natural("reserved concurrency", reserved),
        )
        reply = await connection.unary(stub.PutFunctionConcurrency, request, idempotent=True)
        return reply.reserved_concurrent_executions

    async def get_concurrency(self, name: str) -> int | None:
        """Give the reserved concurrency of a function; None when none is reserved."""
        connection, stub = self._stub()
        request = function_pb2.GetFunctionConcurrencyRequest(account=self._account, function_name=name)
        reply = await connection.unary(stub.GetFunctionConcurrency, request, idempotent=True)
        return reply.reserved_concurrent_executions if reply.HasField("reserved_concurrent_executions") else None

    async def delete_concurrency(self, name: str) -> None:
        """Remove the reservation."""
        connection, stub = self._stub()
        request = function_pb2.DeleteFunctionConcurrencyRequest(account=self._account, function_name=name)
        await connection.unary(stub.DeleteFunctionConcurrency, request, idempotent=True)

    async def wait_until_settled(
        self, name: str, *, qualifier: str = "", timeout_s: float = _SETTLE_TIMEOUT_S
    ) -> Function:
        """Return once the function, or a version of it, is ACTIVE and its last update has succeeded.

        Raises:
            ResourceConflictError: It could not be made, or its last update failed; says why.
            DeadlineExceededError: It did not settle in time.
        """
        return succeeded(await settled(self, name, timeout_s, qualifier=qualifier))

    async def upload_code(
        self,
        code: Code,
        *,
        requirements: Path | str | Iterable[str] | None = None,
        runtime: str = "",
        on_progress: UploadProgress | None = None,
    ) -> str:
        """Store a code package, off the event loop where it blocks.

        Returns:
            The package's SHA-256 in lower-case hexadecimal.

        Raises:
            InvalidCodeError: Not a sound package.
            CodeTooLargeError: Over a limit.
        """
        connection, stub = self._stub()
        if isinstance(code, CodePackage):
            return await upload.send(connection, stub, code, self._account, on_progress)
        with await asyncio.to_thread(build_package, code, requirements=requirements, runtime=runtime) as package:
            return await upload.send(connection, stub, package, self._account, on_progress)

    async def _only_alias(self, name: str) -> Alias:
        aliases = [alias async for alias in self.list_aliases(name)]
        if len(aliases) == 1:
            return aliases[0]
        if not aliases:
            raise InvalidParameterError(f"function {name!r} has no alias; a rollback needs one to put back")
        names = ", ".join(alias.name for alias in aliases)
        raise InvalidParameterError(f"function {name!r} has several aliases ({names}); say which one")

    def _stub(self) -> tuple[Connection, function_pb2_grpc.FunctionServiceStub]:
        connection = self._connect()
        if self._cached is None or self._cached[0] is not connection:
            self._cached = (connection, function_pb2_grpc.FunctionServiceStub(connection.channel))
        return self._cached


def default_runtime() -> str:
    """Give the runtime of this interpreter's version, for example `python3.11`."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _natural(described: str, value: int) -> int:
    """Refuse what the wire's unsigned field cannot carry; the server knows the real range."""
    if not 0 <= value < 2**32:
        raise InvalidParameterError(f"{described} is {value}; it cannot be negative or that large")
    return value


def _size(described: str, value: int | None) -> int:
    """Give a size as a creation's field has it, where 0 means the default: so a given 0 cannot travel."""
    if value == 0:
        raise InvalidParameterError(f"{described} is 0; give None for the default")
    return 0 if value is None else _natural(described, value)


async def settled(
    functions: Functions, name: str, timeout_s: float = _SETTLE_TIMEOUT_S, *, qualifier: str = ""
) -> Function:
    """Return once neither creation nor an update of a function or version is under way, however it ended.

    Raises:
        DeadlineExceededError: It did not settle in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pause_s = _FIRST_POLL_S
    while not (function := await functions.get(name, qualifier=qualifier)).settled:
        if loop.time() + pause_s > deadline:
            raise DeadlineExceededError(f"function {name!r} did not become active within {timeout_s:g} s")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_POLL_S)
    return function


def succeeded(function: Function) -> Function:
    """Give the function back when its creation and its last update went well.

    Raises:
        ResourceConflictError: They did not; says why.
    """
    if function.state is FunctionState.FAILED:
        raise ResourceConflictError(f"function {function.function_name!r} could not be made: {function.state_reason}")
    if function.last_update_status is LastUpdateStatus.FAILED:
        raise ResourceConflictError(
            f"the last update of function {function.function_name!r} failed: {function.last_update_status_reason}"
        )
    return function
