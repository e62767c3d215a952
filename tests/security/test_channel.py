"""Function code holds the control channel: whatever it writes there, the agent lives and the next call is answered."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil
import pytest

import lambent
from tests.security import fuzz_channel
from tests.security.siege import Attacker, agent_at_work, during, wait_until_ended
from tests.security.target import Target

MIB = 1 << 20
VIOLATION = "Runtime exited with error: protocol violation: "

CHANNEL = """
import array, os, socket, stat, struct, sys, time

READY, INIT_ERROR, RESULT, ERROR, CHUNK, STREAM_END, STREAM_ERROR, TOO_LARGE = range(10, 18)
INVOKE = 1

def channel():
    "The control channel, found as any code of the function may find it."
    for number in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                return socket.socket(fileno=os.dup(number))
        except OSError:
            continue

def key():
    "The key of the invocation that runs, found as any code in the runtime's process may find it."
    place = sys._getframe()
    while "header" not in place.f_locals:
        place = place.f_back
    return place.f_locals["header"].key

def frame(kind, body=b"", length=None, key=key):
    return struct.pack(">IB", len(body) if length is None else length, kind) + key() + body

"""

WRITE = (
    CHANNEL
    + """
def attack(event):
    channel().sendall(eval(event))
    time.sleep(1000)
"""
)

FORGED = {
    "ready-twice": ("frame(READY)", VIOLATION + "a second READY"),
    "chunk-that-nobody-asked-for": ("frame(CHUNK, b'x')", VIOLATION + "CHUNK that nobody asked for"),
    "unknown-kind": ("frame(99)", VIOLATION + "frame of unknown kind 99"),
    "kind-of-the-agent-s": ("frame(INVOKE, b'x')", VIOLATION + "frame of unknown kind 1"),
    "error-over-its-bound": ("frame(ERROR, b'', 262145)", VIOLATION + "ERROR frame of 262145 bytes, more than 262144"),
    "chunk-of-4-gib": ("frame(CHUNK, b'', 0xFFFFFFFF)", VIOLATION + "CHUNK frame of 4294967295 bytes"),
    "ready-over-its-bound": ("frame(READY, bytes(5))", VIOLATION + "READY frame of 5 bytes, more than 4"),
    "garbage": ("b'GET / HTTP/1.1\\r\\n' * 1000", VIOLATION + "frame of unknown kind 47"),
    "half-a-header": ("b'\\0\\0'", "Task timed out after 1.00 seconds"),
    "half-a-result": ("frame(RESULT, b'x', 100)", "Task timed out after 1.00 seconds"),
    "half-a-result-of-4-gib": ("frame(RESULT, bytes(64 << 20), 0xFFFFFFFF)", "Task timed out after 1.00 seconds"),
}
"""What is written in place of an answer, and the message of the error that the caller gets."""


@pytest.mark.parametrize(("written", "message"), FORGED.values(), ids=FORGED)
async def test_forged_frame_fails_its_own_call_alone(target: Target, written: str, message: str) -> None:
    """The runtime is killed, its sandbox stays, and what it wrote is not kept."""
    attacker = await Attacker.settle(target, WRITE, memory_mib=256, timeout_s=1)
    before = target.agent.memory_info().rss
    outcome = await attacker.besiege(written)
    assert message in outcome.error_message
    assert target.agent.memory_info().rss - before < 32 * MIB
    await attacker.is_calm()
    assert attacker.reaper.is_running()


BODIES = {
    "no-text": "b'\\xff\\xfe'",
    "nothing": "b''",
    "other-types": 'b\'{"errorType": ["x"], "errorMessage": {}, "stackTrace": 3}\'',
    "nested": "b'[' * 200000",
}
"""What is written where the JSON of an error should be."""


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(kind, text, id=f"{kind}-{name}")
        for kind in ("INIT_ERROR", "ERROR", "STREAM_ERROR")
        for name, text in BODIES.items()
    ],
)
async def test_forged_error_is_an_error_of_this_call(target: Target, kind: str, body: str) -> None:
    """Neither agent nor scheduler nor the caller's SDK believes that it is the JSON that it should be."""
    attacker = await Attacker.settle(target, WRITE)
    assert isinstance(await attacker.attack(f"frame({kind}, {body}) + frame(99)"), lambent.FunctionError)
    await attacker.is_calm()
    assert attacker.reaper.is_running()


async def test_answer_in_advance_is_not_the_next_call_s(target: Target) -> None:
    """A second RESULT behind the first belongs to nobody; the next call gets its own answer or waits for a runtime."""
    attacker = await Attacker.settle(target, WRITE)
    for _ in range(5):
        assert await attacker.attack("frame(RESULT, b'1') + frame(RESULT, b'\"forged\"') * 20") == 1
        await attacker.is_calm()
    assert attacker.reaper.is_running()


