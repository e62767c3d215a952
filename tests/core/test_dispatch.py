"""What the dispatcher decides, case by case."""

from __future__ import annotations

import pytest
from tests.core.shell import Shell
from tests.core.specs import make_call, make_spec

from lambent.errors import (
    DeadlineExceededError,
    NoCapacityError,
    NodeLostError,
    ThrottledError,
    UnavailableError,
)
from lambent_scheduler.core import (
    Bind,
    Environment,
    Fail,
    Limits,
    Phase,
    Start,
    Stop,
)


def test_a_waiting_call_takes_the_environment_that_frees_up_first() -> None:
    """Late binding: the new environment was ordered for it, but an older one is free sooner."""
    shell, spec = Shell(), make_spec()
    first = shell.run(spec)
    waiting = shell.wait(spec)
    (second,) = shell.starts()
    assert shell.dispatcher.finished(first, 1.0) is waiting
    assert waiting.environment is first
    shell.dispatcher.ready(second.environment_id, 2.0)
    assert second.phase is Phase.IDLE
    assert shell.dispatcher.cold_starts == 1


def test_the_most_recently_used_environment_is_taken() -> None:
    """So that the others can age out."""
    shell, spec = Shell(), make_spec()
    first, second = shell.run(spec), shell.run(spec)
    shell.dispatcher.finished(second, 1.0)
    shell.dispatcher.finished(first, 2.0)
    assert shell.dispatcher.admit(make_call(spec), None, 0, 3.0) is first


def test_a_call_waits_on_for_the_environment_that_is_being_made_for_it() -> None:
    """It has its capacity, and an init may take longer than anybody should wait for that; not beyond its own time."""
    shell, spec = Shell(memory_mib=128), make_spec()
    first, second = shell.wait(spec, timeout_s=25.0), shell.wait(spec)
    [environment] = shell.starts()
    shell.dispatcher.tick(10.0)
    [failed] = shell.dispatcher.take_actions()
    assert isinstance(failed, Fail)
    assert failed.call is second, "none is being made for it"
    assert shell.dispatcher.next_deadline() == 20.0
    shell.dispatcher.tick(20.0)
    assert shell.dispatcher.take_actions() == []
    shell.dispatcher.ready(environment.environment_id, 22.0)
    assert shell.dispatcher.take_actions() == [Bind(first, environment)]


def test_a_call_does_not_wait_beyond_its_own_time_for_an_init() -> None:
    """Its caller has gone by then."""
    shell, spec = Shell(memory_mib=128), make_spec()
    shell.wait(spec, timeout_s=15.0)
    shell.starts()
    shell.dispatcher.tick(10.0)
    assert shell.dispatcher.next_deadline() == 15.0
    shell.dispatcher.tick(15.0)
    [failed] = shell.dispatcher.take_actions()
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, DeadlineExceededError)


@pytest.mark.parametrize(
    ("reserved", "account_reserved", "reason"),
    [
        (2, 2, "ReservedFunctionConcurrentInvocationLimitExceeded"),
        (0, 0, "ReservedFunctionConcurrentInvocationLimitExceeded"),
        (None, 8, "ConcurrentInvocationLimitExceeded"),
    ],
)
def test_a_throttle_says_which_limit(reserved: int | None, account_reserved: int, reason: str) -> None:
    """AWS's own words, which retry code looks at."""
    shell, spec = Shell(Limits(account_concurrency=10)), make_spec()
    for _ in range(0 if reserved == 0 else 2):
        shell.dispatcher.admit(make_call(spec), reserved, account_reserved, 0.0)
    with pytest.raises(ThrottledError, match=r"^Rate Exceeded\.$") as caught:
        shell.dispatcher.admit(make_call(spec), reserved, account_reserved, 0.0)
    assert caught.value.details == {"Reason": reason}
    assert shell.dispatcher.throttles == 1


def test_a_reservation_moves_the_calls_in_flight_to_its_own_pool() -> None:
    """The others get back what the function no longer takes from them."""
    shell = Shell(Limits(account_concurrency=10), memory_mib=4096)
    for _ in range(10):
        shell.wait(make_spec("f"))
    shell.dispatcher.reservation_changed("default", "f", 5)
    with pytest.raises(ThrottledError):
        shell.dispatcher.admit(make_call(make_spec("g")), None, 5, 0.0)
    # The account's limit holds as well while the function still has more than its part.
    assert shell.dispatcher.in_flight == 10


