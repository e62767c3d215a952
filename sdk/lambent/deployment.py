"""Bringing a function to a wanted state: create it, or change only what differs."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from lambent.errors import FunctionNotFoundError, InvalidParameterError, ResourceNotFoundError
from lambent.functions import default_runtime
from lambent.packaging import CodePackage, build_package

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lambent.functions import Code, Functions, UploadProgress
    from lambent.results import Function

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
    description: str | None = None

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
            description=_changed(self.description, function.description),
        )


async def deploy(
    functions: Functions,
    name: str,
    code: Code,
    wanted: Wanted,
    *,
    requirements: Path | str | Iterable[str] | None,
    on_progress: UploadProgress | None,
) -> Function:
    """Create or update, and wait until the function is ACTIVE and nothing is in progress."""
    if isinstance(code, CodePackage):
        return await _deploy_package(functions, name, code, wanted, on_progress)
    runtime = wanted.runtime or default_runtime()
    with await asyncio.to_thread(build_package, code, requirements=requirements, runtime=runtime) as package:
        return await _deploy_package(functions, name, package, wanted, on_progress)


async def publish(functions: Functions, name: str, alias: str) -> Function:
    """Publish a version, and put the alias on it if one is named."""
    version = await functions.publish_version(name)
    if alias:
        try:
            current = await functions.get_alias(name, alias)
        except ResourceNotFoundError:  # The function is there: a version of it was just published.
            await functions.create_alias(name, alias, function_version=version.version)
        else:
            if current.function_version != version.version or current.additional_version_weights:
                await functions.update_alias(
                    name,
                    alias,
                    function_version=version.version,
                    additional_version_weights={},
                    revision_id=current.revision_id,
                )
    return version


async def _deploy_package(
    functions: Functions, name: str, package: CodePackage, wanted: Wanted, on_progress: UploadProgress | None
) -> Function:
    try:
        await functions.get(name)
    except FunctionNotFoundError:
        await _create(functions, name, package, wanted, on_progress)
        return await functions.wait_until_settled(name)
    function = await functions.wait_until_settled(name)
    if function.code_sha256 != package.sha256:
        await functions.update_code(name, package, on_progress=on_progress)
        function = await functions.wait_until_settled(name)
    changes = wanted.changes(function)
    if changes != Wanted():
        await functions.update_configuration(name, **asdict(changes))
        function = await functions.wait_until_settled(name)
    return function


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
        description=wanted.description or "",
        on_progress=on_progress,
    )


def _changed(wanted: ValueT | None, current: ValueT) -> ValueT | None:
    return None if wanted == current else wanted