async def test_late_answer_of_one_call_is_not_the_next_call_s(target: Target) -> None:
    """A handler that forged its answer goes on and returns while the next call waits for its own."""
    source = (
        CHANNEL
        + """
def attack(event):
    channel().sendall(frame(RESULT, b'"forged"'))
    time.sleep(1)
    return ["stale", "stale"]
"""
    )
    attacker = await Attacker.settle(target, source)
    assert await attacker.attack() == "forged"
    started = time.monotonic()
    await attacker.is_calm()
    assert time.monotonic() - started > 0.5, "the same runtime answers it, once it is free"


KEYS = {
    "of-an-earlier-call": "old",
    "of-no-call": "bytes(8)",
    "one-after-the-earlier-call-s": "(int.from_bytes(old, 'big') + 1 & (1 << 64) - 1).to_bytes(8, 'big')",
}


@pytest.mark.parametrize("wrong", KEYS.values(), ids=KEYS)
async def test_answer_under_another_key_is_nobody_s(target: Target, wrong: str) -> None:
    """What was known before a call came does not answer it, however often it is tried; the call gets its own answer."""
    source = (
        CHANNEL
        + """
old = b""

def attack(event):
    global old
    made, wrong = channel(), eval(event) if old else b""
    old = old or key()
    if wrong:
        made.sendall(b"".join(frame(kind, b"" if kind in (TOO_LARGE, STREAM_END) else b'"forged"', key=lambda: wrong)
                              for kind in (RESULT, ERROR, TOO_LARGE, STREAM_ERROR, CHUNK, STREAM_END)) * 500)
    return "own"
"""
    )
    attacker = await Attacker.settle(target, source)
    assert await attacker.attack(wrong) == "own"
    assert await attacker.attack(wrong) == "own"
    await attacker.is_calm()
    assert attacker.reaper.is_running()


async def test_late_answers_between_calls_end_the_runtime(target: Target) -> None:
    """While no call waits nothing may come, whatever its key: what would go on for ever is ended."""
    source = (
        CHANNEL
        + """
def attack(event):
    made, late = channel(), frame(RESULT, b"1", key=lambda: bytes(8))
    if os.fork() == 0:
        while True:
            made.send(late)
    return os.getpid()
"""
    )
    attacker = await Attacker.settle(target, source)
    runtime = [process for process in attacker.processes() if process != attacker.reaper]
    await attacker.attack()
    await wait_until_ended(runtime)
    await attacker.is_calm()
    assert attacker.reaper.is_running()


async def test_answer_between_calls_is_nobody_s(target: Target) -> None:
    """A process in the background that goes on writing answers: no other call of this function gets one of them."""
    source = (
        CHANNEL
        + """
def attack(event):
    made, forged = channel(), frame(TOO_LARGE)
    if os.fork() == 0:
        while True:
            made.send(forged)
    time.sleep(1000)
"""
    )
    attacker = await Attacker.settle(target, source, timeout_s=2)
    runtime = [process for process in attacker.processes() if process != attacker.reaper]
    outcome = await attacker.attack()
    assert isinstance(outcome, lambent.FunctionError)
    await wait_until_ended(runtime)  # a call that is sent before would wait for a handler that sleeps
    await attacker.is_calm()
    assert len(attacker.processes()) == 2
    await target.neighbour.answers(target.client)


TINY_FRAMES = (
    CHANNEL
    + """
def handler(event, context):
    return flood(event, key()) if event else b"calm"

def flood(event, key):
    piece, made = frame(CHUNK, b"x" * event["size"], key=lambda: key) * 10000, channel()
    end = time.monotonic() + 0.8
    sent = 0
    while time.monotonic() < end:
        made.sendall(piece)
        sent += 10000
    yield str(sent).encode().rjust(12)
"""
)


async def stream(target: Target, name: str, size: int) -> int:
    """Invoke for a stream and give the number that is its end."""
    last = b""
    async for piece in target.client.stream(name, {"size": size}):
        last = (last + piece)[-12:]
    return int(last)


async def test_flood_of_tiny_frames_does_not_stop_the_agent(target: Target) -> None:
    """A hundred thousand frames of a stream: nothing is kept of them, and the neighbour is answered between them."""
    name = await target.deploy(TINY_FRAMES, memory_mib=1024, timeout_s=20)
    assert (await target.client.invoke(name)).payload == b"calm"
    before = target.agent.memory_info().rss
    used: list[int] = []
    attack = asyncio.create_task(stream(target, name, 1))
    answered = await during(target, attack, lambda: used.append(target.agent.memory_info().rss))
    assert await attack > 50_000
    assert answered >= 2
    assert max(used) - before < 64 * MIB
    assert (await target.client.invoke(name)).payload == b"calm"