def test_what_no_node_could_hold_is_refused_at_once() -> None:
    """The message says how much the largest node has."""
    shell = Shell(memory_mib=1024)
    with pytest.raises(NoCapacityError, match="needs 2048 MiB and the largest node has room for 1024 MiB"):
        shell.dispatcher.admit(make_call(make_spec("f", 2048)), None, 0, 0.0)
    with pytest.raises(NoCapacityError, match=r"runtime ruby3\.3 .* 1 nodes, rejected 1 for runtime"):
        shell.dispatcher.admit(make_call(make_spec("g", runtime="ruby3.3")), None, 0, 0.0)
    assert shell.dispatcher.in_flight == 0


def test_a_call_waits_for_the_first_node_of_a_cluster() -> None:
    """Scheduler and nodes start together; a call that comes in between is served."""
    shell = Shell(nodes=0)
    shell.wait(make_spec())
    assert shell.starts() == []
    shell.join("n0")
    assert len(shell.starts()) == 1


def test_a_wait_ends_with_the_right_error() -> None:
    """Out of the caller's time is not the same as out of memory, and neither was dispatched."""
    shell, spec = Shell(memory_mib=128), make_spec()
    shell.run(spec)
    patient, hasty = shell.wait(spec), shell.wait(spec, timeout_s=3.0)
    assert shell.dispatcher.next_deadline() == 3.0
    shell.dispatcher.tick(3.0)
    (failed,) = shell.dispatcher.take_actions()
    assert isinstance(failed, Fail)
    assert failed.call is hasty
    assert isinstance(failed.error, DeadlineExceededError)
    assert shell.dispatcher.next_deadline() == 10.0
    shell.dispatcher.tick(10.0)
    (failed,) = shell.dispatcher.take_actions()
    assert isinstance(failed, Fail)
    assert failed.call is patient
    assert isinstance(failed.error, NoCapacityError)
    assert "1 nodes, rejected 1 for memory" in failed.error.message
    assert not failed.error.dispatched


@pytest.mark.parametrize(
    "limits",
    [
        Limits(waiting_calls_per_function=3),
        Limits(waiting_calls=3),
        Limits(waiting_bytes_per_function=300),
        Limits(waiting_bytes=399),
    ],
)
def test_the_queue_is_bounded(limits: Limits) -> None:
    """A backlog costs no more memory than was allowed for it."""
    shell, spec = Shell(limits, memory_mib=128), make_spec()
    for _ in range(3):
        shell.wait(spec)
    with pytest.raises(NoCapacityError, match="wait already"):
        shell.dispatcher.admit(make_call(spec), None, 0, 0.0)
    assert shell.dispatcher.in_flight == 3


def test_idle_environments_stop_after_their_time() -> None:
    """Scale to zero; and the memory is free only when the node says so."""
    shell, spec = Shell(Limits(keep_alive_s=60)), make_spec()
    environment = shell.warm(spec)
    assert shell.dispatcher.next_deadline() == 60.0
    shell.dispatcher.tick(59.9)
    assert shell.dispatcher.take_actions() == []
    shell.dispatcher.tick(60.0)
    assert shell.dispatcher.take_actions() == [Stop(environment, "idle")]
    assert shell.dispatcher.nodes.node("n0").reserved.memory_mib == 128
    shell.stopped(environment)
    assert shell.dispatcher.nodes.node("n0").reserved.memory_mib == 0
    assert shell.dispatcher.next_deadline() is None


def test_the_least_recently_used_are_evicted_and_no_more_than_needed() -> None:
    """The new environment is ordered when the old ones are really gone."""
    shell = Shell(memory_mib=512)
    idle = [shell.run(make_spec(f"f{number}")) for number in range(4)]
    for moment, environment in enumerate((idle[2], idle[0], idle[3], idle[1])):
        shell.dispatcher.finished(environment, float(moment))
    shell.wait(make_spec("big", 256))
    assert shell.dispatcher.take_actions() == [
        Stop(idle[2], "evicted"),
        Stop(idle[0], "evicted"),
    ]
    shell.stopped(idle[0])
    assert shell.dispatcher.take_actions() == []
    shell.stopped(idle[2])
    (environment,) = shell.starts()
    assert environment.spec.function_name == "big"


