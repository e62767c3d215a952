"""What a function's configuration may say of its network: AWS Lambda's VpcConfig, and a mode of our own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lambent.errors import InvalidParameterError
from lambent.v1 import function_pb2

if TYPE_CHECKING:
    from lambent_scheduler.functions.violations import Violations

# AWS Lambda API reference, VpcConfig.
SUBNETS_LIMIT: Final = 16
SECURITY_GROUPS_LIMIT: Final = 5
SUBNET_PATTERN: Final = r"subnet-[0-9a-z]*"
SECURITY_GROUP_PATTERN: Final = r"sg-[0-9a-zA-Z]*"
ID_LIMIT: Final = 1_024

_MODES: Final = (
    function_pb2.NETWORK_MODE_UNSPECIFIED,
    function_pb2.NETWORK_MODE_NONE,
    function_pb2.NETWORK_MODE_EGRESS,
)


@dataclass(frozen=True, slots=True)
class NetworkChanges:
    """New values; None where the old one stays.

    Attributes:
        mode: A `NetworkMode`.
        subnet_ids: All subnets; the security groups are given with them.
        security_group_ids: All security groups.
    """

    mode: function_pb2.NetworkMode.ValueType | None = None
    subnet_ids: tuple[str, ...] | None = None
    security_group_ids: tuple[str, ...] | None = None

    def note_violations(self, violations: Violations) -> None:
        """Note every value that breaks a constraint."""
        if self.mode is not None and self.mode not in _MODES:
            violations.add("networkMode", self.mode, "Member must satisfy enum value set: [0, 1, 2]")
        _note_ids(violations, "vpcConfig.subnetIds", self.subnet_ids, SUBNETS_LIMIT, SUBNET_PATTERN)
        _note_ids(
            violations,
            "vpcConfig.securityGroupIds",
            self.security_group_ids,
            SECURITY_GROUPS_LIMIT,
            SECURITY_GROUP_PATTERN,
        )

    def validate(self) -> None:
        """Check what the values mean together.

        Raises:
            InvalidParameterError: There are subnets without security groups or the reverse, or both and no network.
        """
        if bool(self.subnet_ids) != bool(self.security_group_ids):
            raise InvalidParameterError("SubnetIds and SecurityIds must coexist or be both empty list.")
        if self.subnet_ids and self.mode == function_pb2.NETWORK_MODE_NONE:
            raise InvalidParameterError("A function with a VpcConfig cannot have the network mode none.")

    def apply(self, function: function_pb2.Function) -> None:
        """Write the values that are given into a function; the last word between mode and VpcConfig is the new one."""
        if self.mode is not None:
            function.network_mode = self.mode or function_pb2.NETWORK_MODE_EGRESS
            if self.mode == function_pb2.NETWORK_MODE_NONE:
                function.ClearField("vpc_config")
        if self.subnet_ids is None or self.security_group_ids is None:
            return
        function.ClearField("vpc_config")
        if self.subnet_ids:
            function.vpc_config.subnet_ids.extend(self.subnet_ids)
            function.vpc_config.security_group_ids.extend(self.security_group_ids)
            function.network_mode = function_pb2.NETWORK_MODE_EGRESS


UNCHANGED: Final = NetworkChanges()


def from_create(request: function_pb2.CreateFunctionRequest) -> NetworkChanges:
    """Read a whole configuration."""
    return NetworkChanges(
        request.network_mode, tuple(request.vpc_config.subnet_ids), tuple(request.vpc_config.security_group_ids)
    )


def from_update(request: function_pb2.UpdateFunctionConfigurationRequest) -> NetworkChanges:
    """Read the fields that a request sets."""
    mode = request.network_mode if request.HasField("network_mode") else None
    if not request.HasField("vpc_config"):
        return NetworkChanges(mode)
    return NetworkChanges(mode, tuple(request.vpc_config.subnet_ids), tuple(request.vpc_config.security_group_ids))


def required_labels(function: function_pb2.Function) -> frozenset[tuple[str, str]]:
    """Give the labels of nodes that offer the networks of a function: see NodeRecord."""
    config = function.vpc_config
    return frozenset((f"network:{name}", "") for name in (*config.subnet_ids, *config.security_group_ids))


def _note_ids(violations: Violations, member: str, ids: tuple[str, ...] | None, most: int, pattern: str) -> None:
    if ids is None:
        return
    if len(ids) > most:
        violations.add(member, f"[{', '.join(ids)}]", f"Member must have length less than or equal to {most}")
    for one in ids:
        violations.length(member, one, 0, ID_LIMIT)
        if not re.fullmatch(pattern, one, re.ASCII):
            violations.pattern(member, one, pattern)
