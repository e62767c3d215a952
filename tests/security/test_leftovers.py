"""Processes that mean to outlive their call, their environment or a signal do not outlive the environment."""

from __future__ import annotations

import os

import pytest

import lambent
from lambent_supervisor.processes import ProcessId
from tests.security.siege import Attacker, wait_until_ended
from tests.security.target import Target

DAEMON = """
import os, signal, time

def detach(action):
    "A grandchild in a session of its own, whose parent has ended; waits until it says that it runs."
    ready = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                continue
        os.write(ready[1], b".")
        action()
        os._exit(0)
    os.wait()
    os.read(ready[0], 1)

def rest():
    while True:
        time.sleep(1000)
"""

OUTLIVERS = {
    "daemon": "detach(rest)",
    "thirty-daemons": "[detach(rest) for _ in range(30)]",
    "stopped-daemon": "detach(lambda: os.kill(os.getpid(), signal.SIGSTOP))",
    "parent-of-a-process-that-it-traces": "detach(lambda: trace())",
    "program-of-the-system": "detach(lambda: os.execv('/usr/bin/sleep', ['sleep', '1000']))",
    "one-that-renames-itself-to-the-reaper": "detach(lambda: (ctypes.CDLL(None).prctl(15, b'lambent-reaper'), rest()))",
    "one-that-forks-and-leaves-again-and-again": "detach(lambda: hop())",
}
"""Ways to go on after the handler has returned."""

OUTLIVER = (
    DAEMON
    + """
import ctypes

def trace():
    if os.fork() == 0:
        ctypes.CDLL(None).ptrace(0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
    rest()

def hop():
    "A process that is never the same for long: no pid to send a signal to."
    while os.fork() == 0:
        time.sleep(0.001)
    os._exit(0)

def attack(event):
    eval(event)
    return "left"
"""
)


def files_of(uid: int) -> list[str]:
    """What a UID has in the directories of the host where everybody may write."""
    found = []
    for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run"):
        if os.path.isdir(folder):
            found += [entry.path for entry in os.scandir(folder) if _owner(entry.path) == uid]
    return found


def _owner(path: str) -> int:
    try:
        return os.lstat(path).st_uid
    except (FileNotFoundError, ProcessLookupError):
        return -1


@pytest.mark.parametrize("way", OUTLIVERS.values(), ids=OUTLIVERS)
async def test_background_process_ends_with_its_environment(target: Target, way: str) -> None:
    """It may go on between calls, as on AWS; once the function is deleted the host has nothing of it."""
    attacker = await Attacker.settle(target, OUTLIVER, memory_mib=512)
    assert await attacker.besiege(way) == "left"
    while len(alive := attacker.processes()) <= 2:  # the reaper and the runtime; of what hops not every look sees one
        await attacker.is_calm()
    await attacker.is_calm()
    await attacker.end()
    await wait_until_ended(alive)
    assert attacker.left() == []
    assert files_of(attacker.uid) == []


async def test_time_out_leaves_no_child_behind(target: Target) -> None:
    """All that the call has started ends with it; the environment serves on."""
    source = (
        OUTLIVER
        + """
def attack(event):
    for _ in range(20):
        detach(rest)
        if os.fork() == 0:
            rest()
    rest()
"""
    )
    attacker = await Attacker.settle(target, source, memory_mib=512, timeout_s=2)
    seen: set[ProcessId] = set()

    def look() -> None:
        if len(now := attacker.processes()) > 2:  # not only the reaper and the next runtime
            seen.update(now)

    outcome = await attacker.besiege(look=look)
    assert outcome.error_type == "Sandbox.Timedout"
    assert len(seen) >= 42
    assert [process for process in seen if process.is_running()] == [attacker.reaper]
    await attacker.is_calm()
    assert len(attacker.processes()) == 2