def test_nothing_is_evicted_when_it_makes_no_room() -> None:
    """Warm environments are not thrown away for nothing."""
    shell = Shell(memory_mib=512)
    for number in range(3):
        shell.run(make_spec(f"busy{number}"))
    shell.warm(make_spec("idle"))
    shell.wait(make_spec("big", 256))
    assert shell.dispatcher.take_actions() == []


def test_a_refused_start_goes_to_another_node_and_not_back() -> None:
    """The agent is the authority on its own memory."""
    shell, spec = Shell(nodes=2), make_spec()
    shell.wait(spec)
    (first,) = shell.starts()
    shell.dispatcher.stopped(first.environment_id, refused=True, error=None, now=0.0)
    (second,) = shell.starts()
    assert second.node_id != first.node_id
    shell.dispatcher.stopped(second.environment_id, refused=True, error=None, now=0.5)
    assert shell.starts() == []
    shell.dispatcher.tick(1.0)
    (third,) = shell.starts()
    assert third.node_id == first.node_id


def test_starts_that_fail_end_their_call_and_no_other() -> None:
    """A version that cannot start is not started for ever."""
    shell, spec = Shell(), make_spec()
    calls = [shell.wait(spec) for _ in range(2)]
    starts = 0
    failed = []
    for _ in range(20):
        for action in shell.dispatcher.take_actions():
            if isinstance(action, Start):
                starts += 1
                error = UnavailableError("no sandbox")
                shell.dispatcher.stopped(action.environment.environment_id, refused=False, error=error, now=0.0)
            elif isinstance(action, Fail):
                failed.append(action.call)
                assert action.error.message == "no sandbox"
    assert failed == calls
    assert starts <= 2 * Limits().start_attempts + 1
    assert shell.dispatcher.environment_count == 0


def test_calls_on_a_lost_node_fail_as_dispatched() -> None:
    """The SDK may not repeat them by itself; a call that only waited is placed elsewhere."""
    shell, spec = Shell(nodes=2), make_spec()
    environment = shell.run(spec)
    running = environment.call
    lost = NodeLostError("its lease has lapsed")
    shell.dispatcher.node_lost(environment.node_id, lost, 1.0)
    (failed,) = shell.dispatcher.take_actions()
    assert isinstance(failed, Fail)
    assert failed.call is running
    assert failed.error is lost
    assert lost.dispatched
    assert shell.dispatcher.finished(environment, 1.0) is None
    assert shell.dispatcher.in_flight == 0


def test_starts_on_a_lost_node_are_made_elsewhere() -> None:
    """Nobody notices but by the time it took."""
    shell = Shell(nodes=2)
    call = shell.wait(make_spec())
    (first,) = shell.starts()
    shell.dispatcher.node_lost(first.node_id, NodeLostError("its lease has lapsed"), 1.0)
    (second,) = shell.starts()
    assert second.node_id != first.node_id
    shell.dispatcher.ready(second.environment_id, 2.0)
    assert shell.dispatcher.take_actions() == [Bind(call, second)]


def test_an_exit_under_a_call_fails_the_call() -> None:
    """And frees its concurrency and memory."""
    shell, spec = Shell(), make_spec()
    environment = shell.run(spec)
    shell.dispatcher.stopped(environment.environment_id, refused=False, error=UnavailableError("killed"), now=1.0)
    (failed,) = shell.dispatcher.take_actions()
    assert isinstance(failed, Fail)
    assert failed.error.dispatched
    assert (shell.dispatcher.in_flight, shell.dispatcher.environment_count) == (0, 0)


def test_an_answer_that_comes_twice_counts_once() -> None:
    """A node's late word about an environment that serves nothing frees no concurrency that others hold."""
    shell, spec = Shell(), make_spec()
    environment = shell.warm(spec)
    shell.run(make_spec("g"))
    assert shell.dispatcher.finished(environment, 1.0) is None
    assert shell.dispatcher.in_flight == 1
    assert shell.dispatcher.nodes.node("n0").idle.memory_mib == 128


def test_a_cancelled_call_leaves_the_queue() -> None:
    """And the environment that was ordered for it serves the next one, or idles."""
    shell, spec = Shell(), make_spec()
    call = shell.wait(spec)
    (environment,) = shell.starts()
    assert shell.dispatcher.cancel(call, 0.0)
    assert not shell.dispatcher.cancel(call, 0.0)
    shell.dispatcher.ready(environment.environment_id, 1.0)
    assert environment.phase is Phase.IDLE
    assert shell.dispatcher.admit(make_call(spec), None, 0, 2.0) is environment
    assert shell.dispatcher.cold_starts == 1


