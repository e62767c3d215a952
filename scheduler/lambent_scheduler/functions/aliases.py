"""Aliases as rules: names for versions, with weights. Pure; the messages are AWS Lambda's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent.errors import InvalidParameterError
from lambent.v1 import function_pb2, record_pb2
from lambent_scheduler.functions.configuration import DESCRIPTION_LIMIT
from lambent_scheduler.functions.model import not_found, require_revision
from lambent_scheduler.functions.names import (
    ALIAS_PATTERN,
    LATEST,
    QUALIFIER_LIMIT,
    VERSION_PATTERN,
    is_alias_name,
    is_version_number,
)
from lambent_scheduler.functions.violations import Violations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_WEIGHT_VALUE = (
    "Map value must satisfy constraint: [Member must have value less than or equal to 1.0, Member must have value "
    "greater than or equal to 0.0, Member must not be null]"
)
_WEIGHT_KEY = (
    "Map keys must satisfy constraint: [Member must have length less than or equal to 1024, Member must have length "
    "greater than or equal to 1, Member must satisfy regular expression pattern: [0-9]+, Member must not be null]"
)


def create(
    name: str,
    function_version: str,
    description: str,
    weights: Mapping[str, float],
    revision_id: str,
    *,
    versions: Collection[str],
    arn: Callable[[str], str],
) -> record_pb2.AliasRecord:
    """Make an alias.

    Args:
        name: Its name.
        function_version: Version that it points to.
        description: At most 256 characters.
        weights: None, or one other version with its probability.
        revision_id: That it gets.
        versions: The function's versions, `$LATEST` among them.
        arn: Gives the ARN of the function with a qualifier.

    Raises:
        InvalidParameterError: A name, version or weight is malformed, or they do not go together.
        FunctionNotFoundError: A version does not exist.
    """
    check_name(name)
    _check(function_version, description, weights, versions, arn)
    alias = function_pb2.Alias(
        name=name,
        function_version=function_version,
        description=description,
        additional_version_weights=weights,
        revision_id=revision_id,
    )
    return record_pb2.AliasRecord(alias=alias)


def update(
    record: record_pb2.AliasRecord,
    request: function_pb2.UpdateAliasRequest,
    revision_id: str,
    *,
    versions: Collection[str],
    arn: Callable[[str], str],
) -> record_pb2.AliasRecord:
    """Apply the fields that a request sets; what it pointed to before is kept for a rollback.

    Raises:
        PreconditionFailedError: The request names a revision id that is not the current one.
        InvalidParameterError, FunctionNotFoundError: As `create`.
    """
    require_revision(record.alias.revision_id, request.revision_id)
    updated = record_pb2.AliasRecord(alias=record.alias)
    alias = updated.alias
    if request.HasField("function_version"):
        alias.function_version = request.function_version
    if request.HasField("description"):
        alias.description = request.description
    if request.HasField("routing_config"):
        alias.additional_version_weights.clear()
        alias.additional_version_weights.update(request.routing_config.additional_version_weights)
    _check(alias.function_version, alias.description, alias.additional_version_weights, versions, arn)
    if alias.function_version != record.alias.function_version:
        alias.previous_function_version = record.alias.function_version
    alias.revision_id = revision_id
    return updated


def check_name(name: str) -> None:
    """Check the name of an alias.

    Raises:
        InvalidParameterError: It is empty, too long, a number, or has other characters than [A-Za-z0-9_-].
    """
    violations = Violations()
    violations.length("name", name, 1, QUALIFIER_LIMIT)
    if not is_alias_name(name[:QUALIFIER_LIMIT]):
        violations.pattern("name", name, ALIAS_PATTERN)
    violations.raise_any()


def uses(alias: function_pb2.Alias, version: str) -> bool:
    """Tell whether invocations through an alias may run a version."""
    return alias.function_version == version or version in alias.additional_version_weights


def _check(
    version: str,
    description: str,
    weights: Mapping[str, float],
    versions: Collection[str],
    arn: Callable[[str], str],
) -> None:
    if len(weights) > 1:
        raise InvalidParameterError("Number of items in AdditionalVersionWeights cannot be greater than 1")
    violations = Violations()
    if version != LATEST and not is_version_number(version):
        violations.pattern("functionVersion", version, VERSION_PATTERN)
    violations.length("description", description, 0, DESCRIPTION_LIMIT)
    for other, weight in weights.items():
        pair = f"{{{other}={weight}}}"
        if not 0.0 <= weight <= 1.0:
            violations.add("routingConfig.additionalVersionWeights", pair, _WEIGHT_VALUE)
        if not is_version_number(other) and other != LATEST:
            violations.add("routingConfig.additionalVersionWeights", pair, _WEIGHT_KEY)
    violations.raise_any()
    if version not in versions:
        raise not_found(arn(version))
    _check_weights(version, weights, versions, arn)


def _check_weights(
    version: str, weights: Mapping[str, float], versions: Collection[str], arn: Callable[[str], str]
) -> None:
    for other in weights:
        if other == version:
            raise InvalidParameterError(
                f"Invalid function version {version}. Function version {version} is already included in routing "
                "configuration."
            )
        if LATEST in (version, other):
            raise InvalidParameterError("$LATEST is not supported for an alias pointing to more than 1 version")
        if other not in versions:
            raise not_found(arn(other))
