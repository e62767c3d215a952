"""Whatever one environment uses up, it is its own; the neighbour on the same node is answered meanwhile."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

import lambent
from lambent_supervisor.processes import ProcessId
from tests.security.siege import Attacker, agent_at_work, during, wait_until_ended
from tests.security.target import Target

MIB = 1 << 20
MAX_PROCESSES = 742
"""AWS Lambda: RLIMIT_NPROC of a function."""

FORK_BOMB = """
import os

def attack(event):
    while True:
        try:
            os.fork()
        except OSError:
            continue
"""

THREAD_BOMB = """
import threading, time

def attack(event):
    made = 0
    try:
        while True:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            made += 1
    except RuntimeError:
        time.sleep(0.5)
        return made
"""

HEAP = """
def attack(event):
    kept = [b"x" * (1 << 20) for _ in range(4096)]
"""

MEMFD = """
import os

def attack(event):
    file = os.memfd_create("bomb")
    for _ in range(4096):
        os.write(file, bytes(1 << 20))
"""

SHARED_MEMORY = """
import ctypes

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p

def attack(event):
    for _ in range(4096):
        segment = libc.shmget(0, ctypes.c_size_t(1 << 20), 0o1600)
        assert segment >= 0, ctypes.get_errno()
        address = libc.shmat(segment, None, 0)
        ctypes.memset(address, 1, 1 << 20)
        libc.shmdt(ctypes.c_void_p(address))
"""

PAGE_CACHE = """
import os

paths = [os.path.join(folder, name) for folder, _, names in os.walk("/usr/lib") for name in names]
total = 0
for path in paths:
    if total < 400 << 20 and os.path.isfile(path) and os.path.getsize(path) > 1 << 20:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                total += len(piece)

def attack(event):
    return total >> 20
"""

DESCRIPTORS = """
import errno, os, signal, time

def fill():
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)
    except OSError as error:
        return [error.errno == errno.EMFILE, len(os.listdir("/proc/self/fd")) if error.errno != errno.EMFILE else 1024]

def attack(event):
    ready = os.pipe()
    for _ in range(100):
        if os.fork() == 0:
            os.write(ready[1], b"." if fill()[0] else b"?")
            time.sleep(1000)
    answers = b""
    while len(answers) < 100:
        answers += os.read(ready[0], 100)
    full = fill()[0]
    time.sleep(0.5)
    return [full, answers.decode()]
"""

DESCRIPTORS_IN_FLIGHT = """
import array, os, socket, time

def send(made, numbers):
    made.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))])

def attack(event):
    "Sockets that only a message in the other one still holds: garbage that the kernel must look for."
    end, refused, made = time.monotonic() + 0.8, 0, 0
    null = os.open("/dev/null", os.O_RDONLY)
    while time.monotonic() < end:
        one, other = socket.socketpair()
        try:
            send(one, [other.fileno(), *[null] * 200])
            send(other, [one.fileno(), *[null] * 200])
        except OSError:  # ETOOMANYREFS: as many are in flight as the process may have open
            refused += 1
        one.close()
        other.close()
        made += 1
    return made
"""

FULL_TMP = """
import errno, os

def attack(event):
    file = os.open("/tmp/full", os.O_WRONLY | os.O_CREAT)
    written = 0
    try:
        while True:
            written += os.write(file, bytes(1 << 20))
    except OSError as error:
        return [errno.errorcode[error.errno], written >> 20]
"""

INODES = """
import errno, os

def attack(event):
    made = 0
    try:
        os.posix_fallocate(os.open("/tmp/most", os.O_WRONLY | os.O_CREAT), 0, 510 << 20)
        while True:
            os.close(os.open(f"/tmp/{made:0250d}", os.O_WRONLY | os.O_CREAT))
            made += 1
    except OSError as error:
        return errno.errorcode[error.errno]
"""

PROCESSES_THAT_SPIN = """
import os

def attack(event):
    for _ in range(3 * os.cpu_count()):
        if os.fork() == 0:
            break
    while True:
        pass
"""

THREADS_THAT_SPIN = """
import hashlib, os, threading

def attack(event):
    for _ in range(3 * os.cpu_count()):
        threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"x", b"y", 1 << 30), daemon=True).start()
    while True:
        pass
