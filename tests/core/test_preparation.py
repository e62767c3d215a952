"""What is initialised before calls come for it, case by case."""

from __future__ import annotations

from tests.core.shell import Shell
from tests.core.specs import make_call, make_spec

from lambent.errors import NoCapacityError, UnavailableError
from lambent_scheduler.core import Bind, Environment, Limits, Phase, Prepared, Start, Stop, VersionSpec

INIT_ERROR = UnavailableError("its init failed")


def keep(shell: Shell, *specs: VersionSpec) -> None:
    """Keep these versions of function `f`."""
    shell.dispatcher.keep_prepared("default", "f", specs, shell.now)


def starts(shell: Shell) -> list[Environment]:
    """Let a tick pass, of which all that follows must be starts."""
    shell.dispatcher.tick(shell.now)
    return shell.starts()


def prepare(shell: Shell, spec: VersionSpec) -> Environment:
    """Keep a version, and have its environment ready."""
    keep(shell, spec)
    (environment,) = starts(shell)
    shell.dispatcher.ready(environment.environment_id, shell.now)
    assert shell.dispatcher.take_actions() == [Prepared(spec, None)]
    return environment


def tick(shell: Shell) -> list[object]:
    """Let time come to what is next, and give what is to be done then."""
    deadline = shell.dispatcher.next_deadline()
    assert deadline is not None
    shell.now = max(shell.now, deadline)
    shell.dispatcher.tick(shell.now)
    return list(shell.dispatcher.take_actions())


def test_a_kept_version_has_an_environment_before_its_first_call() -> None:
    """The call is bound at once, it is a cold start, and the next one is on its way."""
    shell, spec = Shell(), make_spec(snap_start=True)
    environment = prepare(shell, spec)
    assert environment.phase is Phase.PREPARED
    assert shell.dispatcher.admit(make_call(spec), None, 0, 1.0) is environment
    assert shell.dispatcher.cold_starts == 1
    (following,) = starts(shell)
    assert following is not environment


def test_an_idle_environment_is_taken_before_a_prepared_one() -> None:
    """What is warm costs nothing to use again."""
    shell, spec = Shell(), make_spec(snap_start=True)
    first = prepare(shell, spec)
    shell.dispatcher.admit(make_call(spec), None, 0, 0.0)
    (second,) = starts(shell)
    shell.dispatcher.ready(second.environment_id, 0.0)
    assert shell.dispatcher.finished(first, 1.0) is None
    assert shell.dispatcher.admit(make_call(spec), None, 0, 2.0) is first
    assert second.phase is Phase.PREPARED


def test_calls_that_find_none_raise_the_number_up_to_a_bound() -> None:
    """A burst that comes again finds as many as it needed, and no version takes all memory for it."""
    shell, spec = Shell(Limits(prepared_most=4), memory_mib=8192), make_spec(snap_start=True)
    for _ in range(10):
        shell.wait(spec)
    for environment in shell.starts():
        shell.dispatcher.ready(environment.environment_id, 0.0)
    shell.dispatcher.take_actions()
    prepared = []
    while started := starts(shell):
        assert len(started) <= 2, "an init takes a whole CPU"
        for environment in started:
            prepared.append(environment)
            shell.dispatcher.ready(environment.environment_id, 0.0)
    assert len(prepared) == 4


def test_what_is_not_needed_goes_until_one_is_left() -> None:
    """Memory comes back after a burst, and the first call of the next day still finds one."""
    shell, spec = Shell(Limits(keep_alive_s=10.0)), make_spec(snap_start=True)
    keep(shell, spec)
    for _ in range(3):
        shell.wait(spec)
    environments = shell.starts()
    for environment in environments:
        shell.dispatcher.ready(environment.environment_id, 0.0)
    while started := [action.environment for action in tick(shell) if isinstance(action, Start)]:
        for environment in started:
            shell.dispatcher.ready(environment.environment_id, 0.0)
            environments.append(environment)
    assert len(environments) == 7
    for environment in environments[:3]:
        shell.dispatcher.finished(environment, 0.0)
    while shell.dispatcher.environment_count > 1:
        for action in tick(shell):
            assert isinstance(action, Stop)
            shell.stopped(action.environment)
    for _ in range(10):
        assert tick(shell) == []
    assert shell.dispatcher.environment_count == 1


