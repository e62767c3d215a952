"""The vocabulary of an execution environment's life: phases, state, events and actions.

Everything here is immutable. `machine.step` turns one state and one event into the next state and what must be done.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Final, NamedTuple


class Phase(enum.Enum):
    """Where an environment is in its life."""

    STARTING = "starting"
    """The sandbox is being made and the code fetched."""
    INIT = "init"
    """The first runtime loads the handler."""
    IDLE = "idle"
    """An invocation can be taken."""
    FROZEN = "frozen"
    """As IDLE, and no process in the sandbox runs: it has been idle for a while. What needs one thaws it first."""
    INVOKE = "invoke"
    """An invocation runs, or waits here for the runtime to load the handler again."""
    RESET = "reset"
    """The runtime is being killed, or a new one loads the handler while no invocation waits."""
    SHUTDOWN = "shutdown"
    """The sandbox is being taken down; nothing follows."""


# Which phase may follow which. A self-loop is not listed: staying is always legal.
MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.STARTING: frozenset({Phase.INIT, Phase.SHUTDOWN}),
    Phase.INIT: frozenset({Phase.IDLE, Phase.RESET, Phase.SHUTDOWN}),
    Phase.IDLE: frozenset({Phase.FROZEN, Phase.INVOKE, Phase.RESET, Phase.SHUTDOWN}),
    Phase.FROZEN: frozenset({Phase.INVOKE, Phase.RESET, Phase.SHUTDOWN}),
    Phase.INVOKE: frozenset({Phase.IDLE, Phase.RESET, Phase.SHUTDOWN}),
    Phase.RESET: frozenset({Phase.IDLE, Phase.INVOKE, Phase.SHUTDOWN}),
    Phase.SHUTDOWN: frozenset(),
}

INIT_TIMEOUT_S: Final = 10.0  # AWS Lambda: the init phase is limited to 10 seconds
# AWS Lambda with SnapStart: 130 s for init, or the function's timeout where that is longer; 10 s for the restore.
SNAP_START_INIT_TIMEOUT_S: Final = 130.0
RESTORE_TIMEOUT_S: Final = 10.0
# The sandbox itself gives up after 5 s; this is for a sandbox that does not even say so.
KILL_TIMEOUT_S: Final = 8.0
# Closing a sandbox and making another one take some 20 ms; 15 s are what both may take on a machine that is far behind.
REPLACE_TIMEOUT_S: Final = 15.0
# One init may fail by chance, as when a service that the module asks is away.
MAX_FAILED_INITS: Final = 2


class RuntimeState(enum.Enum):
    """What is known of the runtime process in the sandbox."""

    ABSENT = "absent"
    INITIALISING = "initialising"
    READY = "ready"
    RESTORING = "restoring"
    """With SnapStart: it runs the hooks that stand before its first invocation."""
    DYING = "dying"


class Invocation(NamedTuple):
    """One invocation as the machine sees it; its payload stays with the shell."""

    request_id: str
    timeout_s: float
    """The smaller of the function's timeout and the time that is left to the caller."""
    callers_limit: bool = False
    """True when it is the caller's."""


class RuntimeFailure(NamedTuple):
    """Why a runtime is of no more use.

    `error_json` is set when the runtime itself described the failure; otherwise the payload is made from the other two.
    """

    error_type: str
    message: str
    error_json: bytes = b""


class Outcome(NamedTuple):
    """How an invocation ended. At most one of `failure_json` and `service_reason` is set."""

    payload: bytes = b""
    """What is left of the body to send, when the invocation succeeded."""
    failure_json: bytes | None = None
    """The function error, when the function failed: of hostile code it may be empty. None when it succeeded."""
    service_reason: str = ""
    """AWS name of the service error, when the call failed outside the function."""
    service_message: str = ""
    dispatched: bool = False
    """With a service error: True when the runtime has got the invocation, so that it may have run."""
    error_type: str = ""
    """Written to the REPORT line; empty for a success and for an exception that the handler raised."""
    timed_out: bool = False
    error_line: str = ""
    """Platform line that stands before END; empty when there is none."""


class Figures(NamedTuple):
    """What an invocation cost."""

    duration_us: int
    billed_duration_ms: int
    init_duration_us: int
    max_memory_used_mib: int
    cold_start: bool
    restore_duration_us: int = 0


class Lifetime(NamedTuple):
    """How long environments are to serve."""

    invocations: float = math.inf
    age_s: float = math.inf


class Facts(NamedTuple):
    """What never changes about an environment."""

    version: str
    """Version of the function, "$LATEST" or a number."""
    memory_mib: int
    init_start_line: str
    most_invocations: float = math.inf
    """After so many it is spent."""
    spent_at: float = math.inf
    """Monotonic time from which on it is spent."""
    snap_start: bool = False
    """True when it is initialised ahead: its runtimes are restored before their first invocation."""
    init_timeout_s: float = INIT_TIMEOUT_S
    restore_start_line: str = ""


