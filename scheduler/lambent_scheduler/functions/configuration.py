"""What a function's configuration may hold: AWS Lambda's limits and defaults, with AWS's messages."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent.errors import InvalidParameterError
from lambent.v1 import function_pb2
from lambent_scheduler.functions import network
from lambent_scheduler.functions.network import UNCHANGED, NetworkChanges
from lambent_scheduler.functions.violations import Violations, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.duration_pb2 import Duration


# AWS Lambda quotas and defaults.
MEMORY_DEFAULT_MIB, MEMORY_LEAST_MIB, MEMORY_MOST_MIB = 128, 128, 10_240
STORAGE_DEFAULT_MIB, STORAGE_LEAST_MIB, STORAGE_MOST_MIB = 512, 512, 10_240
TIMEOUT_DEFAULT_S, TIMEOUT_LEAST_S, TIMEOUT_MOST_S = 3, 1, 900
DESCRIPTION_LIMIT = 256
HANDLER_LIMIT = 128
VARIABLES_LIMIT_BYTES = 4_096
_APPLY_ON = "Member must satisfy enum value set: [PublishedVersions, None]"
# AWS gives all of it; see `shown` for why we do not.
_MEASURED_LIMIT_BYTES = 1_024

HANDLER_PATTERN = r"[^\s]+"
VARIABLE_PATTERN = r"[a-zA-Z]([a-zA-Z0-9_])+"
ROLE_PATTERN = r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+"
# Well-formed is enough here: whether a node has the runtime is decided when an environment is placed.
RUNTIME_PATTERN = r"python3\.(0|[1-9][0-9]?)"

_HANDLER = re.compile(HANDLER_PATTERN)
_VARIABLE = re.compile(VARIABLE_PATTERN, re.ASCII)
_ROLE = re.compile(ROLE_PATTERN, re.ASCII)
_RUNTIME = re.compile(RUNTIME_PATTERN, re.ASCII)

# AWS Lambda's "reserved environment variables": the platform sets them.
RESERVED_VARIABLES = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_ACCESS_KEY_ID",
        "AWS_DEFAULT_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "AWS_REGION",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
    }
)

_VARIABLE_NAMES = (
    f"Map keys must satisfy constraint: [Member must satisfy regular expression pattern: {VARIABLE_PATTERN}]"
)
_VARIABLES_REFUSED = (
    "Lambda was unable to configure your environment variables because the environment variables you have provided "
)


@dataclass(frozen=True, slots=True)
class Changes:
    """New values of a configuration; None where the old one stays.

    Attributes:
        timeout_ms: Longest run of one invocation; a whole number of seconds is checked for.
        environment_variables: All of the user's variables.
        network: Where connections may go.
    """

    runtime: str | None = None
    role: str | None = None
    handler: str | None = None
    description: str | None = None
    timeout_ms: int | None = None
    memory_mib: int | None = None
    ephemeral_storage_mib: int | None = None
    environment_variables: Mapping[str, str] | None = None
    snap_start: function_pb2.SnapStartApplyOn.ValueType | None = None
    network: NetworkChanges = UNCHANGED

    def validate(self) -> None:
        """Check every value that is given.

        Raises:
            InvalidParameterError: With AWS's message; one error names all values that break a constraint.
        """
        violations = Violations()
        if self.snap_start is not None and self.snap_start not in function_pb2.SnapStartApplyOn.values():
            violations.add("snapStart.applyOn", self.snap_start, _APPLY_ON)
        self._texts(violations)
        self._numbers(violations)
        if self.environment_variables is not None:
            _check_variable_names(violations, self.environment_variables)
        self.network.note_violations(violations)
        violations.raise_any()
        if self.runtime is not None and not _RUNTIME.fullmatch(self.runtime):
            raise InvalidParameterError(
                f"Value {shown(self.runtime)} at 'runtime' failed to satisfy constraint: Member must satisfy "
                f"regular expression pattern: {RUNTIME_PATTERN}"
            )
        if self.environment_variables is not None:
            _check_variables(self.environment_variables)
        self.network.validate()

    def apply(self, function: function_pb2.Function) -> None:
        """Write the values that are given into a function."""
        if self.runtime is not None:
            function.runtime = self.runtime
        if self.role is not None:
            function.role = self.role
        if self.handler is not None:
            function.handler = self.handler
        if self.description is not None:
            function.description = self.description
        if self.timeout_ms is not None:
            function.timeout.FromMilliseconds(self.timeout_ms)
        if self.memory_mib is not None:
            function.memory_mib = self.memory_mib
        if self.ephemeral_storage_mib is not None:
            function.ephemeral_storage_mib = self.ephemeral_storage_mib
        if self.environment_variables is not None:
            function.environment_variables.clear()
            function.environment_variables.update(self.environment_variables)
        if self.snap_start is not None:
            function.snap_start.apply_on = self.snap_start
        self.network.apply(function)

    def _texts(self, violations: Violations) -> None:
        if self.role and not _ROLE.fullmatch(self.role):
            violations.pattern("role", self.role, ROLE_PATTERN)
        if self.handler is not None:
            violations.length("handler", self.handler, 0, HANDLER_LIMIT)
            if not _HANDLER.fullmatch(self.handler):
                violations.pattern("handler", self.handler, HANDLER_PATTERN)
        if self.description is not None:
            violations.length("description", self.description, 0, DESCRIPTION_LIMIT)

    def _numbers(self, violations: Violations) -> None:
        if self.timeout_ms is not None:
            seconds, rest_ms = divmod(self.timeout_ms, 1000)
            if rest_ms:
                violations.add("timeout", f"{self.timeout_ms / 1000:g}", "Member must be a whole number of seconds")
            else:
                violations.range("timeout", seconds, TIMEOUT_LEAST_S, TIMEOUT_MOST_S)
        if self.memory_mib is not None:
            violations.range("memorySize", self.memory_mib, MEMORY_LEAST_MIB, MEMORY_MOST_MIB)
        if self.ephemeral_storage_mib is not None:
            violations.range("ephemeralStorage.size", self.ephemeral_storage_mib, STORAGE_LEAST_MIB, STORAGE_MOST_MIB)


def from_create(request: function_pb2.CreateFunctionRequest) -> Changes:
    """Read a whole configuration; empty strings and zeros mean the default."""
    return Changes(
        runtime=request.runtime,
        role=request.role,
        handler=request.handler,
        description=request.description,
        timeout_ms=_milliseconds(request.timeout) if request.HasField("timeout") else TIMEOUT_DEFAULT_S * 1000,
        memory_mib=request.memory_mib or MEMORY_DEFAULT_MIB,
        ephemeral_storage_mib=request.ephemeral_storage_mib or STORAGE_DEFAULT_MIB,
        environment_variables=dict(request.environment_variables),
        snap_start=_apply_on(request.snap_start),
        network=network.from_create(request),
    )


def from_update(request: function_pb2.UpdateFunctionConfigurationRequest) -> Changes:
    """Read the fields that a request sets."""
    return Changes(
        runtime=request.runtime if request.HasField("runtime") else None,
        role=request.role if request.HasField("role") else None,
        handler=request.handler if request.HasField("handler") else None,
        description=request.description if request.HasField("description") else None,
        timeout_ms=_milliseconds(request.timeout) if request.HasField("timeout") else None,
        memory_mib=request.memory_mib if request.HasField("memory_mib") else None,
        ephemeral_storage_mib=request.ephemeral_storage_mib if request.HasField("ephemeral_storage_mib") else None,
        environment_variables=dict(request.environment.variables) if request.HasField("environment") else None,
        snap_start=_apply_on(request.snap_start) if request.HasField("snap_start") else None,
        network=network.from_update(request),
    )


def _apply_on(snap_start: function_pb2.SnapStart) -> function_pb2.SnapStartApplyOn.ValueType:
    return snap_start.apply_on or function_pb2.SNAP_START_APPLY_ON_NONE


def _milliseconds(duration: Duration) -> int:
    # Rounded up in size, so that half a millisecond is seen not to be whole seconds.
    return duration.seconds * 1000 + -(-duration.nanos // 1_000_000)


def _check_variable_names(violations: Violations, variables: Mapping[str, str]) -> None:
    # The reserved names that begin with an underscore break the pattern, too; they get the message about them below.
    if any(not _VARIABLE.fullmatch(name) for name in variables if name not in RESERVED_VARIABLES):
        pairs = "{" + ", ".join(f"{name}={value}" for name, value in sorted(variables.items())) + "}"
        violations.add("environment.variables", pairs, _VARIABLE_NAMES)


def _check_variables(variables: Mapping[str, str]) -> None:
    if reserved := sorted(RESERVED_VARIABLES.intersection(variables)):
        raise InvalidParameterError(
            f"{_VARIABLES_REFUSED}contains reserved keys that are currently not supported for modification. "
            f"Reserved keys used in this request: {', '.join(reserved)}"
        )
    if any("\0" in value for value in variables.values()):
        raise InvalidParameterError(f"{_VARIABLES_REFUSED}contains a zero byte, which no process can be given.")
    measured = json.dumps(dict(sorted(variables.items())), separators=(",", ":"), ensure_ascii=False)
    if len(measured.encode()) > VARIABLES_LIMIT_BYTES:
        raise InvalidParameterError(
            f"{_VARIABLES_REFUSED}exceeded the 4KB limit. String measured: {shown(measured, _MEASURED_LIMIT_BYTES)}"
        )
