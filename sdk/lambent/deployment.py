"""Bringing a function to a wanted state: create it, or change only what differs."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

from lambent.errors import (
    FunctionNotFoundError,
    InvalidParameterError,
    PreconditionFailedError,
    ResourceConflictError,
    ResourceNotFoundError,
    UnavailableError,
)
from lambent.functions import default_runtime, settled, succeeded
from lambent.packaging import CodePackage, build_package
from lambent.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lambent.functions import Code, Functions
    from lambent.results import Function, NetworkMode, VpcConfig
    from lambent.upload import UploadProgress

_CROSSING = RetryPolicy(attempts=10, base_s=0.02, cap_s=1.0)
"""Deployments of one function that cross: each round one of them gets its way, and who waits lets it end."""

_INIT_TIMEOUT_S = 130.0
"""Of a version with SnapStart, or its timeout where that is longer (AWS Lambda quotas)."""

_INITS = 4
"""How many in a row are waited for: three are tried, and an environment may be waited for as well."""

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Configuration that a function is to have; None leaves a value as it is."""

    handler: str | None = None
    runtime: str | None = None
    memory_mib: int | None = None
    timeout_s: float | None = None
    environment: Mapping[str, str] | None = None
    ephemeral_storage_mib: int | None = None
    snap_start: bool | None = None
    description: str | None = None
    network: NetworkMode | str | None = None
    vpc_config: VpcConfig | None = None

    def changes(self, function: Function) -> Wanted:
        """Give what differs from the function, the rest as None. Pure."""
        environment = self.environment
        return Wanted(
            handler=_changed(self.handler, function.handler),
            runtime=_changed(self.runtime, function.runtime),
            memory_mib=_changed(self.memory_mib, function.memory_mib),
            timeout_s=_changed(self.timeout_s, function.timeout_s),
            environment=None if environment is None or environment == dict(function.environment) else environment,
            ephemeral_storage_mib=_changed(self.ephemeral_storage_mib, function.ephemeral_storage_mib),
            snap_start=_changed(self.snap_start, function.snap_start),
            description=_changed(self.description, function.description),
            network=_changed(self.network, function.network),
            vpc_config=_changed(self.vpc_config, function.vpc_config),
        )


async def deploy(
    functions: Functions,
    name: str,
    code: Code,
    wanted: Wanted,
    *,
    requirements: Path | str | Iterable[str] | None,
    publish: bool,
    alias: str,
    on_progress: UploadProgress | None,
) -> Function:
    """Bring a function to a wanted state, wait until it is ACTIVE, and publish it when asked to.

    Every step compares what is there first, and every change names the revision that it is made on. So a step that met
    another deployment, or whose answer was lost, is settled by looking again.

    Returns:
        The published version, or $LATEST.

    Raises:
        ResourceConflictError: The update failed, or others change the function all the time.
        PreconditionFailedError: The same.
    """
    deploying = _Deployment(functions, name, wanted, publish=publish or bool(alias), alias=alias)
    if isinstance(code, CodePackage):
        return await deploying.run(code, on_progress)
    runtime = wanted.runtime or default_runtime()
    with await asyncio.to_thread(build_package, code, requirements=requirements, runtime=runtime) as package:
        return await deploying.run(package, on_progress)


@dataclass(frozen=True, slots=True)
class _Deployment:
    functions: Functions
    name: str
    wanted: Wanted
    publish: bool
    alias: str

    async def run(self, package: CodePackage, on_progress: UploadProgress | None) -> Function:
        looks = 1
        while True:
            try:
                function = await self._converge(package, on_progress)
                if self.publish and not function.failed:
                    function = await self._publish(function)
                break
            except (ResourceConflictError, PreconditionFailedError):
                if looks == _CROSSING.attempts:
                    raise
            except UnavailableError as error:
                if looks == _CROSSING.attempts or not error.dispatched:
                    raise
            await asyncio.sleep(_CROSSING.wait_s(looks, random.random()))  # noqa: S311 - jitter, not a secret
            looks += 1
        return succeeded(function)

    async def _converge(self, package: CodePackage, on_progress: UploadProgress | None) -> Function:
        """Create the function, or change what differs; what failed before is made anew."""
        try:
            function = await settled(self.functions, self.name)
        except FunctionNotFoundError:
            await _create(self.functions, self.name, package, self.wanted, on_progress)
            function = await settled(self.functions, self.name)
        if function.code_sha256 != package.sha256 or function.failed:
            await self.functions.update_code(
                self.name, package, revision_id=function.revision_id, on_progress=on_progress
            )
            function = await settled(self.functions, self.name)
        changes = self.wanted.changes(function)
        if changes != Wanted() and not function.failed:
            values = {field.name: getattr(changes, field.name) for field in fields(changes)}
            await self.functions.update_configuration(self.name, **values, revision_id=function.revision_id)
            function = await settled(self.functions, self.name)
        if function.code_sha256 != package.sha256:
            raise ResourceConflictError(f"function {self.name!r} was given other code in the middle of this deployment")
        return function

    async def _publish(self, function: Function) -> Function:
        """Publish this very revision, and put the alias on it if one is named and it has not FAILED."""
        version = await self.functions.publish_version(
            self.name, code_sha256=function.code_sha256, revision_id=function.revision_id
        )
        if not version.settled:
            timeout_s = _INITS * max(_INIT_TIMEOUT_S, version.timeout_s)
            version = await settled(self.functions, self.name, timeout_s, qualifier=version.version)
        if version.failed or not self.alias:
            return version
        try:
            current = await self.functions.get_alias(self.name, self.alias)
        except ResourceNotFoundError:  # The function is there: a version of it was just published.
            await self.functions.create_alias(self.name, self.alias, function_version=version.version)
            return version
        if current.function_version != version.version or current.additional_version_weights:
            await self.functions.update_alias(
                self.name,
                self.alias,
                function_version=version.version,
                additional_version_weights={},
                revision_id=current.revision_id,
            )
        return version


async def _create(
    functions: Functions, name: str, package: CodePackage, wanted: Wanted, on_progress: UploadProgress | None
) -> None:
    if not wanted.handler:
        raise InvalidParameterError(
            f"function {name!r} does not exist yet; to create it, say its handler (module.name)"
        )
    await functions.create(
        name,
        package,
        handler=wanted.handler,
        runtime=wanted.runtime or "",
        memory_mib=wanted.memory_mib,
        timeout_s=wanted.timeout_s,
        environment=wanted.environment,
        ephemeral_storage_mib=wanted.ephemeral_storage_mib,
        snap_start=bool(wanted.snap_start),
        description=wanted.description or "",
        network=wanted.network,
        vpc_config=wanted.vpc_config,
        on_progress=on_progress,
    )


def _changed(wanted: ValueT | None, current: ValueT) -> ValueT | None:
    return None if wanted == current else wanted
