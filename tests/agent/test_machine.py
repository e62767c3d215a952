"""The life of an environment: exact sequences for what the contract fixes, seeded worlds for the rest."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_node_agent.environment import failures
from lambent_node_agent.environment.machine import step
from lambent_node_agent.environment.model import (
    INIT_TIMEOUT_S,
    KILL_TIMEOUT_S,
    MOVES,
    RESTORE_TIMEOUT_S,
    Action,
    Answer,
    Cancelled,
    Close,
    Environment,
    Event,
    Facts,
    Figures,
    Finished,
    Freeze,
    Invocation,
    KillRuntime,
    LimitCpu,
    Open,
    Outcome,
    Phase,
    Refuse,
    ReplaceSandbox,
    ReportReady,
    ReportSpent,
    Rest,
    RuntimeFailed,
    RuntimeFailure,
    RuntimeKilled,
    RuntimeReady,
    RuntimeRestored,
    RuntimeState,
    SandboxLost,
    SandboxReady,
    SendInvoke,
    SendRestore,
    StartRuntime,
    Stop,
    Thaw,
    Tick,
    WriteLog,
)

WALL = "2023-01-01T00:00:00.000Z"
EXIT_3 = failures.exit_failure(3, None, oom_killed=False)


def fresh() -> Environment:
    return Environment(Facts("$LATEST", 128, "INIT_START"))


def run(*timeline: tuple[float, Event], env: Environment | None = None) -> tuple[Environment, list[Action]]:
    """Apply events at their times and give every action."""
    env = env or fresh()
    actions: list[Action] = []
    for now, event in timeline:
        env, more = step(env, event, now)
        actions += more
    return env, actions


def warm() -> Environment:
    return run((0, SandboxReady()), (0.1101, RuntimeReady()))[0]


def lines(actions: list[Action]) -> list[str]:
    return [action.line for action in actions if isinstance(action, WriteLog)]


def answers(actions: list[Action]) -> list[Answer]:
    return [action for action in actions if isinstance(action, Answer)]


def test_cold_and_warm_invocation_have_the_lines_of_the_contract() -> None:
    """People grep and bill by these lines; Init Duration stands on the first REPORT alone."""
    _, actions = run(
        (1, Open(Invocation("id-1", 3))),
        (1.00301, Finished(Outcome(b"1"), 36)),
        (2, Open(Invocation("id-2", 3))),
        (2.0005, Finished(Outcome(b"2"), 36)),
        env=warm(),
    )
    assert lines(actions) == [
        "START RequestId: id-1 Version: $LATEST",
        "END RequestId: id-1",
        (
            "REPORT RequestId: id-1\tDuration: 3.01 ms\tBilled Duration: 114 ms\tMemory Size: 128 MB\t"
            "Max Memory Used: 36 MB\tInit Duration: 110.10 ms\t"
        ),
        "START RequestId: id-2 Version: $LATEST",
        "END RequestId: id-2",
        (
            "REPORT RequestId: id-2\tDuration: 0.50 ms\tBilled Duration: 1 ms\tMemory Size: 128 MB\t"
            "Max Memory Used: 36 MB\t"
        ),
    ]
    assert [answer.figures.cold_start for answer in answers(actions)] == [True, False]
    assert [type(action) for action in actions].count(LimitCpu) == 1


@pytest.mark.parametrize(("load_us", "init_us"), [(0, 0), (10_000, 10_000), (110_100, 110_100), (2**32 - 1, 110_100)])
def test_init_is_what_the_runtime_says_within_the_time_it_took(load_us: int, init_us: int) -> None:
    """What goes before belongs to the runtime's start; function code may say what it likes, and adds nothing."""
    env, actions = run((0, SandboxReady()), (0.1101, RuntimeReady(load_us)))
    assert actions[-1] == ReportReady(110_100 - init_us, init_us)
    assert env.init_duration_us == 110_100