def test_a_version_that_is_not_kept_any_more_ends_like_any_other() -> None:
    """An old version that nobody calls holds no memory."""
    shell, spec = Shell(), make_spec(snap_start=True)
    environment = prepare(shell, spec)
    keep(shell)
    actions = tick(shell) or tick(shell)
    assert actions == [Stop(environment, "idle")]
    shell.stopped(environment)
    assert shell.dispatcher.environment_count == 0
    assert shell.dispatcher.next_deadline() is None


def test_a_prepared_environment_makes_way_for_a_call() -> None:
    """It has memory that nobody needs, and gets it back when nobody needs it again."""
    shell, spec, other = Shell(memory_mib=128), make_spec(snap_start=True), make_spec("g")
    prepared = prepare(shell, spec)
    call = shell.dispatcher.admit(make_call(other), None, 0, 0.0)
    assert call is None
    assert shell.dispatcher.take_actions() == [Stop(prepared, "evicted")]
    shell.stopped(prepared)
    (environment,) = shell.starts()
    assert environment.spec is other
    shell.dispatcher.ready(environment.environment_id, 0.0)
    shell.dispatcher.take_actions()
    shell.dispatcher.node_lost("n0", UnavailableError("lost"), 1.0)
    shell.dispatcher.take_actions()
    shell.join("n1", 128)
    actions = tick(shell) or tick(shell)
    assert [action.environment.spec for action in actions if isinstance(action, Start)] == [spec]


def test_nothing_is_prepared_while_calls_wait_for_memory() -> None:
    """Calls come first."""
    shell, spec, other = Shell(memory_mib=256), make_spec(snap_start=True), make_spec("g", 256)
    small = make_spec("h")
    shell.run(small)
    shell.wait(other)
    keep(shell, spec)
    assert starts(shell) == []


def test_a_version_that_finds_no_room_says_so_after_a_second_look() -> None:
    """Who publishes is not kept waiting for memory that may never come."""
    shell, spec = Shell(nodes=0), make_spec(snap_start=True)
    keep(shell, spec)
    assert tick(shell) == []
    (action,) = tick(shell)
    assert isinstance(action, Prepared)
    assert isinstance(action.error, NoCapacityError)
    assert shell.now == Limits().prepare_retry_s
    shell.join("n0")
    assert [type(action) for action in tick(shell)] == [Start]


def test_each_version_has_its_own_second_look_for_room() -> None:
    """One that is published later is not told of want of memory sooner."""
    shell, first, second = Shell(nodes=0), make_spec(snap_start=True), make_spec("g", snap_start=True)
    keep(shell, first)
    assert tick(shell) == []
    shell.now = 9.0
    shell.dispatcher.keep_prepared("default", "g", [second], shell.now)
    assert tick(shell) == []
    for spec, at in ((first, 10.0), (second, 19.0)):
        (action,) = tick(shell)
        assert isinstance(action, Prepared)
        assert (action.spec, shell.now) == (spec, at)


def test_room_that_is_lost_long_after_is_looked_for_twice_as_well() -> None:
    """A node may be back within seconds."""
    shell, spec = Shell(), make_spec(snap_start=True)
    keep(shell, spec)
    assert len(starts(shell)) == 1
    shell.now = 100.0
    shell.dispatcher.node_lost("n0", UnavailableError("lost"), shell.now)
    assert tick(shell) == []
    shell.join("n1")
    assert [type(action) for action in tick(shell)] == [Start]


