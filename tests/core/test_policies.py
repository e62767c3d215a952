"""What each policy makes of a function's calls: by its rule alone, and by the dispatcher that goes by it."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.core.shell import Shell
from tests.core.specs import make_call, make_spec

from lambent.errors import InvalidParameterError
from lambent_scheduler.core import Environment, Limits, Start, Stop, VersionSpec, policies
from lambent_scheduler.core.cold_start import EnvironmentStart
from lambent_scheduler.core.policies import LEAST_PREWARM_S, KeepAlive, Windows
from lambent_scheduler.core.policies.idle_times import BIN_S, BINS
from lambent_scheduler.core.policies.interfaces import LINGER_S

KEEP_ALIVE_S = 600.0
MINUTE_S = 60.0


def told(*idle_s: float, name: str = "histogram") -> KeepAlive:
    """A policy that has seen these idle times."""
    policy = policies.keep_alive(name)(KEEP_ALIVE_S)
    for one in idle_s:
        policy.wanted_again(one)
    return policy


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(keep_alive="fast"), "keep-alive policy 'fast'; there are fixed, histogram, break-even"),
        (Limits(eviction=""), "eviction policy ''; there are least-recently-used, greedy-dual"),
    ],
)
def test_an_unknown_policy_is_refused_with_those_there_are(limits: Limits, said: str) -> None:
    """Before anything runs."""
    with pytest.raises(InvalidParameterError, match=said):
        Shell(limits)


# The histogram's rule.


def test_fixed_goes_by_the_operator_alone() -> None:
    """Whatever the calls are like, and nothing is started ahead of them."""
    policy = policies.keep_alive("fixed")(KEEP_ALIVE_S)
    assert policy.windows() == (KEEP_ALIVE_S, math.inf, KEEP_ALIVE_S)
    assert not policy.learns


@pytest.mark.parametrize("idle_s", [(), (5 * MINUTE_S,) * 9])
def test_few_idle_times_say_nothing(idle_s: tuple[float, ...]) -> None:
    """Then the operator's keep-alive holds."""
    assert told(*idle_s).windows() == (KEEP_ALIVE_S, math.inf, KEEP_ALIVE_S)


def test_idle_times_of_all_lengths_say_nothing() -> None:
    """A histogram without a peak."""
    assert told(*(number * BIN_S for number in range(BINS))).windows() == (KEEP_ALIVE_S, math.inf, KEEP_ALIVE_S)


def test_short_idle_times_keep_for_the_longest_of_them() -> None:
    """All below a minute: the upper edge of that bin, and a tenth more."""
    assert told(*[1.0] * 100).windows() == (pytest.approx(66.0), math.inf, pytest.approx(66.0))


def test_one_idle_time_in_a_hundred_is_not_waited_for() -> None:
    """What the last percent would take of memory serves few calls."""
    assert told(*[1.0] * 99, 3600.0).windows().stay_s == pytest.approx(66.0)
    assert told(*[1.0] * 98, 3600.0, 3600.0).windows().stay_s == pytest.approx(61 * 66.0)


def test_regular_calls_are_expected() -> None:
    """Every half hour: an environment goes, and another one is there shortly before and after."""
    windows = told(*[30 * MINUTE_S] * 12).windows()
    assert windows == (LINGER_S, pytest.approx(27 * MINUTE_S), pytest.approx(34.1 * MINUTE_S))


def test_calls_that_are_rarer_than_the_histogram_reaches_are_expected_as_the_last_ones_came() -> None:
    """Every six hours, more or less."""
    windows = told(*[6 * 3600.0, 6.5 * 3600.0] * 4).windows()
    assert windows == (LINGER_S, pytest.approx(5.4 * 3600), pytest.approx(7.15 * 3600))
    assert told(*[5 * 3600.0, 30 * 3600.0] * 4).windows() == (KEEP_ALIVE_S, math.inf, KEEP_ALIVE_S)