def test_timeout_answers_after_the_kill_and_restarts_the_runtime() -> None:
    """/tmp survives a timeout, globals do not; the text is AWS's to the letter."""
    env, actions = run((1, Open(Invocation("id-1", 1))), (2.004, Tick(WALL)), env=warm())
    assert env.phase is Phase.RESET
    assert not answers(actions)
    env, actions = run((2.01, RuntimeKilled(40)), env=env)
    (answer,) = answers(actions)
    assert json.loads(answer.outcome.failure_json) == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": "RequestId: id-1 Error: Task timed out after 1.00 seconds",
    }
    assert lines(actions) == [
        f"{WALL} id-1 Task timed out after 1.00 seconds\n",
        "END RequestId: id-1",
        (
            "REPORT RequestId: id-1\tDuration: 1000.00 ms\tBilled Duration: 1111 ms\tMemory Size: 128 MB\t"
            "Max Memory Used: 40 MB\tInit Duration: 110.10 ms\tStatus: timeout"
        ),
    ]
    assert StartRuntime() in actions
    env, _ = run((2.1, RuntimeReady()), env=env)
    assert env.phase is Phase.IDLE


def test_exit_gives_the_error_line_before_end() -> None:
    """A crash is told in the log where a person looks for it."""
    _, actions = run(
        (1, Open(Invocation("id-1", 3))), (1.5, RuntimeFailed(EXIT_3, 30)), (1.6, RuntimeKilled(30)), env=warm()
    )
    assert lines(actions)[1:3] == [
        "RequestId: id-1 Error: Runtime exited with error: exit status 3\nRuntime.ExitError",
        "END RequestId: id-1",
    ]
    assert lines(actions)[3].endswith("\tStatus: error\tError Type: Runtime.ExitError")
    (answer,) = answers(actions)
    assert json.loads(answer.outcome.failure_json) == {
        "errorType": "Runtime.ExitError",
        "errorMessage": "RequestId: id-1 Error: Runtime exited with error: exit status 3",
    }


def test_callers_limit_is_a_service_error_and_the_functions_own_is_not() -> None:
    """Who waits no longer than a second gets the error that says so; the function is not to blame for it."""
    invocation = Invocation("id-1", 1, callers_limit=True)
    _, actions = run((1, Open(invocation)), (2.004, Tick(WALL)), (2.01, RuntimeKilled(40)), env=warm())
    (answer,) = answers(actions)
    assert answer.outcome.service_reason == "DeadlineExceededException"
    assert answer.outcome.service_message == "The invocation id-1 took longer than the 1.00 seconds of its caller."
    assert answer.outcome.dispatched
    assert not answer.outcome.failure_json
    assert lines(actions)[-1].endswith("\tStatus: timeout")


OOM = RuntimeFailed(failures.exit_failure(None, 9, oom_killed=True), 128)


def test_sandbox_is_replaced_after_an_oom_kill() -> None:
    """What fills /tmp is memory: the next runtime would be killed in its init, and the one after it, for ever."""
    env, actions = run((1, Open(Invocation("id-1", 3))), (1.5, OOM), env=warm())
    assert actions[-1] == ReplaceSandbox()
    assert KillRuntime() not in actions
    env, actions = run((1.6, RuntimeKilled(128)), (1.7, RuntimeReady()), (2, Open(Invocation("id-2", 3))), env=env)
    assert StartRuntime() in actions
    assert actions.count(LimitCpu()) == 1, "the new sandbox has no quota yet"
    (answer,) = answers(actions)
    assert answer.figures.max_memory_used_mib == 128
    _, actions = run((2.1, Finished(Outcome(b"1"), 9)), env=env)
    assert not answers(actions)[0].figures.cold_start


def test_sandbox_is_limited_when_a_call_comes_while_it_is_replaced() -> None:
    """The quota belongs to the new sandbox, which is not there yet when the call comes."""
    env, _ = run((1, OOM), env=warm())
    env, actions = run((1.1, Open(Invocation("id-1", 3))), env=env)
    assert actions == []
    _, actions = run((1.2, RuntimeKilled(128)), (1.3, RuntimeReady()), env=env)
    assert [type(action) for action in actions if not isinstance(action, WriteLog)] == [
        LimitCpu,
        StartRuntime,
        SendInvoke,
    ]