def test_replaced_versions_stop_and_their_waiting_calls_still_run() -> None:
    """As on AWS: a call runs on the version that was current when it came."""
    shell, old, new = Shell(), make_spec(revision="1"), make_spec(revision="2")
    busy, idle = shell.run(old), shell.run(old)
    shell.dispatcher.finished(idle, 0.0)
    shell.dispatcher.retire_function("default", "f", {new.key}, "superseded", 1.0)
    assert shell.dispatcher.take_actions() == [Stop(idle, "superseded")]
    late = shell.wait(old)
    shell.dispatcher.take_actions()
    assert shell.dispatcher.finished(busy, 2.0) is late
    assert shell.dispatcher.finished(busy, 3.0) is None
    assert Stop(busy, "superseded") in shell.dispatcher.take_actions()


def test_a_deleted_function_is_forgotten() -> None:
    """Names come and go; the scheduler's memory does not grow with them."""
    shell, spec = Shell(), make_spec()
    environment = shell.warm(spec)
    shell.dispatcher.retire_function("default", "f", (), "deleted", 1.0)
    shell.stopped(environment)
    assert list(shell.dispatcher.function_counts()) == []


def test_adopted_environments_serve() -> None:
    """A new scheduler takes over warm environments; a busy one serves when its old call is over."""
    shell, spec = Shell(nodes=0), make_spec()
    idle, busy = Environment("e1", spec, "n0", served=1), Environment("e2", spec, "n0", served=1)
    shell.join("n0", held=[(idle, False), (busy, True)])
    assert shell.dispatcher.admit(make_call(spec), None, 0, 1.0) is idle
    waiting = shell.wait(spec)
    shell.dispatcher.take_actions()
    shell.dispatcher.ready("e2", 2.0)
    assert shell.dispatcher.take_actions() == [Bind(waiting, busy)]
    assert (shell.dispatcher.cold_starts, shell.dispatcher.in_flight) == (0, 2)


def test_what_a_node_holds_is_counted_before_its_room_is_given_away() -> None:
    """Calls that wait when a node comes back take its warm environments, and no new ones beside them."""
    shell, spec = Shell(nodes=0), make_spec()
    first, second = shell.wait(spec), shell.wait(spec)
    held = [Environment("e1", spec, "n0", served=1), Environment("e2", spec, "n0", served=1)]
    shell.join("n0", 256, held=[(held[0], False), (held[1], True)])
    assert shell.dispatcher.take_actions() == [Bind(first, held[0])]
    shell.dispatcher.ready("e2", 1.0)
    assert shell.dispatcher.take_actions() == [Bind(second, held[1])]


def test_a_call_that_its_environment_would_not_take_is_served_next() -> None:
    """An environment that dies costs the queue nothing: it gets no other call, and the call no other's place."""
    shell, spec = Shell(), make_spec()
    dying, idle = shell.run(spec), shell.warm(spec)
    call = dying.call
    assert call is not None
    assert shell.dispatcher.returned(dying, 1.0)
    assert shell.dispatcher.take_actions() == [Stop(dying, "exited"), Bind(call, idle)]
    assert not shell.dispatcher.returned(dying, 1.0)
    later = shell.wait(spec)
    assert shell.dispatcher.returned(idle, 2.0)
    actions = shell.dispatcher.take_actions()
    assert [type(action) for action in actions] == [Start, Stop, Start]
    new = actions[0].environment  # type: ignore[union-attr]  # it is a Start
    shell.dispatcher.ready(new.environment_id, 3.0)
    assert shell.dispatcher.take_actions() == [Bind(call, new)]
    assert not shell.dispatcher.returned(new, 3.0)
    assert later.waiting
    assert shell.dispatcher.in_flight == 1