"""

INIT_THAT_SPINS = """
import os, time

end = time.monotonic() + 1
children = []
for _ in range(3 * os.cpu_count()):
    pid = os.fork()
    if pid == 0:
        while time.monotonic() < end:
            pass
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)

def handler(event, context):
    return len(children)
"""

LOG_FLOOD = """
import os, time

def attack(event):
    piece = event.encode() * (65536 // len(event))
    end = time.monotonic() + 0.8
    while time.monotonic() < end:
        os.write(1, piece)
    return "done"
"""


def open_files() -> int:
    """Open files of the whole host."""
    return int(Path("/proc/sys/fs/file-nr").read_text().split()[0])


async def test_fork_bomb_stays_within_its_count_and_ends_with_its_call(target: Target) -> None:
    """As many processes as AWS allows and no more; when the call has timed out all of them end."""
    attacker = await Attacker.settle(target, FORK_BOMB, memory_mib=1024, timeout_s=2)
    seen: set[ProcessId] = set()
    counts = [0]

    def look() -> None:
        now = attacker.processes()
        counts.append(len(now))
        if len(now) > 2:  # not only the reaper and the next runtime
            seen.update(now)

    outcome = await attacker.besiege(look=look)
    assert outcome.error_type == "Sandbox.Timedout"
    assert 300 < max(counts) <= MAX_PROCESSES
    await wait_until_ended(seen - {attacker.reaper})
    await attacker.is_calm()


async def test_fork_bomb_is_gone_when_its_call_is_answered(target: Target) -> None:
    """A kill takes its time from nobody's share but the node's own: at once, and the environment is not lost."""
    attacker = await Attacker.settle(target, FORK_BOMB, timeout_s=1)
    outcome = await attacker.besiege()
    assert outcome.error_type == "Sandbox.Timedout"
    assert len(attacker.processes()) <= 2  # the reaper, and the next runtime
    assert attacker.reaper.is_running()


async def test_thread_bomb_stays_within_its_count(target: Target) -> None:
    """Threads count as processes do."""
    attacker = await Attacker.settle(target, THREAD_BOMB, memory_mib=1024)
    made = await attacker.besiege()
    assert 700 < made <= MAX_PROCESSES
    await attacker.is_calm()


@pytest.mark.parametrize("source", [HEAP, MEMFD, SHARED_MEMORY], ids=["heap", "memfd", "system-v-shared-memory"])
async def test_memory_bomb_is_killed_at_its_limit(target: Target, source: str) -> None:
    """The function's memory is what is used up, not the machine's; the next call finds an environment."""
    attacker = await Attacker.settle(target, source)
    used: list[int] = []
    outcome = await attacker.besiege(look=lambda: used.append(attacker.memory_bytes()))
    assert isinstance(outcome, lambent.FunctionError)
    assert outcome.error_type == "Runtime.OutOfMemory"
    assert 0 < max(used) <= 128 * MIB
    await attacker.is_calm()


async def test_page_cache_of_what_is_read_is_the_reader_s_own(target: Target) -> None:
    """Reading three times its memory, in init and at full speed, neither kills it nor takes the memory of others."""
    settling = asyncio.create_task(Attacker.settle(target, PAGE_CACHE, timeout_s=20))
    await during(target, settling)
    attacker = await settling
    assert 0 < attacker.memory_bytes() <= 128 * MIB
    assert await attacker.attack() >= 400


async def test_descriptors_run_out_for_their_owner_alone(target: Target) -> None:
    """1,024 in each of a hundred processes; agent and neighbour open what they need."""
    attacker = await Attacker.settle(target, DESCRIPTORS, memory_mib=1024, timeout_s=20)
    assert await attacker.besiege() == [True, "." * 100]
    other = await target.deploy("def handler(event, context):\n    return open('/etc/hostname').read()\n")
    assert (await target.client.invoke(other)).json() == "localhost\n"
    await attacker.is_calm()


async def test_descriptors_in_flight_are_bounded_for_the_whole_host(target: Target) -> None:
    """They are open files that no process has, and are collected as fast as a function loses them."""
    attacker = await Attacker.settle(target, DESCRIPTORS_IN_FLIGHT, memory_mib=512)
    before = open_files()
    most = [before]
    assert await attacker.besiege(look=lambda: most.append(open_files())) > 100
    assert max(most) - before < 20_000
    await attacker.is_calm()


async def test_full_tmp_is_the_function_s_own_trouble(target: Target) -> None:
    """EDQUOT at the configured size, which is twice the memory: what is written is never charged to that."""
    attacker = await Attacker.settle(target, FULL_TMP, memory_mib=256, timeout_s=60)
    used: list[int] = []
    outcome = await attacker.besiege(look=lambda: used.append(attacker.memory_bytes()))
    assert outcome == ["EDQUOT", 511]
    assert max(used) <= 256 * MIB
    await attacker.is_calm()


async def test_many_files_are_the_function_s_own_trouble(target: Target) -> None:
    """Names and inodes fill /tmp as bytes do; what the kernel keeps of them in memory it takes back."""
    attacker = await Attacker.settle(target, INODES, memory_mib=512)
    used: list[int] = []
    assert await attacker.besiege(look=lambda: used.append(attacker.memory_bytes())) == "EDQUOT"
    assert max(used) <= 512 * MIB
    await attacker.is_calm()


async def test_full_tmp_of_one_is_not_that_of_another(target: Target) -> None:
    """Each has its own size, and nobody's files but its own."""
    attacker = await Attacker.settle(target, INODES)
    assert await attacker.besiege() == "EDQUOT"
    source = (
        "import os\ndef handler(e, c):\n    return os.listdir('/tmp'), open('/tmp/own', 'wb').write(bytes(1 << 20))\n"
    )
    other = await target.deploy(source)
    assert (await target.client.invoke(other)).json() == [[], MIB]
    await attacker.is_calm()


@pytest.mark.parametrize("source", [PROCESSES_THAT_SPIN, THREADS_THAT_SPIN], ids=["processes", "threads"])
async def test_spinning_on_all_cores_takes_the_function_s_share_alone(target: Target, source: str) -> None:
    """A function of 128 MiB has 72 thousandths of a CPU, on however many cores it tries."""
    attacker = await Attacker.settle(target, source, timeout_s=1)
    before = attacker.cpu_s()
    taken: list[float] = []
    outcome = await attacker.besiege(look=lambda: taken.append(attacker.cpu_s() - before))
    assert outcome.error_type == "Sandbox.Timedout"
    assert 0 < max(taken) < 0.5
    await attacker.is_calm()


async def test_init_that_spins_on_all_cores_leaves_the_neighbour_its_share(target: Target) -> None:
    """Init runs at full speed, and shares the cores by weight."""
    name = await target.deploy(INIT_THAT_SPINS, timeout_s=20)
    attack = asyncio.create_task(target.client.invoke(name))
    answered = await during(target, attack)
    assert (await attack).json() >= 3
    assert answered > 5


@pytest.mark.parametrize("text", ["a line of a log\n", "x", "\n"], ids=["lines", "one-endless-line", "empty-lines"])
async def test_log_flood_neither_stops_nor_fills_the_agent(target: Target, text: str) -> None:
    """Output beyond the budget is dropped; what is kept of it is bounded."""
    attacker = await Attacker.settle(target, LOG_FLOOD, memory_mib=1024)
    before = target.agent.memory_info().rss
    used: list[int] = []
    assert await attacker.besiege(text, look=lambda: used.append(target.agent.memory_info().rss)) == "done"
    assert max(used) - before < 64 * MIB
    await attacker.is_calm()


@pytest.mark.parametrize("text", ["\n", "ab\n", "\xff\n"], ids=["empty-lines", "short-lines", "no-text"])
async def test_log_flood_does_not_take_the_agent_s_time(target: Target, text: str) -> None:
    """A function of whatever size may not keep the agent of all of them busy: it waits for its turns."""
    attacker = await Attacker.settle(target, LOG_FLOOD, memory_mib=1024)
    slowest_s = 0.0
    with agent_at_work(target) as work:
        attack = asyncio.create_task(attacker.attack(text))
        while not attack.done():
            started = time.monotonic()
            await target.neighbour.answers(target.client)
            slowest_s = max(slowest_s, time.monotonic() - started)
    assert await attack == "done"
    assert work.share < 0.5
    assert slowest_s < 0.15