def test_sandbox_is_replaced_when_inits_fail_that_succeeded_before() -> None:
    """The code is the same: what makes it fail now is in the sandbox. Code that never loaded is not helped by that."""
    env, _ = run((1, RuntimeFailed(EXIT_3, 1)), (1.1, RuntimeKilled(1)), env=warm())
    kinds = []
    for number in range(4):
        now = 10.0 * (number + 1)
        opened = Open(Invocation(f"id-{number}", 3))
        env, actions = run((now, opened), (now + 1, RuntimeFailed(EXIT_3, 1)), env=env)
        kinds += [type(action) for action in actions if isinstance(action, KillRuntime | ReplaceSandbox)]
        env, _ = run((now + 1.1, RuntimeKilled(1)), env=env)
    assert kinds == [KillRuntime, ReplaceSandbox] * 2
    env, actions = run((0, SandboxReady()), (0.1, RuntimeFailed(EXIT_3, 1)), (0.2, RuntimeKilled(1)))
    for now in (1.0, 2.0, 3.0):
        env, more = run(
            (now, Open(Invocation("id", 3))), (now, RuntimeFailed(EXIT_3, 1)), (now, RuntimeKilled(1)), env=env
        )
        actions += more
    assert ReplaceSandbox() not in actions


@pytest.mark.parametrize(
    "end",
    [
        Stop("idle", drain=False, max_memory_used_mib=7),
        SandboxLost("exited", "gone", max_memory_used_mib=7),
        Cancelled(WALL),
    ],
    ids=["stop", "lost", "cancel"],
)
def test_call_that_waits_for_a_runtime_was_not_dispatched(end: Event) -> None:
    """No handler has seen it: the SDK may send it again."""
    env, _ = run((1, RuntimeFailed(EXIT_3, 1)), (1.1, RuntimeKilled(1)), env=warm())
    for env_before, dispatched in ((env, False), (warm(), True)):
        _, actions = run((2, Open(Invocation("id-1", 3))), (2.1, end), (2.2, RuntimeKilled(7)), env=env_before)
        (answer,) = answers(actions)
        assert answer.outcome.service_reason
        assert answer.outcome.dispatched is dispatched
        assert answer.figures.max_memory_used_mib == 7


def test_failed_init_is_run_again_inside_the_invocation() -> None:
    """AWS's order on a failed init: INIT_REPORT(init), INIT_REPORT(invoke), START, error, END, REPORT."""
    payload = b'{"errorMessage":"no module","errorType":"Runtime.ImportModuleError","requestId":""}'
    failure = RuntimeFailed(failures.init_failure(payload), 20)
    env, actions = run((0, SandboxReady()), (0.1, failure), (0.11, RuntimeKilled(20)))
    assert env.phase is Phase.IDLE
    assert actions[-1] == ReportReady(0, 110_000, "Runtime.ImportModuleError: no module")
    env, more = run((1, Open(Invocation("id-1", 3))), (1.2, failure), (1.3, RuntimeKilled(20)), env=env)
    assert [line.split("\t")[:3] for line in lines(actions + more)[:3]] == [
        ["INIT_START"],
        ["INIT_REPORT Init Duration: 100.00 ms", "Phase: init", "Status: error"],
        ["INIT_REPORT Init Duration: 200.00 ms", "Phase: invoke", "Status: error"],
    ]
    assert [line.split()[0] for line in lines(more)[1:]] == ["START", "RequestId:", "END", "REPORT"]
    (answer,) = answers(more)
    assert answer.outcome.failure_json == payload
    assert answer.figures.init_duration_us == 0
    assert env.phase is Phase.IDLE
    assert StartRuntime() not in more[-1:]


