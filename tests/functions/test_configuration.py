"""Limits, defaults and messages of a configuration: AWS Lambda's."""

from __future__ import annotations

from typing import Any

import pytest

from lambent.errors import InvalidParameterError
from lambent.v1 import function_pb2 as pb
from lambent_scheduler.functions.configuration import Changes, from_create, from_update
from lambent_scheduler.functions.network import NetworkChanges, required_labels

VALID: dict[str, Any] = {
    "runtime": "python3.11",
    "handler": "app.handler",
    "timeout_ms": 3000,
    "memory_mib": 128,
    "ephemeral_storage_mib": 512,
}
PREFIX = (
    "Lambda was unable to configure your environment variables because the environment variables you have provided "
)


def message_for(**values: Any) -> str:
    with pytest.raises(InvalidParameterError) as error:
        Changes(**{**VALID, **values}).validate()
    return error.value.message


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"memory_mib": 10_240, "timeout_ms": 900_000, "ephemeral_storage_mib": 10_240},
        {"handler": "x" * 128, "description": "x" * 256, "runtime": "python3.9"},
        {"role": "arn:aws:iam::123456789012:role/some/path/name", "environment_variables": {"Ab_1": "x" * 4000}},
        {"role": "", "environment_variables": {}},
        {"network": NetworkChanges(pb.NETWORK_MODE_NONE, (), ())},
        {"network": NetworkChanges(subnet_ids=("subnet-0a",) * 16, security_group_ids=("sg-0aB",) * 5)},
    ],
)
def test_values_at_the_limits_are_valid(values: dict[str, Any]) -> None:
    """The limits belong to the range."""
    Changes(**{**VALID, **values}).validate()


@pytest.mark.parametrize(
    ("values", "member", "constraint"),
    [
        ({"memory_mib": 127}, "Value '127' at 'memorySize'", "Member must have value greater than or equal to 128"),
        ({"memory_mib": 10_241}, "Value '10241' at 'memorySize'", "Member must have value less than or equal to 10240"),
        ({"timeout_ms": 0}, "Value '0' at 'timeout'", "Member must have value greater than or equal to 1"),
        ({"timeout_ms": 901_000}, "Value '901' at 'timeout'", "Member must have value less than or equal to 900"),
        ({"timeout_ms": 1_500}, "Value '1.5' at 'timeout'", "Member must be a whole number of seconds"),
        ({"ephemeral_storage_mib": 511}, "Value '511' at 'ephemeralStorage.size'", "greater than or equal to 512"),
        ({"handler": "a b"}, "Value 'a b' at 'handler'", r"Member must satisfy regular expression pattern: [^\s]+"),
        ({"handler": ""}, "Value '' at 'handler'", r"Member must satisfy regular expression pattern: [^\s]+"),
        ({"handler": "x" * 129}, "at 'handler'", "Member must have length less than or equal to 128"),
        ({"description": "x" * 257}, "at 'description'", "Member must have length less than or equal to 256"),
        (
            {"network": NetworkChanges(subnet_ids=("subnet-1",) * 17, security_group_ids=("sg-1",))},
            "at 'vpcConfig.subnetIds'",
            "Member must have length less than or equal to 16",
        ),
        (
            {"network": NetworkChanges(subnet_ids=("subnet-1",), security_group_ids=("sg-1",) * 6)},
            "at 'vpcConfig.securityGroupIds'",
            "Member must have length less than or equal to 5",
        ),
        (
            {"network": NetworkChanges(subnet_ids=("lan",), security_group_ids=("sg-1",))},
            "Value 'lan' at 'vpcConfig.subnetIds'",
            "Member must satisfy regular expression pattern: subnet-[0-9a-z]*",
        ),
        (
            {"network": NetworkChanges(subnet_ids=("subnet-1",), security_group_ids=("sg_1",))},
            "Value 'sg_1' at 'vpcConfig.securityGroupIds'",
            "Member must satisfy regular expression pattern: sg-[0-9a-zA-Z]*",
        ),
        ({"network": NetworkChanges(9)}, "Value '9' at 'networkMode'", "enum value set"),  # type: ignore[arg-type]
        ({"role": "me"}, "Value 'me' at 'role'", "Member must satisfy regular expression pattern: arn:"),
    ],
)
def test_value_out_of_range_gets_the_message_of_aws(values: dict[str, Any], member: str, constraint: str) -> None:
    """Field in AWS's spelling, value and constraint."""
    message = message_for(**values)
    assert message.startswith("1 validation error detected: Value '")
    assert f"{member} failed to satisfy constraint: " in message
    assert constraint in message


