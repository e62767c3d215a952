"""What an environment needs of the node that it lives on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine

    from lambent.v1 import node_pb2
    from lambent_node_agent.code_cache import CodeCache
    from lambent_node_agent.environment.model import Lifetime
    from lambent_node_agent.environment.shell import EnvironmentShell
    from lambent_node_agent.environment.turns import Turns
    from lambent_node_agent.sandbox import SandboxHost


class EnvironmentOwner(Protocol):
    """The node: lends what environments share, and hears of them."""

    node_id: str
    sandboxes: SandboxHost
    code: CodeCache
    turns: Turns
    lifetime: Lifetime

    def spawn(self, coroutine: Coroutine[Any, Any, None], environment: EnvironmentShell) -> asyncio.Task[None]:
        """Run something for an environment; its failure ends the environment and nothing else."""

    def environment_ready(self, environment: EnvironmentShell, event: node_pb2.EnvironmentReady) -> None:
        """The environment can serve."""

    def environment_spent(self, environment: EnvironmentShell) -> None:
        """The environment has served as long as it is to."""

    def environment_stopped(self, environment: EnvironmentShell, reason: str, message: str) -> None:
        """The environment is over."""

    def environment_freed(self, environment_id: str) -> None:
        """Nothing of the environment is left, so that what it had reserved can be used again."""

    def linger(self, coroutine: Coroutine[Any, Any, None], environment: EnvironmentShell) -> None:
        """Run what may take for ever, until the node ends."""

    def call_ended(self, environment: EnvironmentShell) -> None:
        """An invocation was answered."""
