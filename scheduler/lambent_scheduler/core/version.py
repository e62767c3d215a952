"""What the scheduler must know of a function version to run it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

# AWS Lambda: a function of 1,769 MB has the equivalent of one vCPU, and CPU is proportional to memory.
MEMORY_MIB_PER_CPU = 1769

VersionKey: TypeAlias = tuple[str, str, str, str]
"""Account, function name, version, revision id: environments are reused within one key only."""


def cpu_millis(memory_mib: int) -> int:
    """Give the CPU share, in milli-cores, of an environment of so much memory."""
    return memory_mib * 1000 // MEMORY_MIB_PER_CPU


@dataclass(frozen=True, slots=True, eq=False)
class VersionSpec:
    """One revision of a function version. Compared by identity; `key` says what it is.

    Attributes:
        version: `$LATEST` or a number in decimal.
        revision_id: Changes with every change of code or configuration.
        code_sha256: Lower-case hexadecimal SHA-256 of the zip.
        environment_variables: The user's own; not changed after construction.
        memory_mib: Memory of one environment.
        ephemeral_storage_mib: Size of its `/tmp`.
        timeout_us: Longest run of one invocation.
        snap_start: True when environments of it are to be initialised before calls come for them.
        function_arn: ARN of the function, without a qualifier.
        partition: In [0, 255]; by account and function name.
        labels: Labels that a node must have.
        network_mode: A NetworkMode of function.proto.
        subnet_ids: Of its VpcConfig.
        security_group_ids: Of its VpcConfig.
        key: See VersionKey.
        cpu_millis: CPU share of one environment.
    """

    account: str
    function_name: str
    version: str
    revision_id: str
    runtime: str
    handler: str
    code_sha256: str
    code_size_bytes: int
    environment_variables: Mapping[str, str]
    memory_mib: int
    ephemeral_storage_mib: int
    timeout_us: int
    function_arn: str
    partition: int
    snap_start: bool = False
    labels: frozenset[tuple[str, str]] = frozenset()
    network_mode: int = 0
    subnet_ids: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    key: VersionKey = field(init=False)
    cpu_millis: int = field(init=False)

    def __post_init__(self) -> None:
        # Stored, not computed: both are read on every invocation.
        object.__setattr__(self, "key", (self.account, self.function_name, self.version, self.revision_id))
        object.__setattr__(self, "cpu_millis", cpu_millis(self.memory_mib))