def test_old_habits_are_forgotten() -> None:
    """Counts are halved now and then: what comes every minute now is not kept for an hour for ever."""
    policy = told(*[3600.0] * 2000)
    assert policy.windows().prewarm_s > 50 * MINUTE_S
    for _ in range(300_000):
        policy.wanted_again(1.0)
    assert policy.windows().stay_s == pytest.approx(66.0)


@pytest.mark.parametrize("name", ["histogram", "break-even"])
@given(idle_s=st.lists(st.floats(0, 20 * 3600.0), max_size=60))
def test_windows_are_in_order_whatever_the_calls_are_like(name: str, idle_s: list[float]) -> None:
    """None is negative, none starts sooner than it may, and what is started ahead is expected for a while."""
    windows = told(*idle_s, name=name).windows()
    assert windows.stay_s >= LINGER_S
    assert windows.prewarm_s >= LEAST_PREWARM_S
    assert windows.prewarm_s == math.inf or windows.stay_s <= windows.prewarm_s < windows.expect_s < math.inf


# What is worth its memory.


@pytest.mark.parametrize("idle_s", [(), (5 * MINUTE_S,) * 2])
def test_breaking_even_goes_by_the_operator_as_long_as_little_is_known(idle_s: tuple[float, ...]) -> None:
    """As the histogram does, with fewer samples: it weighs them."""
    assert told(*idle_s, name="break-even").windows() == Windows(KEEP_ALIVE_S, math.inf, KEEP_ALIVE_S)


def test_an_environment_stays_where_most_come_back_soon() -> None:
    """And not for the one in ten who comes after hours: forty minutes of idling are worth one start."""
    windows = told(*[90.0] * 9, 3 * 3600.0, name="break-even").windows()
    assert windows.stay_s == pytest.approx(2 * MINUTE_S + 6)
    assert windows.prewarm_s == math.inf


def test_an_environment_stays_for_a_rare_call_that_comes_soon_enough() -> None:
    """Six in a hundred within ten minutes cost less than forty minutes each; none is left after that."""
    windows = told(*[1.0] * 94, *[590.0] * 6, name="break-even").windows()
    assert windows.stay_s == pytest.approx(10 * MINUTE_S + 6)
    windows = told(*[1.0] * 94, *[7 * 3600.0] * 6, name="break-even").windows()
    assert windows.stay_s == pytest.approx(MINUTE_S + 6)


def test_where_nobody_comes_back_soon_and_all_at_the_same_time_they_are_waited_for_then() -> None:
    """Every two hours: a minute is kept of them, and a little before and after."""
    windows = told(*[2 * 3600.0 + 30] * 6, name="break-even").windows()
    assert windows == Windows(LINGER_S, 2 * 3600.0 - 6, 2 * 3600.0 + 66)


def test_nothing_is_kept_for_calls_that_come_at_any_time_and_seldom() -> None:
    """Each minute of waiting for them costs more than it saves, until nearly all of them have come."""
    windows = told(*(4000.0 + 60 * number for number in range(150)), name="break-even").windows()
    assert windows.stay_s == LINGER_S
    assert windows.prewarm_s > 2 * 3600


@given(counts=st.dictionaries(st.integers(0, 6), st.integers(1, 30), min_size=1, max_size=5), beyond=st.integers(0, 20))
def test_no_other_stretch_has_a_larger_balance(counts: dict[int, int], beyond: int) -> None:
    """Against a look at all of them, by the idle times themselves."""
    idle_s = [(number + 0.5) * MINUTE_S for number, count in counts.items() for _ in range(count)]
    idle_s += [5 * 3600.0] * beyond
    windows = told(*idle_s, name="break-even").windows()
    assume(len(idle_s) >= 3)

    def balance(first: int, last: int) -> float:
        saved = sum(first * MINUTE_S <= one < last * MINUTE_S for one in idle_s)
        idled_s = sum(min(one, last * MINUTE_S) - first * MINUTE_S for one in idle_s if one > first * MINUTE_S)
        return saved - idled_s / (4 * KEEP_ALIVE_S) - (0.05 * len(idle_s) if 0 < first < last else 0)

    best = max(balance(first, last) for first in range(8) for last in range(first, 8))
    if windows.prewarm_s < math.inf:
        chosen = balance(round((windows.prewarm_s + 6) / MINUTE_S), round((windows.expect_s - 6) / MINUTE_S))
    else:
        chosen = balance(0, round((windows.stay_s - 6) / MINUTE_S) if windows.stay_s > LINGER_S else 0)
    assert chosen == pytest.approx(best)


