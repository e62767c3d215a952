"""What an agent is told at its start: read once, checked, and never changed."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lambent.errors import InvalidParameterError
from lambent_node_agent import isolation
from lambent_node_agent.sandbox import NETWORK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lambent_common.credentials import Credentials
    from lambent_node_agent.environment.model import Lifetime
    from lambent_node_agent.network import NetworkSettings
    from lambent_node_agent.sandbox import Confinement

# They become parts of etcd's keys and of directory and cgroup names.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_WILDCARDS: Final = frozenset({"0.0.0.0", "[::]", ""})  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Configuration of one node agent.

    Attributes:
        node_id: Unique in the cluster.
        etcd: URLs of the etcd members.
        nats: URLs of the NATS members.
        credentials: Token of the cluster, and what etcd and NATS ask for.
        insecure: True to take orders from whoever connects when the credentials have no token.
        listen: host:port of the gRPC server; port 0 picks a free one.
        state_dir: Where code and mount points are kept; the agent's own.
        memory_mib: Memory for environments.
        cpus: CPUs for environments.
        disk_mib: What the /tmp of all environments together may hold, in MiB.
        labels: The operator's labels.
        owner: Mark in the names of cgroups and directories; what bears the mark of a dead agent is swept.
        pool_size: Ready-made sandboxes that are at least kept for each runtime.
        drain_s: How long running invocations may take after the order to stop.
        allow_missing: Protections without which functions may run all the same.
        lifetime: How long environments are to serve.
        require_isolation: Level of isolation below which none may run, whatever is allowed.
        lock_dir: Where the agents of this machine, or of one user, agree on owner marks and UIDs.
        confinement: What an agent without root has; None as root.
        network: Where functions may connect to.
        merge_memory: Whether the kernel is to merge equal pages of functions.
    """

    node_id: str
    etcd: tuple[str, ...]
    nats: tuple[str, ...]
    credentials: Credentials
    insecure: bool
    listen: str
    state_dir: Path
    memory_mib: int
    cpus: float
    disk_mib: int
    labels: Mapping[str, str]
    owner: str
    pool_size: int
    drain_s: float
    allow_missing: frozenset[str]
    lifetime: Lifetime
    require_isolation: isolation.Level
    lock_dir: Path
    confinement: Confinement | None
    network: NetworkSettings
    merge_memory: bool

    def __post_init__(self) -> None:
        """Check what the command line cannot.

        Raises:
            InvalidParameterError: A name has characters that names of cgroups and keys may not have, or there is no
                token and nobody has said that none is wanted.
        """
        if not self.credentials.token and not self.insecure:
            raise InvalidParameterError(
                "without a token the agent would run, as root, what anybody sends who can reach its port: give "
                "--credentials with the cluster's token, or accept it with --insecure"
            )
        for flag, value in (("--id", self.node_id), ("--owner", self.owner)):
            if not _NAME.fullmatch(value):
                raise InvalidParameterError(f"{flag} {value!r} is not 1 to 63 letters, digits, '-' and '_'")

    def address(self, port: int) -> str:
        """host:port under which schedulers find this agent, once it listens on a port."""
        host = self.listen.rpartition(":")[0]
        return f"{socket.gethostname() if host in _WILDCARDS else host}:{port}"


def parse_labels(labels: Sequence[str]) -> dict[str, str]:
    """Read `k=v` texts.

    Raises:
        InvalidParameterError: A text has no `=`, nothing before it, or a name that the agent gives itself.
    """
    parsed: dict[str, str] = {}
    for label in labels:
        key, separator, value = label.partition("=")
        if not key or not separator:
            raise InvalidParameterError(f"--label {label!r} is not of the form key=value")
        if key.startswith(isolation.RESERVED_LABELS):
            raise InvalidParameterError(
                f"--label {label!r}: what begins with {isolation.RESERVED_LABELS} is the agent's"
            )
        parsed[key] = value
    return parsed


def parse_protections(names: str) -> frozenset[str]:
    """Read names of protections, or of the network, between commas.

    Raises:
        InvalidParameterError: A name is of nothing that is needed.
    """
    parsed = frozenset(filter(None, names.split(",")))
    needed = [*(protection.value for protection in isolation.NEEDED), NETWORK]
    if unknown := sorted(parsed.difference(needed)):
        raise InvalidParameterError(f"--allow-missing {unknown[0]!r} is nothing that is needed: {', '.join(needed)}")
    return parsed