def test_init_over_ten_seconds_is_a_timeout_of_the_init_phase() -> None:
    """The next invocation gets the function's whole timeout for the second try."""
    _, actions = run((0, SandboxReady()), (10.00733, Tick(WALL)), (10.1, RuntimeKilled(20)))
    assert lines(actions)[-1] == "INIT_REPORT Init Duration: 10007.33 ms\tPhase: init\tStatus: timeout"
    assert actions[-1] == ReportReady(0, 10_100_000, "the init took longer than 10 s")


def test_open_during_a_reset_waits_for_the_new_runtime() -> None:
    """The scheduler uses the environment as soon as END came, while the runtime is still starting."""
    env, _ = run((1, Open(Invocation("id-1", 1))), (2, Tick(WALL)), (2.01, RuntimeKilled(1)), env=warm())
    env, actions = run((2.02, Open(Invocation("id-2", 1))), env=env)
    assert env.phase is Phase.INVOKE
    assert SendInvoke() not in actions
    env, actions = run((2.1, RuntimeReady()), env=env)
    assert SendInvoke() in actions


def test_cancel_kills_and_answers_with_a_service_error() -> None:
    """A cancelled call may have run: its error says so, and nothing of it goes on running."""
    _, actions = run((1, Open(Invocation("id-1", 3))), (1.5, Cancelled(WALL)), (1.6, RuntimeKilled(9)), env=warm())
    assert KillRuntime() in actions
    (answer,) = answers(actions)
    assert answer.outcome.service_reason == "CancelledException"


def test_draining_stop_lets_the_invocation_finish() -> None:
    """An update of a function must not fail the calls under way."""
    env, actions = run(
        (1, Open(Invocation("id-1", 3))),
        (1.1, Stop("superseded", drain=True, max_memory_used_mib=0)),
        (1.2, Finished(Outcome(b"1"), 9)),
        env=warm(),
    )
    assert env.phase is Phase.SHUTDOWN
    assert answers(actions)[0].outcome.payload == b"1"
    assert actions[-1] == Close("superseded", "")


def test_answer_without_a_question_kills_the_runtime() -> None:
    """Function code that writes to the channel between calls must not answer the next caller."""
    env, actions = run((1, Finished(Outcome(b"forged"), 9)), env=warm())
    assert actions == [KillRuntime()]
    env, actions = run((1.1, RuntimeKilled(9)), env=env)
    assert env.phase is Phase.IDLE
    assert not actions


