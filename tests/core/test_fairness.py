"""Nobody starves: whoever waits for memory gets it in turn, even from functions whose backlog never ends."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.core.specs import RUNTIME, make_call, make_capacity, make_spec

from lambent.errors import ServiceError
from lambent_scheduler.core import Bind, Dispatcher, Fail, Limits, Start, Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from lambent_scheduler.core import Call, Environment

_RUN_S = 0.1
_START_S = 0.01


class Contest:
    """One crowded node; functions keep a number of calls in flight each, and call again as soon as one is answered."""

    def __init__(self, memory_mib: int, functions: dict[str, tuple[int, int]], seed: int) -> None:
        self.random = random.Random(seed)
        self.dispatcher = Dispatcher(Limits(cpu_overcommit=1000.0), seed)
        self.dispatcher.node_joined("n0", make_capacity(memory_mib), {}, [RUNTIME], 0.0)
        self.specs = {name: make_spec(name, memory) for name, (memory, _) in functions.items()}
        self.served: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.starts = 0
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        for name, (_, in_flight) in functions.items():
            for _ in range(in_flight):
                self._after(self.random.uniform(0, 0.5), lambda name=name: self._call(name))  # type: ignore[misc]  # bound now

    def _after(self, delay_s: float, event: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now + delay_s, self._sequence, event))

    def run(self, until_s: float) -> None:
        """Let the contest go on until a time."""
        while self._events and self._events[0][0] <= until_s:
            deadline = self.dispatcher.next_deadline()
            if deadline is not None and deadline <= self._events[0][0]:
                self.now = deadline
                self.dispatcher.tick(deadline)
            else:
                self.now, _, event = heapq.heappop(self._events)
                event()
            self._act()

    def _call(self, name: str) -> None:
        call = make_call(self.specs[name], self.now)
        try:
            environment = self.dispatcher.admit(call, None, 0, self.now)
        except ServiceError:
            self.failed[name] += 1
            self._after(0.1, lambda: self._call(name))
            return
        if environment is not None:
            self._run(call, environment)

    def _run(self, call: Call, environment: Environment) -> None:
        self._after(self.random.uniform(0.5, 1.5) * _RUN_S, lambda: self._finish(call, environment))

    def _finish(self, call: Call, environment: Environment) -> None:
        name = call.spec.function_name
        self.served[name] += 1
        following = self.dispatcher.finished(environment, self.now)
        if following is not None:
            self._run(following, environment)
        self._after(0.0, lambda: self._call(name))

    def _act(self) -> None:
        for action in self.dispatcher.take_actions():
            match action:
                case Start(environment):
                    self.starts += 1
                    self._after(_START_S, lambda id=environment.environment_id: self._ready(id))  # type: ignore[misc]  # noqa: A006
                case Stop(environment):
                    self._after(_START_S, lambda id=environment.environment_id: self._stopped(id))  # type: ignore[misc]  # noqa: A006
                case Bind(call, environment):
                    self._run(call, environment)
                case Fail(call):
                    self.failed[call.spec.function_name] += 1
                    self._after(0.1, lambda name=call.spec.function_name: self._call(name))  # type: ignore[misc]  # bound now

    def _ready(self, environment_id: str) -> None:
        self.dispatcher.ready(environment_id, self.now)

    def _stopped(self, environment_id: str) -> None:
        self.dispatcher.stopped(environment_id, refused=False, error=None, now=self.now)


@pytest.mark.parametrize("seed", range(10))
def test_a_function_gets_its_turn_beside_one_that_never_lets_go(seed: int) -> None:
    """A backlog of one function does not shut out another: after the first seconds both have about the same share."""
    contest = Contest(1024, {"flood": (128, 120), "late": (128, 60)}, seed)
    contest.run(10.0)
    assert contest.served["late"] > 0
    contest.served.clear()
    contest.run(30.0)
    share = contest.served["late"] / contest.served.total()
    assert 0.35 < share < 0.65
    assert contest.failed["late"] == 0


@pytest.mark.parametrize("seed", range(10))
def test_functions_take_turns_where_there_is_room_for_one(seed: int) -> None:
    """Three functions on a node with room for one environment are all served, and starts do not eat the time."""
    contest = Contest(128, {"a": (128, 3), "b": (128, 3), "c": (128, 3)}, seed)
    contest.run(60.0)
    assert min(contest.served.values()) > 100
    assert len(contest.served) == 3
    assert contest.starts <= 61


@pytest.mark.parametrize("seed", range(10))
def test_a_large_function_is_served_among_small_ones(seed: int) -> None:
    """Memory freed in small pieces is kept together for the large one, instead of going to the next small one."""
    small = {f"small{number}": (128, 10) for number in range(4)}
    contest = Contest(1024, {**small, "large": (512, 2)}, seed)
    contest.run(40.0)
    assert contest.served["large"] > 20
    assert min(contest.served[name] for name in small) > 20


@pytest.mark.parametrize("seed", range(10))
def test_many_functions_share_a_crowded_node(seed: int) -> None:
    """Forty functions on room for eight: each is served again and again."""
    names = {f"f{number}": (128, 2) for number in range(40)}
    contest = Contest(1024, names, seed)
    contest.run(60.0)
    assert set(contest.served) == set(names)
    assert min(contest.served.values()) > 20
    assert sum(contest.failed.values()) < contest.served.total() / 20