class Environment(NamedTuple):
    """State of one execution environment. Replaced, never changed."""

    facts: Facts
    phase: Phase = Phase.STARTING
    runtime: RuntimeState = RuntimeState.ABSENT
    deadline: float = math.inf
    """Monotonic time at which a `Tick` has something to do."""
    init_started: float = 0.0
    init_duration_us: int = 0
    """Of the first init when it succeeded; what a cold start reports."""
    invocations: int = 0
    """Taken so far, the present one included."""
    restored: bool = False
    """True when its runtime has run the hooks that stand before its first invocation, or has none."""
    restore_started: float = 0.0
    restore_duration_us: int = 0
    """Of the restore before the present invocation; 0 when there was none."""
    idle_since: float = 0.0
    """When the last invocation ended, or the last runtime came or went without one."""
    announced: bool = False
    """True once the scheduler was told that the environment can serve."""
    invocation: Invocation | None = None
    started: float = 0.0
    """When the invocation came."""
    cold: bool = False
    """True when the invocation is the environment's first."""
    start_logged: bool = False
    """True when the START line of the invocation has been written."""
    outcome: Outcome | None = None
    """Decided, to be answered when the runtime is dead."""
    ended: float = 0.0
    """When the runtime that is being killed had failed."""
    failed_init: RuntimeFailure | None = None
    """Why the runtime that is being killed did not come through its init. An empty type means a timeout."""
    proven: bool = False
    """True once a runtime has come through its init."""
    failed_inits: int = 0
    """Inits in a row that failed."""
    cpu_limited: bool = False
    """True once the sandbox's CPU quota is in force."""
    restart: bool = False
    """True when a new runtime is to start once the old one is dead."""
    stop_reason: str = ""
    """Set when the environment is to end after its invocation."""

    def is_spent(self, now: float) -> bool:
        """Tell whether it has served often or long enough."""
        return self.invocations >= self.facts.most_invocations or now >= self.facts.spent_at


# Events


@dataclass(frozen=True, slots=True)
class SandboxReady:
    """The sandbox has its limits and its code."""


@dataclass(frozen=True, slots=True)
class SandboxLost:
    """The sandbox could not be made, or its first process is gone."""

    reason: str
    message: str
    max_memory_used_mib: int = 0


@dataclass(frozen=True, slots=True)
class RuntimeReady:
    """The runtime has loaded the handler; its own word of what that took may be any number."""

    load_us: int = 0


@dataclass(frozen=True, slots=True)
class RuntimeRestored:
    """The runtime has run the hooks that stand before its first invocation."""


@dataclass(frozen=True, slots=True)
class RuntimeFailed:
    """The runtime reported an init error, exited, or broke the protocol."""

    failure: RuntimeFailure
    max_memory_used_mib: int


@dataclass(frozen=True, slots=True)
class RuntimeKilled:
    """No process of the runtime is left, and its output has been read. The memory is what the killed one used."""

    max_memory_used_mib: int


@dataclass(frozen=True, slots=True)
class Open:
    """A scheduler wants an invocation to run."""

    invocation: Invocation


@dataclass(frozen=True, slots=True)
class Finished:
    """The handler answered; everything it printed has been read."""

    outcome: Outcome
    max_memory_used_mib: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The caller no longer wants the running invocation."""

    wall_time: str
    """ISO 8601 in UTC, for the log."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; perhaps the deadline."""

    wall_time: str
    """ISO 8601 in UTC, for the log."""


@dataclass(frozen=True, slots=True)
class Rest:
    """The environment has been idle for a while, and is to use no CPU until it is used."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The environment is to end."""

    reason: str
    drain: bool
    max_memory_used_mib: int


Event = (
    SandboxReady
    | SandboxLost
    | RuntimeReady
    | RuntimeRestored
    | RuntimeFailed
    | RuntimeKilled
    | Open
    | Finished
    | Cancelled
    | Tick
    | Rest
    | Stop
)


# Actions


@dataclass(frozen=True, slots=True)
class StartRuntime:
    """Start a runtime in the sandbox."""


@dataclass(frozen=True, slots=True)
class KillRuntime:
    """Kill every process but the sandbox's first, read what they printed, then say RuntimeKilled."""


@dataclass(frozen=True, slots=True)
class ReplaceSandbox:
    """Take the sandbox down and make a new one of the same function, then say RuntimeKilled."""


@dataclass(frozen=True, slots=True)
class LimitCpu:
    """Put the CPU quota into force."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """Stop every process in the sandbox, its first one too."""


@dataclass(frozen=True, slots=True)
class Thaw:
    """Let them run again. What is sent to them meanwhile waits."""


@dataclass(frozen=True, slots=True)
class SendRestore:
    """Have the runtime run the hooks that stand before its first invocation, then say RuntimeRestored."""


@dataclass(frozen=True, slots=True)
class SendInvoke:
    """Hand the invocation to the runtime."""


@dataclass(frozen=True, slots=True)
class WriteLog:
    """Write a platform line to the function's log."""

    line: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The invocation is over."""

    outcome: Outcome
    figures: Figures


@dataclass(frozen=True, slots=True)
class Refuse:
    """The environment cannot take the invocation; it was not dispatched."""

    message: str


@dataclass(frozen=True, slots=True)
class ReportReady:
    """Tell the scheduler that the environment can serve, and what came after the sandbox was ready."""

    runtime_us: int
    """Until the runtime began to load the handler, and for its word that it has; 0 of an init that failed."""
    init_us: int
    """For loading the handler; of an init that failed, for all of it."""
    init_error: str = ""
    """Why the init failed, for a person; empty when it succeeded."""


@dataclass(frozen=True, slots=True)
class ReportSpent:
    """Tell the scheduler that the environment is to be stopped, and not be used.

    It has served as long as it is to; or, with SnapStart, it has lost the runtime that was prepared.
    """


@dataclass(frozen=True, slots=True)
class Close:
    """Take the sandbox down, frozen or not, give its resources back, then tell the scheduler."""

    reason: str
    message: str


Action = (
    StartRuntime
    | KillRuntime
    | ReplaceSandbox
    | LimitCpu
    | Freeze
    | Thaw
    | SendRestore
    | SendInvoke
    | WriteLog
    | Answer
    | Refuse
    | ReportReady
    | ReportSpent
    | Close
)