def test_an_idle_environment_is_frozen_until_it_is_used() -> None:
    """Whoever is idle for a while is frozen once; the next invocation thaws it before it gets its frame."""
    env, actions = run((1, Rest()), (2, Rest()), env=warm())
    assert (env.phase, actions) == (Phase.FROZEN, [Freeze()])
    env, actions = run((3, Open(Invocation("id-1", 3))), env=env)
    assert [type(action) for action in actions] == [Thaw, LimitCpu, WriteLog, SendInvoke]
    env, actions = run((3.1, Rest()), (3.2, Finished(Outcome(b"1"), 9)), env=env)
    assert Freeze() not in actions, "it is in use"
    assert (env.phase, env.idle_since) == (Phase.IDLE, 3.2)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (RuntimeFailed(EXIT_3, 1), [Thaw(), KillRuntime()]),
        (RuntimeFailed(failures.exit_failure(None, 9, oom_killed=True), 1), [Thaw(), ReplaceSandbox()]),
        (Finished(Outcome(b"forged"), 1), [Thaw(), KillRuntime()]),
        (Stop("idle", drain=True, max_memory_used_mib=1), [Close("idle", "")]),
        (SandboxLost("exited", "gone"), [Close("exited", "gone")]),
        (Tick(WALL), []),
        (Cancelled(WALL), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_happens_to_a_frozen_environment(event: Event, expected: list[Action]) -> None:
    """Its reaper serves no order before it thaws; a sandbox that is closed dies of it without running again."""
    env, _ = run((1, Rest()), env=warm())
    assert run((100, event), env=env)[1] == expected


def spent_after(invocations: float, age_s: float) -> Environment:
    """An idle environment with a lifetime, made at 0."""
    env, _ = run((0, SandboxReady()), (0.1, RuntimeReady()), env=Environment(Facts("1", 128, "", invocations, age_s)))
    return env


@pytest.mark.parametrize(("invocations", "age_s"), [(2, math.inf), (math.inf, 3.05), (2, 3.05)])
def test_a_spent_environment_says_so_before_its_last_answer(invocations: float, age_s: float) -> None:
    """The scheduler sends nothing more once it has the answer; what it has sent is served all the same."""
    env = spent_after(invocations, age_s)
    env, actions = run((1, Open(Invocation("id-1", 3))), (1.1, Finished(Outcome(b"1"), 9)), env=env)
    assert ReportSpent() not in actions
    env, actions = run((3, Open(Invocation("id-2", 3))), (3.1, Finished(Outcome(b"2"), 9)), env=env)
    assert [type(action) for action in actions][-2:] == [ReportSpent, Answer]
    assert env.phase is Phase.IDLE, "it is the scheduler who stops it"
    env, actions = run((4, Open(Invocation("id-3", 3))), (4.1, Finished(Outcome(b"3"), 9)), env=env)
    assert answers(actions)[0].outcome.payload == b"3"


EVENTS = st.sampled_from(
    [
        *(SandboxReady(), RuntimeReady(), RuntimeFailed(EXIT_3, 1), RuntimeFailed(OOM.failure, 1), RuntimeKilled(1)),
        *(Open(Invocation("id", 3)), Finished(Outcome(b"x"), 1), Cancelled(WALL), Tick(WALL), Rest(), Rest()),
        *(Stop("idle", drain=True, max_memory_used_mib=1), SandboxLost("exited", "gone")),
    ]
)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 9.0]), EVENTS), max_size=30))
def test_no_order_reaches_a_frozen_runtime(timeline: list[tuple[float, Event]]) -> None:
    """Whatever happens in whatever order: frozen and thawed by turns, thawed before it is told anything."""
    env, now, frozen = warm(), 1.0, False
    for delay_s, event in timeline:
        now += delay_s
        if isinstance(event, Open) and env.invocation is not None:
            continue  # the shell lets one call in at a time
        env, actions = step(env, event, now)
        for action in actions:
            if isinstance(action, Freeze | Thaw):
                assert frozen is isinstance(action, Thaw)
                frozen = isinstance(action, Freeze)
            elif isinstance(action, SendInvoke | StartRuntime | KillRuntime | ReplaceSandbox | Answer):
                assert not frozen
            elif isinstance(action, Close):
                frozen = False  # it is killed, then thawed
        assert frozen is (env.phase is Phase.FROZEN)


@pytest.mark.parametrize(
    ("code", "signal", "oom", "error_type", "message"),
    [
        (0, None, False, "Runtime.ExitError", "Runtime exited without providing a reason"),
        (1, None, False, "Runtime.ExitError", "Runtime exited with error: exit status 1"),
        (None, 9, False, "Runtime.ExitError", "Runtime exited with error: signal: killed"),
        (None, 11, False, "Runtime.ExitError", "Runtime exited with error: signal: segmentation fault"),
        (None, 9, True, "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"),
    ],
)
def test_exit_is_described_in_awss_words(
    code: int | None, signal: int | None, oom: bool, error_type: str, message: str
) -> None:
    """Clients tell these apart by their text."""
    assert failures.exit_failure(code, signal, oom_killed=oom) == RuntimeFailure(error_type, message)


@given(st.binary(max_size=200) | st.just(b"[" * 100_000) | st.just(b'{"errorType": "a\\tb"}'))
def test_init_error_of_any_bytes_has_a_printable_type(error_json: bytes) -> None:
    """The type goes into a log line, where a tab or a newline would forge a field."""
    assert failures.init_failure(error_json).error_type.isprintable()


