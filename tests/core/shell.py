"""A shell around a dispatcher whose nodes obey at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.core.specs import RUNTIME, make_call, make_capacity

from lambent_scheduler.core import Bind, Call, Dispatcher, Environment, Limits, Start, VersionSpec

if TYPE_CHECKING:
    from collections.abc import Sequence


class Shell:
    """Drives a dispatcher whose nodes obey at once."""

    def __init__(self, limits: Limits | None = None, *, memory_mib: int = 1024, nodes: int = 1) -> None:
        self.dispatcher = Dispatcher(limits or Limits(), seed=1)
        self.now = 0.0
        for number in range(nodes):
            self.join(f"n{number}", memory_mib)

    def join(self, node_id: str, memory_mib: int = 1024, *, held: Sequence[tuple[Environment, bool]] = ()) -> None:
        """Add a node."""
        self.dispatcher.node_joined(node_id, make_capacity(memory_mib, 4000), {}, [RUNTIME], self.now, held=held)

    def wait(self, spec: VersionSpec, **options: float) -> Call:
        """Admit a call that has to wait."""
        call = make_call(spec, self.now, **options)  # type: ignore[arg-type]  # payload_bytes is an int where it is given
        assert self.dispatcher.admit(call, None, 0, self.now) is None
        return call

    def starts(self) -> list[Environment]:
        """Take the actions, which must all be starts."""
        actions = self.dispatcher.take_actions()
        assert all(isinstance(action, Start) for action in actions), actions
        return [action.environment for action in actions if isinstance(action, Start)]

    def run(self, spec: VersionSpec) -> Environment:
        """Admit a call and bring it onto a new environment."""
        call = self.wait(spec)
        (environment,) = self.starts()
        self.dispatcher.ready(environment.environment_id, self.now)
        assert self.dispatcher.take_actions() == [Bind(call, environment)]
        return environment

    def warm(self, spec: VersionSpec) -> Environment:
        """Make an idle environment."""
        environment = self.run(spec)
        assert self.dispatcher.finished(environment, self.now) is None
        return environment

    def stopped(self, environment: Environment) -> None:
        """The node says that an environment is gone, as ordered."""
        self.dispatcher.stopped(environment.environment_id, refused=False, error=None, now=self.now)