def test_an_environment_that_cannot_be_made_says_nothing_of_the_code() -> None:
    """Its node or the store may be at fault: the version is no failure, and its first calls start as others do."""
    shell, spec = Shell(Limits(start_attempts=3)), make_spec(snap_start=True)
    keep(shell, spec)
    for _ in range(3):
        (environment,) = starts(shell)
        error = UnavailableError("the code cannot be had")
        shell.dispatcher.stopped(environment.environment_id, refused=False, error=error, now=shell.now)
    (told,) = shell.dispatcher.take_actions()
    assert isinstance(told, Prepared)
    assert isinstance(told.error, NoCapacityError)
    assert "the code cannot be had" in told.error.message


def test_an_init_that_fails_is_tried_three_times() -> None:
    """Once may be chance; for ever would take a CPU."""
    shell, spec = Shell(Limits(start_attempts=3)), make_spec(snap_start=True)
    keep(shell, spec)
    for _ in range(3):
        (environment,) = starts(shell)
        shell.dispatcher.ready(environment.environment_id, shell.now, INIT_ERROR)
        *told, stop = shell.dispatcher.take_actions()
        assert stop == Stop(environment, "failed")
        shell.stopped(environment)
    assert told == [Prepared(spec, INIT_ERROR)]
    assert starts(shell) == []
    keep(shell, spec)
    assert len(starts(shell)) == 1, "published anew, it is tried again"


def test_a_failed_init_is_the_callers_to_see_when_one_waits() -> None:
    """The call makes the runtime load the handler again, and answers with the function's own error."""
    shell, spec = Shell(), make_spec(snap_start=True)
    call = shell.wait(spec)
    (environment,) = shell.starts()
    shell.dispatcher.ready(environment.environment_id, 0.0, INIT_ERROR)
    assert shell.dispatcher.take_actions() == [Bind(call, environment)]


def test_a_prepared_environment_of_what_was_replaced_stops() -> None:
    """Nothing of a deleted function runs on."""
    shell, spec = Shell(), make_spec(snap_start=True)
    environment = prepare(shell, spec)
    shell.dispatcher.retire_function("default", "f", (), "deleted", 1.0)
    assert shell.dispatcher.take_actions() == [Stop(environment, "deleted")]
    shell.stopped(environment)
    assert starts(shell) == []
    assert list(shell.dispatcher.function_counts()) == []


def test_what_is_being_initialised_of_a_deleted_function_stops_at_once() -> None:
    """An init may take minutes, in which it holds memory and a CPU."""
    shell, spec = Shell(), make_spec(snap_start=True)
    keep(shell, spec)
    (environment,) = starts(shell)
    shell.dispatcher.retire_function("default", "f", (), "deleted", 1.0)
    assert shell.dispatcher.take_actions() == [Stop(environment, "deleted")]
    shell.dispatcher.ready(environment.environment_id, 2.0)
    shell.stopped(environment)
    assert starts(shell) == []
    assert list(shell.dispatcher.function_counts()) == []


def test_a_prepared_environment_that_is_adopted_stays_prepared() -> None:
    """A scheduler that takes over makes none beside it."""
    shell, spec = Shell(nodes=0), make_spec(snap_start=True)
    environment = Environment("e1", spec, "n0")
    shell.join("n0", held=[(environment, False)])
    keep(shell, spec)
    assert shell.dispatcher.take_actions() == [Prepared(spec, None)]
    assert shell.dispatcher.admit(make_call(spec), None, 0, 1.0) is environment


def test_a_node_that_drains_loses_its_prepared_environments_to_another() -> None:
    """Draining ends them as it ends idle ones."""
    shell, spec = Shell(nodes=2), make_spec(snap_start=True)
    environment = prepare(shell, spec)
    shell.dispatcher.node_changed(environment.node_id, 1.0, draining=True)
    assert shell.dispatcher.take_actions() == [Stop(environment, "shutdown")]
    shell.stopped(environment)
    (following,) = starts(shell)
    assert following.node_id != environment.node_id