@dataclass
class World:
    """A clock, a heap of things to come, and a runtime that does as it likes."""

    seed: int
    now: float = 0.0
    env: Environment = field(default_factory=fresh)
    alive: bool = False
    sent: bool = False
    current: str = ""
    generation: int = 0
    closes: int = 0
    restored: set[int] = field(default_factory=set)
    frozen: bool = False
    outcomes: dict[str, list[str]] = field(default_factory=dict)
    opened_at: dict[str, float] = field(default_factory=dict)
    logged: list[str] = field(default_factory=list)
    coming: list[tuple[float, int, int | None, Event]] = field(default_factory=list)
    counter: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def after(self, delay: float, event: Event, *, generation: int | None = None) -> None:
        """Let an event happen later, for one runtime only if `generation` is given."""
        self.counter += 1
        self.coming.append((self.now + delay, self.counter, generation, event))

    def feed(self, event: Event) -> None:
        """Step, act, and set the alarm."""
        before = self.env
        self.env, actions = step(self.env, event, self.now)
        assert self.env.phase is before.phase or self.env.phase in MOVES[before.phase]
        for action in actions:
            self.act(action)
        if self.env.deadline < math.inf:
            self.after(max(0.0, self.env.deadline - self.now), Tick(WALL))

    def act(self, action: Action) -> None:
        """Do what the shell would."""
        match action:
            case StartRuntime():
                assert not self.alive, "two runtimes in one sandbox"
                self.alive, self.sent = True, False
                self.generation += 1
                self.runtime_starts()
            case KillRuntime() | ReplaceSandbox():
                died = SandboxLost("sandbox", "would not die") if self.chance(0.05) else RuntimeKilled(1)
                self.after(self.random.uniform(0, 0.1), died)
            case Freeze() | Thaw():
                assert self.frozen is isinstance(action, Thaw)
                self.frozen = not self.frozen
            case SendRestore():
                assert self.alive
                assert not self.frozen
                assert self.generation not in self.restored
                self.restored.add(self.generation)
                self.hooks_run()
            case SendInvoke():
                assert not self.env.facts.snap_start or self.generation in self.restored
                assert self.alive
                assert not self.sent
                assert not self.frozen
                self.sent = True
                self.handler_runs()
            case Answer() | Refuse():
                self.outcomes[self.current].append(type(action).__name__)
            case WriteLog(line=line):
                self.logged.append(line)
            case Close():
                self.closes += 1
            case _:
                pass

    def chance(self, probability: float) -> bool:
        """Toss a coin."""
        return self.random.random() < probability

    def runtime_starts(self) -> None:
        """Decide how the init goes."""
        if self.chance(0.7):
            self.after(self.random.choice([0.01, 0.5, 9.9, 10.0, 11.0]), RuntimeReady(), generation=self.generation)
        if self.chance(0.3):
            self.after(self.random.uniform(0, 12), RuntimeFailed(EXIT_3, 1), generation=self.generation)

    def hooks_run(self) -> None:
        """Decide how the restore goes."""
        if self.chance(0.7):
            self.after(self.random.choice([0.0, 0.5, 3.0, 11.0]), RuntimeRestored(), generation=self.generation)
        if self.chance(0.3):
            self.after(self.random.uniform(0, 12), RuntimeFailed(EXIT_3, 1), generation=self.generation)

    def handler_runs(self) -> None:
        """Decide how the invocation goes."""
        if self.chance(0.7):
            self.after(self.random.choice([0.0, 0.1, 1.0, 3.0]), Finished(Outcome(b"x"), 1), generation=self.generation)
        if self.chance(0.2):
            self.after(self.random.uniform(0, 4), RuntimeFailed(EXIT_3, 1), generation=self.generation)

    def schedule(self) -> None:
        """Things that schedulers and the machine do."""
        self.after(self.random.uniform(0, 1), SandboxReady())
        for number in range(self.random.randrange(6)):
            request_id = f"r{number}"
            self.after(self.random.uniform(0, 40), Open(Invocation(request_id, self.random.choice([1.0, 3.0]))))
        if self.chance(0.3):
            self.after(self.random.uniform(0, 40), Cancelled(WALL))
        for _ in range(self.random.randrange(4)):
            self.after(self.random.uniform(0, 40), Rest())
        if self.chance(0.1):
            self.after(self.random.uniform(0, 40), SandboxLost("exited", "gone"))
        self.after(60, Stop("idle", drain=self.chance(0.5), max_memory_used_mib=1))

    def run(self) -> None:
        """Let everything happen."""
        self.schedule()
        while self.coming:
            self.coming.sort(reverse=True)
            self.now, _, generation, event = self.coming.pop()
            if generation is not None and (generation != self.generation or not self.alive):
                continue  # the link to that process is closed
            if isinstance(event, RuntimeKilled):
                self.alive = False
            if isinstance(event, Open):
                if self.env.invocation is not None:
                    continue  # the shell lets one call in at a time
                self.current = event.invocation.request_id
                self.outcomes[self.current] = []
                self.opened_at[self.current] = self.now
            if isinstance(event, Finished):
                self.sent = False
            self.feed(event)


