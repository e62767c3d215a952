"""Network namespaces without any link, on machines that cannot do more and whose operator accepts that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .namespaces import make_namespace

if TYPE_CHECKING:
    from .model import NetworkChoice


class LoopbackAttachment:
    """A network namespace with loopback alone.

    Attributes:
        namespace: Its descriptor; None when the sandbox makes it itself.
    """

    def __init__(self, namespace: int | None) -> None:
        self.namespace = namespace

    async def connect(self, choice: NetworkChoice) -> None:
        """Leave everything as it is: there is nothing to connect to, whatever the choice."""

    def close(self) -> None:
        """Let the namespace go with its last process. May be called again."""
        if self.namespace is not None:
            os.close(self.namespace)
            self.namespace = None


class LoopbackOnly:
    """In place of a router.

    Args:
        confined: This process is root in a user namespace alone, and could not come back from a namespace that it has
            made: sandboxes make their own.
    """

    def __init__(self, *, confined: bool = False) -> None:
        self._confined = confined

    def close(self) -> None:
        """Give nothing back."""

    async def serve_names(self) -> None:
        """There is nobody who could ask."""

    async def stop_names(self) -> None:
        """There was nobody who asked."""

    def attach(self, position: int) -> LoopbackAttachment:  # noqa: ARG002 - no address is made from it
        """Make a network namespace. Raises as `Router.attach`."""
        return LoopbackAttachment(None if self._confined else make_namespace())