def test_all_broken_constraints_are_named_at_once() -> None:
    """One round trip tells everything."""
    message = message_for(memory_mib=1, timeout_ms=1_000_000)
    assert message == (
        "2 validation errors detected: Value '1000' at 'timeout' failed to satisfy constraint: Member must have value "
        "less than or equal to 900; Value '1' at 'memorySize' failed to satisfy constraint: Member must have value "
        "greater than or equal to 128"
    )


@pytest.mark.parametrize(
    "runtime", ["", "python3", "python3.", "python3.011", "python2.7", "nodejs20.x", "python3.11\n"]
)
def test_runtime_must_be_a_python(runtime: str) -> None:
    """Whether a node has it is another question, asked when an environment is placed."""
    assert "at 'runtime' failed to satisfy constraint" in message_for(runtime=runtime)


def test_environment_variables_are_bounded_and_reserved_names_refused() -> None:
    """With the sentences that deployment tools show."""
    assert message_for(environment_variables={"AWS_REGION": "x", "_HANDLER": "y", "A1": "z"}) == (
        f"{PREFIX}contains reserved keys that are currently not supported for modification. "
        "Reserved keys used in this request: AWS_REGION, _HANDLER"
    )
    too_long = message_for(environment_variables={"AB": "x" * 4_096})
    assert too_long.startswith(f'{PREFIX}exceeded the 4KB limit. String measured: {{"AB":"xxx')
    assert len(too_long) < 2_000
    for name in ("1A", "A", "A-B", "", "Ä1"):
        assert "at 'environment.variables' failed to satisfy constraint: Map keys must" in message_for(
            environment_variables={name: "x"}
        )
    assert "zero byte" in message_for(environment_variables={"AB": "x\0"})


def test_create_fills_in_the_defaults_and_update_does_not() -> None:
    """Zero and empty mean the default when a function is made; absent means unchanged later."""
    created = from_create(pb.CreateFunctionRequest(runtime="python3.11", handler="a.b"))
    assert (created.memory_mib, created.ephemeral_storage_mib, created.timeout_ms) == (128, 512, 3000)
    assert from_update(pb.UpdateFunctionConfigurationRequest()) == Changes()
    explicit = from_update(pb.UpdateFunctionConfigurationRequest(memory_mib=0, description=""))
    assert (explicit.memory_mib, explicit.description) == (0, "")


@pytest.mark.parametrize(("subnets", "groups"), [(("subnet-1",), ()), ((), ("sg-1",))])
def test_subnets_and_security_groups_come_together(subnets: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """With AWS's sentence."""
    changes = NetworkChanges(subnet_ids=subnets, security_group_ids=groups)
    assert message_for(network=changes) == "SubnetIds and SecurityIds must coexist or be both empty list."


def test_a_vpc_and_no_network_exclude_each_other() -> None:
    """Neither is silently dropped."""
    changes = NetworkChanges(pb.NETWORK_MODE_NONE, ("subnet-1",), ("sg-1",))
    assert "cannot have the network mode none" in message_for(network=changes)


def test_a_network_is_written_and_changed() -> None:
    """Absent means unchanged; two empty lists end a VpcConfig, as on AWS; and the newest word counts."""
    function = pb.Function()
    from_create(pb.CreateFunctionRequest()).apply(function)
    assert function.network_mode == pb.NETWORK_MODE_EGRESS
    vpc = pb.VpcConfig(subnet_ids=["subnet-1"], security_group_ids=["sg-1"])
    from_update(pb.UpdateFunctionConfigurationRequest(vpc_config=vpc)).apply(function)
    assert function.vpc_config == vpc
    assert required_labels(function) == {("network:subnet-1", ""), ("network:sg-1", "")}
    from_update(pb.UpdateFunctionConfigurationRequest(memory_mib=256)).apply(function)
    assert function.vpc_config == vpc
    from_update(pb.UpdateFunctionConfigurationRequest(vpc_config=pb.VpcConfig())).apply(function)
    assert not function.HasField("vpc_config")
    assert required_labels(function) == frozenset()
    from_update(pb.UpdateFunctionConfigurationRequest(network_mode=pb.NETWORK_MODE_NONE)).apply(function)
    assert function.network_mode == pb.NETWORK_MODE_NONE
    from_update(pb.UpdateFunctionConfigurationRequest(vpc_config=vpc)).apply(function)
    assert (function.network_mode, function.vpc_config) == (pb.NETWORK_MODE_EGRESS, vpc)