@pytest.mark.parametrize("snap_start", [False, True])
@pytest.mark.parametrize("seed", range(400))
def test_every_invocation_is_answered_once_and_the_environment_ends(seed: int, snap_start: bool) -> None:
    """Whatever a runtime does, no caller waits for ever, none gets two answers, and the memory comes back."""
    facts = Facts("1", 128, "INIT_START", snap_start=snap_start, restore_start_line="RESTORE_START")
    world = World(seed, env=Environment(facts))
    world.run()
    assert world.env.phase is Phase.SHUTDOWN
    assert world.closes == 1
    for request_id, outcomes in world.outcomes.items():
        assert len(outcomes) == 1, (request_id, outcomes)
        if outcomes == ["Answer"]:
            words = [line.split()[0] for line in world.logged if f"RequestId: {request_id}" in line]
            assert [word for word in words if word in ("START", "END", "REPORT")] == ["START", "END", "REPORT"]


@pytest.mark.parametrize("seed", range(100))
def test_no_invocation_outlives_its_timeout_and_the_kill(seed: int) -> None:
    """The deadline is the agent's to keep, whatever state the runtime is in when the call comes."""
    world = World(seed)
    answered: dict[str, float] = {}
    act = world.act

    def noting(action: Action) -> None:
        if isinstance(action, Answer):
            answered[world.current] = world.now
        act(action)

    world.act = noting  # type: ignore[method-assign] # the world is the test's own
    world.run()
    for request_id, at in answered.items():
        assert at - world.opened_at[request_id] <= 3.0 + KILL_TIMEOUT_S
    assert INIT_TIMEOUT_S == 10.0


# SnapStart


def snap_started() -> Environment:
    """An environment with SnapStart that nobody has called yet."""
    facts = Facts("1", 128, "INIT_START", snap_start=True, init_timeout_s=130, restore_start_line="RESTORE_START")
    env, actions = run((0, SandboxReady()), (100, RuntimeReady()), env=Environment(facts))
    assert actions[-1] == ReportReady(100_000_000, 0)
    return env


def test_hooks_run_before_the_first_invocation_alone() -> None:
    """Their time is reported as AWS does, and the handler has all of the function's timeout after it."""
    env, actions = run((200, Open(Invocation("id-1", 3))), (202, RuntimeRestored()), env=snap_started())
    assert actions[1:] == [
        WriteLog("RESTORE_START"),
        SendRestore(),
        WriteLog("RESTORE_REPORT Restore Duration: 2000.00 ms"),
        WriteLog("START RequestId: id-1 Version: 1"),
        SendInvoke(),
    ]
    assert env.deadline == 205
    env, actions = run((204, Finished(Outcome(b"1"), 7)), (205, Open(Invocation("id-2", 3))), env=env)
    (answer,) = answers(actions)
    assert answer.figures == Figures(2_000_000, 4_000, 0, 7, cold_start=True, restore_duration_us=2_000_000)
    assert lines(actions)[1].endswith("\tRestore Duration: 2000.00 ms\tBilled Restore Duration: 2000 ms\t")
    assert actions[-1] == SendInvoke()