async def test_zombies_do_not_stay(target: Target) -> None:
    """Orphans that end are collected by the reaper, and what a handler does not wait for ends with the environment."""
    source = (
        DAEMON
        + """
def attack(event):
    for _ in range(100):
        detach(lambda: None)
    for _ in range(100):
        if os.fork() == 0:
            os._exit(0)
    return "left"
"""
    )
    attacker = await Attacker.settle(target, source, memory_mib=1024)
    assert await attacker.besiege() == "left"
    assert len([text for text in attacker.processes().values() if text.endswith(" Z")]) <= 110
    await attacker.end()
    assert attacker.left() == []


async def test_what_one_function_leaves_in_tmp_is_gone_for_the_next(target: Target) -> None:
    """/tmp, memory segments and queues end with the environment, whoever has its slot next."""
    source = """
import ctypes, os

def attack(event):
    libc = ctypes.CDLL(None)
    os.makedirs("/tmp/left/behind", exist_ok=True)
    os.chmod("/tmp/left", 0)
    return [libc.shmget(0x5AFE, 4096, 0o1666) >= 0, libc.msgget(0x5AFE, 0o1666) >= 0]
"""
    attacker = await Attacker.settle(target, source)
    assert await attacker.attack() == [True, True]
    await attacker.end()
    source = """
import ctypes, os

def attack(event):
    libc = ctypes.CDLL(None)
    return [os.listdir("/tmp"), libc.shmget(0x5AFE, 0, 0), libc.msgget(0x5AFE, 0)]
"""
    for _ in range(3):
        other = await Attacker.settle(target, source)
        assert await other.attack() == [[], -1, -1]
        await other.end()


STORM = """
import os, signal, time

def storm(pid, numbers, rounds):
    for _ in range(rounds):
        for number in numbers:
            try:
                os.kill(pid, number)
            except OSError as error:
                if error.errno != 11:  # the queue of real-time signals is full
                    raise
"""


async def test_signals_to_pid_1_of_the_sandbox_do_nothing(target: Target) -> None:
    """The kernel delivers to PID 1 only what it has a handler for."""
    source = (
        STORM
        + """
def attack(event):
    storm(1, range(1, 65), 500)
    return os.getpid()
"""
    )
    attacker = await Attacker.settle(target, source, memory_mib=1024)
    pid = await attacker.besiege()
    assert await attacker.attack() == pid
    assert attacker.reaper.is_running()
    await attacker.is_calm()


SELF_INFLICTED = {
    "SIGTERM": ("storm(os.getpid(), [15], 1)", "signal: terminated"),
    "SIGKILL": ("storm(os.getpid(), [9], 1)", "signal: killed"),
    "SIGSEGV": ("storm(os.getpid(), [11], 1)", "signal: segmentation fault"),
    "SIGSTOP": ("storm(os.getpid(), [19], 1)", "Task timed out after 1.00 seconds"),
    "everybody": ("os.fork() == 0 and storm(-1, [9], 1)", "signal: killed"),
    "process-group": ("os.killpg(0, 9)", "signal: killed"),
    "from-a-child": (
        "os.fork() == 0 and (storm(os.getppid(), [28, 17, 10], 1000), os._exit(0)) or time.sleep(1000)",
        "signal: user defined signal 1",
    ),
}


@pytest.mark.parametrize(("action", "message"), SELF_INFLICTED.values(), ids=SELF_INFLICTED)
async def test_signals_to_its_own_runtime_cost_the_function_one_call(target: Target, action: str, message: str) -> None:
    """The reaper notices, says what happened, and the next call has a new runtime in the same sandbox."""
    source = (
        STORM
        + """
def attack(event):
    eval(event)
    time.sleep(1000)
"""
    )
    attacker = await Attacker.settle(target, source, timeout_s=1)
    outcome = await attacker.besiege(action)
    assert isinstance(outcome, lambent.FunctionError)
    assert message in outcome.error_message
    await attacker.is_calm()
    assert attacker.reaper.is_running()
    assert len(attacker.processes()) == 2