def test_a_spent_environment_is_stopped_when_it_is_idle() -> None:
    """After its call, though others wait: they get a new one. Nothing is sent to it any more."""
    shell, spec = Shell(), make_spec()
    alone = shell.run(spec)
    shell.dispatcher.spent(alone.environment_id, 0.0)
    assert shell.dispatcher.finished(alone, 0.0) is None
    assert shell.dispatcher.take_actions() == [Stop(alone, "recycled")]
    shell = Shell(memory_mib=256)
    busy, idle = shell.run(spec), shell.run(spec)
    shell.dispatcher.finished(idle, 1.0)
    shell.dispatcher.spent(idle.environment_id, 1.0)
    assert shell.dispatcher.take_actions() == [Stop(idle, "recycled")]
    shell.dispatcher.spent(busy.environment_id, 1.0)
    shell.dispatcher.spent("unknown", 1.0)
    waiting = shell.wait(spec)
    assert shell.dispatcher.finished(busy, 2.0) is None
    assert shell.dispatcher.take_actions() == [Stop(busy, "recycled")]
    shell.stopped(idle)
    (new,) = shell.starts()
    shell.dispatcher.ready(new.environment_id, 3.0)
    assert shell.dispatcher.take_actions() == [Bind(waiting, new)]


def test_a_scheduler_that_stops_ends_the_calls_that_wait() -> None:
    """They have not run: their callers can go to another scheduler at once."""
    shell, spec = Shell(memory_mib=128), make_spec()
    running, waiting = shell.run(spec), shell.wait(spec)
    error = UnavailableError("stopping")
    shell.dispatcher.close(error)
    assert Fail(waiting, error) in shell.dispatcher.take_actions()
    assert running.call is not None
    assert shell.dispatcher.in_flight == 1


def test_a_draining_node_empties() -> None:
    """Idle environments stop at once, busy ones after their call, and waiting calls go elsewhere."""
    shell, spec = Shell(memory_mib=256), make_spec()
    busy, idle = shell.run(spec), shell.run(spec)
    shell.dispatcher.finished(idle, 0.0)
    shell.dispatcher.node_changed("n0", 1.0, draining=True)
    assert shell.dispatcher.take_actions() == [Stop(idle, "shutdown")]
    shell.join("n1")
    shell.wait(spec)
    (elsewhere,) = shell.starts()
    assert elsewhere.node_id == "n1"
    assert shell.dispatcher.finished(busy, 2.0) is None
    assert shell.dispatcher.take_actions() == [Stop(busy, "shutdown")]


def test_memory_of_other_schedulers_is_left_to_them() -> None:
    """What a node reports beyond our own reservations is not ours to give."""
    shell, spec = Shell(memory_mib=512), make_spec()
    shell.run(spec)
    shell.dispatcher.node_changed("n0", 1.0, reserved={"memory_mib": 128 + 256})
    shell.wait(spec)
    assert len(shell.starts()) == 1
    shell.wait(spec)
    assert shell.starts() == []
    shell.dispatcher.node_changed("n0", 2.0, reserved={"memory_mib": 256})
    assert len(shell.starts()) == 1


def test_starts_and_stops_under_way_are_not_taken_for_somebody_else_s() -> None:
    """A node's word lags behind its orders: what is about to begin or end there may be in it or not."""
    shell, spec = Shell(memory_mib=768), make_spec()
    idle = shell.warm(spec)
    shell.dispatcher.node_changed("n0", 1.0, reserved={"memory_mib": 128 + 256})
    shell.dispatcher.tick(1000.0)
    assert shell.dispatcher.take_actions() == [Stop(idle, "idle")]
    node = shell.dispatcher.nodes.node("n0")
    for word_mib in (128 + 256, 256, 128 + 256):
        shell.dispatcher.node_changed("n0", 1001.0, reserved={"memory_mib": word_mib})
        assert node.foreign.memory_mib == 256
    shell.stopped(idle)
    shell.wait(spec)
    (starting,) = shell.starts()
    for word_mib in (256, 128 + 256):
        shell.dispatcher.node_changed("n0", 1002.0, reserved={"memory_mib": word_mib})
        assert node.foreign.memory_mib == 256
    shell.dispatcher.ready(starting.environment_id, 1003.0)
    shell.dispatcher.node_changed("n0", 1003.0, reserved={"memory_mib": 128})
    assert node.foreign.memory_mib == 0


def test_a_burst_starts_no_more_environments_than_calls() -> None:
    """The commonest bug of this field is a herd of environments for one burst."""
    shell, spec = Shell(memory_mib=8192), make_spec()
    for _ in range(50):
        shell.wait(spec)
    assert len(shell.starts()) == 50
    shell.dispatcher.tick(0.1)
    assert shell.starts() == []