def test_a_caller_who_is_in_a_hurry_waits_for_no_hook() -> None:
    """Its time runs on while they run; the function's own does not."""
    env, _ = run((200, Open(Invocation("id-1", 3, callers_limit=True))), env=snap_started())
    assert env.deadline == 203
    env, actions = run((203, Tick(WALL)), (203.1, RuntimeKilled(7)), env=env)
    (answer,) = answers(actions)
    assert answer.outcome.service_reason == "DeadlineExceededException"


@pytest.mark.parametrize("timeout_s", [3, 300])
def test_hooks_that_take_too_long_are_ended(timeout_s: int) -> None:
    """After ten seconds, whatever the function's timeout is, with AWS's error; the invocation was not dispatched."""
    env, _ = run((200, Open(Invocation("id-1", timeout_s))), env=snap_started())
    assert env.deadline == 200 + RESTORE_TIMEOUT_S
    env, actions = run((210, Tick(WALL)), (210.1, RuntimeKilled(7)), env=env)
    (answer,) = answers(actions)
    assert (answer.outcome.service_reason, answer.outcome.dispatched) == ("SnapStartTimeoutException", False)
    assert "RESTORE_REPORT Restore Duration: 10000.00 ms\tStatus: timeout" in lines(actions)
    assert actions[-1] == StartRuntime()


@pytest.mark.parametrize(("ended", "duration_us"), [(202, 1_000_000), (203, 2_000_000)], ids=["answers", "times out"])
def test_hooks_are_billed_once_when_the_caller_is_in_a_hurry(ended: float, duration_us: int) -> None:
    """The handler's duration begins behind them, though the caller's time does not."""
    event = Finished(Outcome(b"1"), 7) if ended == 202 else Tick(WALL)
    _, actions = run(
        (200, Open(Invocation("id-1", 3, callers_limit=True))),
        (201, RuntimeRestored()),
        (ended, event),
        (ended + 0.1, RuntimeKilled(7)),
        env=snap_started(),
    )
    (answer,) = answers(actions)
    assert (answer.figures.duration_us, answer.figures.restore_duration_us) == (duration_us, 1_000_000)
    assert answer.figures.billed_duration_ms == (duration_us + 1_000_000) // 1000


def test_an_environment_that_lost_its_prepared_runtime_is_to_be_replaced() -> None:
    """Its init may take longer than an invocation, which would then never succeed there."""
    env, _ = run((200, Open(Invocation("id-1", 3))), (201, RuntimeRestored()), env=snap_started())
    assert ReportSpent() not in run((202, Finished(Outcome(b"1"), 7)), env=env)[1]
    _, actions = run((204, Tick(WALL)), (204.1, RuntimeKilled(7)), env=env)
    spent = actions.index(ReportSpent())
    assert isinstance(actions[spent + 1], Answer), "the scheduler knows before it sends the next one"


def test_a_new_runtime_is_restored_again() -> None:
    """It has run its own init, and its own hooks before the snapshot."""
    env, _ = run((200, Open(Invocation("id-1", 3))), (201, RuntimeRestored()), env=snap_started())
    failed = RuntimeFailed(EXIT_3, 7)
    env, _ = run((202, failed), (202.1, RuntimeKilled(7)), (203, RuntimeReady()), env=env)
    _, actions = run((204, Open(Invocation("id-2", 3))), env=env)
    assert actions[-1] == SendRestore()


def test_a_forged_restored_ends_the_runtime() -> None:
    """What nobody asked for is a violation, as with any other answer."""
    env, actions = run((200, RuntimeRestored()), env=snap_started())
    assert env.runtime is RuntimeState.DYING
    assert actions == [KillRuntime()]