# What the dispatcher makes of it.


def call_every(shell: Shell, spec: VersionSpec, every_s: float, times: int) -> None:
    """Have calls come and end at once, on environments that nodes make at once."""
    for _ in range(times):
        pass_time(shell, shell.now + every_s)
        call = make_call(spec, shell.now)
        environment = shell.dispatcher.admit(call, None, 0, shell.now)
        if environment is None:
            obey(shell)
            environment = call.environment
        assert environment is not None
        shell.dispatcher.finished(environment, shell.now)


def pass_time(shell: Shell, until: float) -> list[Start | Stop]:
    """Let time pass, and nodes obey at once; give their orders."""
    orders = []
    while (deadline := shell.dispatcher.next_deadline()) is not None and deadline <= until:
        shell.now = max(shell.now, deadline)
        shell.dispatcher.tick(shell.now)
        orders += obey(shell)
    shell.now = until
    return orders


def obey(shell: Shell) -> list[Start | Stop]:
    """Do as is ordered."""
    orders = [action for action in shell.dispatcher.take_actions() if isinstance(action, (Start, Stop))]
    for order in orders:
        if isinstance(order, Start):
            shell.dispatcher.ready(order.environment.environment_id, shell.now)
        else:
            shell.stopped(order.environment)
    return orders


def learnt(**limits: str) -> tuple[Shell, VersionSpec]:
    """A function that has been called every half hour."""
    shell, spec = Shell(Limits(keep_alive="histogram", **limits)), make_spec()  # type: ignore[arg-type]
    call_every(shell, spec, 30 * MINUTE_S, 15)
    return shell, spec


def test_an_environment_waits_for_the_expected_call_and_goes_when_it_does_not_come() -> None:
    """Gone soon after the last call, there before the next one; then gone, and no further one is started."""
    shell, spec = learnt()
    end = shell.now
    [stop] = pass_time(shell, end + 26 * MINUTE_S)
    assert isinstance(stop, Stop)
    [start] = pass_time(shell, end + 30 * MINUTE_S)
    assert isinstance(start, Start)
    environment = shell.dispatcher.admit(make_call(spec, shell.now), None, 0, shell.now)
    assert environment is start.environment
    shell.dispatcher.finished(environment, shell.now)
    end = shell.now
    orders = pass_time(shell, end + 8 * 3600)
    assert [type(order) for order in orders] == [Stop, Start, Stop]
    assert shell.dispatcher.environment_count == 0


def test_as_many_are_expected_as_came_at_once_before() -> None:
    """Five calls every half hour: five environments wait for the next five."""
    shell, spec = Shell(Limits(keep_alive="histogram")), make_spec()
    for _ in range(15):
        pass_time(shell, shell.now + 30 * MINUTE_S)
        calls = [make_call(spec, shell.now) for _ in range(5)]
        taken = [shell.dispatcher.admit(call, None, 0, shell.now) for call in calls]
        obey(shell)
        for call in calls:
            assert call.environment is not None
            shell.dispatcher.finished(call.environment, shell.now)
    assert all(taken), "the last five waited"


def test_nothing_is_started_ahead_for_a_version_that_is_gone() -> None:
    """The function was updated after its last call."""
    shell, _ = learnt()
    shell.dispatcher.retire_function("default", "f", {make_spec(revision="2").key}, "superseded", shell.now)
    obey(shell)
    assert pass_time(shell, shell.now + 8 * 3600) == []