@pytest.mark.parametrize("size", [0, 1])
async def test_flood_of_tiny_frames_does_not_take_the_agent_s_time(target: Target, size: int) -> None:
    """A frame costs the agent a hundred times what it costs who writes it; one function may not hold all others up."""
    name = await target.deploy(TINY_FRAMES, memory_mib=1024, timeout_s=20)
    await target.client.invoke(name)
    slowest_s = 0.0
    with agent_at_work(target) as work:
        attack = asyncio.create_task(stream(target, name, size))
        while not attack.done():
            started = time.monotonic()
            await target.neighbour.answers(target.client)
            slowest_s = max(slowest_s, time.monotonic() - started)
    if size:
        assert await attack > 50_000
        assert work.share < 0.5
    else:
        with pytest.raises(lambent.FunctionError, match="CHUNK of nothing"):
            await attack
    assert slowest_s < 0.15


LEAVE = {
    "every-descriptor-closed": "os.closerange(0, 1 << 16)",
    "channel-shut-down": "channel().shutdown(socket.SHUT_RDWR)",
    "channel-not-read": "channel().shutdown(socket.SHUT_RD)",
    "channel-not-written": "channel().shutdown(socket.SHUT_WR)",
    "channel-replaced": "os.dup2(os.open('/dev/null', os.O_RDWR), next(n for n in range(3, 64) if "
    "os.path.exists(f'/proc/self/fd/{n}') and stat.S_ISSOCK(os.fstat(n).st_mode)))",
}


@pytest.mark.parametrize("action", LEAVE.values(), ids=LEAVE)
async def test_channel_that_is_given_up_costs_one_call(target: Target, action: str) -> None:
    """It is this one, or, when this one could still be answered, the next; the one after it has a new runtime."""
    source = (
        CHANNEL
        + """
def attack(event):
    eval(event)
    return "still here"
"""
    )
    attacker = await Attacker.settle(target, source, timeout_s=3)
    outcome = await attacker.besiege(action)
    if outcome == "still here":
        outcome = await attacker.attack("None")
    assert isinstance(outcome, lambent.FunctionError)
    await attacker.is_calm()
    assert attacker.reaper.is_running()


async def test_descriptors_sent_over_the_channel_do_not_reach_the_agent(target: Target) -> None:
    """It reads bytes alone, so that the kernel drops what comes with them."""
    source = (
        CHANNEL
        + """
def attack(event):
    made, null = channel(), os.open("/dev/null", os.O_RDONLY)
    many = array.array("i", [null] * 253)
    answer = frame(RESULT, b'"sent"')
    for byte in answer[:-1]:
        made.sendmsg([bytes([byte])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
        time.sleep(0.01)
    made.sendmsg([answer[-1:] + frame(99)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
"""
    )
    attacker = await Attacker.settle(target, source)
    before = target.agent.num_fds()
    most = [before]
    assert await attacker.besiege(look=lambda: most.append(target.agent.num_fds())) == "sent"
    assert max(most) - before < 20
    await attacker.is_calm()


PEER = """
import ctypes, errno, os, signal, socket, struct

SO_PEERPIDFD = 77

def named(action, *arguments):
    try:
        return action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def attack(event):
    made = channel()
    pid, uid, gid = struct.unpack("3i", made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    process = named(made.getsockopt, socket.SOL_SOCKET, SO_PEERPIDFD)
    answers = {"pid": pid}
    if isinstance(process, int):
        libc = ctypes.CDLL(None, use_errno=True)
        answers["signal"] = named(signal.pidfd_send_signal, process, signal.SIGKILL)
        libc.syscall(438, process, 0, 0)  # pidfd_getfd
        answers["descriptor"] = errno.errorcode[ctypes.get_errno()]
        libc.syscall(308, process, 0x20000)  # setns, CLONE_NEWNS
        answers["namespace"] = errno.errorcode[ctypes.get_errno()]
    return answers
"""


async def test_pidfd_of_the_agent_from_the_channel_gives_no_power(target: Target) -> None:
    """The kernel tells each end who made the other: neither a pid that means anything nor a handle that does."""
    attacker = await Attacker.settle(target, CHANNEL + PEER)
    agent = target.agent
    answers: dict[str, Any] = await attacker.attack()
    assert answers.pop("pid") == 0
    # A kernel before 6.5 gives no pidfd. Who is outside of the PID namespace cannot be sent a signal: EINVAL.
    assert answers in ({}, {"signal": "EINVAL", "descriptor": "EPERM", "namespace": "EPERM"})
    assert agent.status() != psutil.STATUS_ZOMBIE


async def test_log_pipe_cannot_be_read_back(target: Target) -> None:
    """Its read end is the agent's: what another process of the sandbox printed cannot be taken from it."""
    source = """
import errno, os

def attack(event):
    found = []
    for name in ("/proc/self/fd/1", "/dev/stdout"):
        try:
            found.append(os.read(os.open(name, os.O_RDONLY | os.O_NONBLOCK), 9).decode())
        except OSError as error:
            found.append(errno.errorcode[error.errno])
    return found
"""
    attacker = await Attacker.settle(target, source)
    assert await attacker.attack() == ["EACCES", "EACCES"]


def test_parser_keeps_its_word_over_pseudo_random_input() -> None:
    """The first of the million inputs that `python -m tests.security.fuzz_channel` feeds."""
    assert fuzz_channel.run(20_000) > 100_000