def test_nothing_is_started_ahead_for_a_function_that_was_deleted_under_its_last_call() -> None:
    """The call ends on what it came for; nobody will call that again."""
    shell, spec = learnt()
    pass_time(shell, shell.now + 30 * MINUTE_S)
    environment = shell.dispatcher.admit(make_call(spec, shell.now), None, 0, shell.now)
    assert environment is not None
    shell.dispatcher.retire_function("default", "f", (), "deleted", shell.now)
    shell.dispatcher.finished(environment, shell.now)
    assert [type(order) for order in obey(shell)] == [Stop]
    assert pass_time(shell, shell.now + 8 * 3600) == []


def test_nothing_is_started_ahead_for_a_function_that_may_have_no_calls() -> None:
    """A reservation of nothing is the operator's brake: not even its init runs."""
    shell, spec = learnt()
    pass_time(shell, shell.now + MINUTE_S)
    shell.dispatcher.reservation_changed(spec.account, spec.function_name, 0)
    assert pass_time(shell, shell.now + 8 * 3600) == []


def test_what_was_started_ahead_goes_soon_after_its_call() -> None:
    """Not as late as it would have gone without one, whatever else is idle."""
    shell, spec = learnt()
    end = shell.now
    pass_time(shell, end + 20 * MINUTE_S)
    shell.warm(make_spec("other"))
    [start] = pass_time(shell, end + 28 * MINUTE_S)
    environment = shell.dispatcher.admit(make_call(spec, shell.now), None, 0, shell.now)
    assert environment is start.environment
    shell.dispatcher.finished(environment, shell.now)
    [stop] = pass_time(shell, shell.now + LINGER_S)
    assert stop.environment is environment


def test_nothing_is_started_ahead_where_it_would_cost_others_their_memory() -> None:
    """An expectation is no call."""
    shell, _ = learnt()
    pass_time(shell, shell.now + MINUTE_S)
    others = [shell.run(make_spec(f"other-{number}", 512)) for number in range(2)]
    assert pass_time(shell, shell.now + 8 * 3600) == []
    assert all(environment.call is not None for environment in others)


def test_greedy_dual_evicts_what_is_cheap_to_make_anew() -> None:
    """Least recently used would take the other one."""
    evicted = {}
    for name in policies.EVICTION:
        shell = Shell(Limits(eviction=name), memory_mib=512)
        started_in(shell, make_spec("dear", 256), 20.0)
        started_in(shell, make_spec("cheap", 256), 0.01)
        shell.wait(make_spec("new", 256))
        [stop] = shell.dispatcher.take_actions()
        assert isinstance(stop, Stop)
        evicted[name] = stop.environment.spec.function_name
    assert evicted == {"least-recently-used": "dear", "greedy-dual": "cheap"}


def test_greedy_dual_forgets_what_was_dear_and_is_not_used() -> None:
    """Each eviction raises the clock of what is used after it."""
    shell = Shell(Limits(eviction="greedy-dual"), memory_mib=512)
    dear = started_in(shell, make_spec("dear", 256), 2.0)
    for number in range(100):
        spec = make_spec(f"f{number}", 256)
        call = shell.wait(spec)
        orders = obey(shell)
        if any(order.environment is dear for order in orders if isinstance(order, Stop)):
            break
        orders += obey(shell)
        assert call.environment is not None
        shell.now += 1
        shell.dispatcher.finished(call.environment, shell.now)
    else:
        pytest.fail("it is kept for ever")
    assert number > 0, "it is not kept at all"


def started_in(shell: Shell, spec: VersionSpec, start_s: float) -> Environment:
    """Make an idle environment, the third of its function that has taken so long to start."""
    for _ in range(2):
        shell.dispatcher.spent(_started_in(shell, spec, start_s).environment_id, shell.now)
        obey(shell)
    return _started_in(shell, spec, start_s)


def _started_in(shell: Shell, spec: VersionSpec, start_s: float) -> Environment:
    shell.wait(spec)
    [environment] = shell.starts()
    environment.start = EnvironmentStart(shell.now)
    shell.now += start_s
    shell.dispatcher.ready(environment.environment_id, shell.now)
    shell.dispatcher.take_actions()
    shell.dispatcher.finished(environment, shell.now)
    return environment
