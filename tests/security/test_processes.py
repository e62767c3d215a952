"""Processes of the host, of the agent and of other environments can be neither seen, read, stopped nor changed."""

from __future__ import annotations

import hashlib
import os
import platform

import psutil
import pytest

import lambent
from tests.security.target import SYSTEM_CALLS, Attack, Target

numbers_of_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")


def cluster_processes(target: Target) -> list[psutil.Process]:
    """Every process of the cluster outside of environments: its daemons, and what the agent has started itself."""
    daemons = [target.cluster.process(name) for name in ("etcd", "nats-server", "scheduler", "node-1")]
    started = [psutil.Process(daemon.pid) for daemon in (target.cluster.supervisor, *daemons)]
    return [*started, *target.agent.children()]


async def test_only_the_function_s_own_processes_are_listed(attack: Attack, target: Target) -> None:
    """Its PID namespace has its reaper as PID 1 and nothing of the host's."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    listed = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    names = [open(f"/proc/{pid}/comm").read().strip() for pid in listed]
    seen = [pid for pid in event if os.path.exists(f"/proc/{pid}") or not isinstance(attempt(os.getsid, pid), str)]
    return [listed == [1, os.getpid()], names[0], os.getppid(), seen]
"""
    )
    pids = [pid for pid in psutil.pids() if pid > 4]
    assert len(pids) > 10
    assert target.agent.pid in pids
    assert await attack(source, pids) == [True, "lambent-reaper", 1, []]


PRIVATE = ("root", "cwd", "exe", "environ", "fd", "fdinfo", "maps", "mem", "map_files", "ns", "auxv", "stack", "io")


async def test_files_of_the_reaper_are_closed(attack: Attack) -> None:
    """It has the function's UID, the control socket to the agent, and a memory full of the agent's orders."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    answers = {}
    for pid in ("1", "1/task/1"):
        for name in event:
            path = f"/proc/{pid}/{name}"
            answers[path] = attempt(lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1))
            link = attempt(os.readlink, path)
            if link != "EINVAL":
                answers[path + " link"] = link
    answers["write"] = attempt(lambda: open("/proc/1/mem", "r+b"))
    return sorted(set(map(str, answers.values()))), len(answers)
"""
    )
    kinds, count = await attack(source, PRIVATE)
    assert count > 2 * len(PRIVATE) - 2
    assert set(kinds) <= {"EACCES", "ENOENT", "ENOTDIR"}


async def test_roots_of_all_processes_lead_back_into_the_sandbox(attack: Attack) -> None:
    """`/proc/*/root` and `/proc/*/cwd` are the usual way out of a badly made one."""
    source = (
        SYSTEM_CALLS
        + """
import glob
def handler(event, context):
    own = os.stat("/")
    ways = glob.glob("/proc/[0-9]*/root") + glob.glob("/proc/[0-9]*/task/*/root") + ["/proc/self/root"]
    roots = [attempt(os.stat, way) for way in ways]
    elsewhere = [way for way, root in zip(ways, roots) if root != "EACCES" and root[:3] != own[:3]]
    shadows = {attempt(os.stat, way + path) for way in ways for path in ("/etc/shadow", "/../etc/shadow")}
    return [len(ways) >= 4, elsewhere, sorted(map(str, shadows))]
"""
    )
    assert await attack(source) == [True, [], ["EACCES", "ENOENT"]]


SCAN = (
    SYSTEM_CALLS
    + """
import hashlib, secrets
OWN = b"attacker-" + secrets.token_hex(32).encode()

def handler(event, context):
    wanted = [(b"attacker-", len(OWN), hashlib.sha256(OWN).hexdigest())]
    wanted += [(prefix.encode(), length, digest) for prefix, length, digest in event]
    found = set()
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in maps.read().splitlines():
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            if line.split()[1].startswith("r") and "/usr/" not in line and "[v" not in line:
                memory.seek(start)
                content = memory.read(end - start)
                for prefix, length, digest in wanted:
                    at = -1
                    while (at := content.find(prefix, at + 1)) >= 0:
                        if hashlib.sha256(content[at : at + length]).hexdigest() == digest:
                            found.add(digest)
    shown = open("/proc/self/environ").read() + str(dict(os.environ))
    return [found == {wanted[0][2]}, sorted(found), shown]
"""
)
"""Looks in its own memory for secrets of which it is told the first characters, the length and the SHA-256."""


async def test_memory_holds_nothing_of_agent_cluster_and_neighbour(attack: Attack, target: Target) -> None:
    """It was forked from a zygote that the agent started; what that had in memory or environment, functions have."""
    hidden = [target.neighbour.secret, target.cluster.token, target.agent.environ()["SECURITY_TEST"]]
    event = [[text[:9], len(text), hashlib.sha256(text.encode()).hexdigest()] for text in hidden]
    only_own, found, shown = await attack(SCAN, event)
    assert only_own, found
    assert not [text for text in hidden if text in shown]


@numbers_of_x86
async def test_memory_of_other_processes_cannot_be_read_or_written(target: Target) -> None:
    """By no PID, of inside or outside; a child is another process as well."""
    source = (
        SYSTEM_CALLS
        + """
import struct
def handler(event, context):
    buffer = ctypes.create_string_buffer(b"mine", 64)
    vector = struct.pack("QQ", ctypes.addressof(buffer), 64)
    answers = set()
    for pid in (*event, 1, os.getpid()):
        answers |= {call(310, pid, vector, 1, vector, 1, 0), call(311, pid, vector, 1, vector, 1, 0)}
        answers |= {call(101, request, pid, 0, 0) for request in (0, 2, 16, 0x4206)}
        answers.add(attempt(os.open, f"/proc/{pid}/mem", os.O_RDWR) if pid != os.getpid() else "ENOENT")
    return sorted(map(str, answers))
"""
    )
    victims = [process.pid for process in cluster_processes(target)]
    name = await target.deploy(source)
    answers = (await target.client.invoke(name, victims)).json()
    assert set(answers) == {"EPERM", "ENOENT", "EACCES"}
    assert {target.status(psutil.Process(pid))["TracerPid"] for pid in victims} == {"0"}


async def test_a_debugger_gets_hold_of_nothing(attack: Attack) -> None:
    """Not even of the function's own child, so that no hole of ptrace is within reach."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.set_errno(0)
        os.write(write, b"%d %d" % (_libc.ptrace(0, 0, 0, 0), ctypes.get_errno()))
        os._exit(0)
    attached = [_libc.ptrace(16, child, 0, 0), ctypes.get_errno()]
    os.waitpid(child, 0)
    return [os.read(read, 99).decode(), attached]
"""
    )
    assert await attack(source) == ["-1 1", [-1, 1]]


KILL = (
    SYSTEM_CALLS
    + """
import signal
def handler(event, context):
    own = {0, 1, os.getpid()}
    signals = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, 0)
    hit = [pid for pid in event if pid not in own for number in signals
           if attempt(os.kill, pid, number) != "ESRCH"]
    groups = [pid for pid in event if pid not in own if attempt(os.killpg, pid, signal.SIGKILL) != "ESRCH"]
    opened = [pid for pid in event if pid not in own if attempt(os.pidfd_open, pid) not in ("ESRCH", "EINVAL")]
    return [hit, groups, opened]
"""
)


async def test_processes_of_the_host_cannot_be_signalled(target: Target) -> None:
    """Their PIDs mean nothing inside; all of the cluster's are alive and go on."""
    before = cluster_processes(target)
    name = await target.deploy(KILL)
    assert (await target.client.invoke(name, psutil.pids())).json() == [[], [], []]
    assert all(process.is_running() for process in before)
    assert cluster_processes(target) == before
    assert psutil.STATUS_STOPPED not in {process.status() for process in before}


async def test_signal_to_all_reaches_the_environment_alone(target: Target) -> None:
    """`kill(-1)` ends what the function has started; its reaper and everybody else live."""
    source = (
        SYSTEM_CALLS
        + """
import signal
def handler(event, context):
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    answers = [attempt(os.kill, -1, number) for number in (signal.SIGTERM, signal.SIGKILL)] if event else []
    os.kill(child, signal.SIGKILL)
    return [os.getuid(), answers, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
"""
    )
    before = cluster_processes(target)
    name = await target.deploy(source.replace("def handler", "signal.signal(15, signal.SIG_IGN)\ndef handler"))
    first = await target.client.invoke(name, True)
    uid, answers, status = first.json()
    [reaper] = [process for process in target.processes_of(uid) if process.name() == "lambent-reaper"]
    assert (answers, status) == ([None, None], -9)
    second = await target.client.invoke(name, False)
    assert second.environment_id == first.environment_id
    assert reaper.is_running()
    assert all(process.is_running() for process in before)
    assert cluster_processes(target) == before


async def test_signals_to_the_reaper_do_nothing(target: Target) -> None:
    """PID 1 gets none for which it has no handler."""
    source = (
        SYSTEM_CALLS
        + """
import signal
def handler(event, context):
    answers = {number: attempt(os.kill, 1, number) for number in signal.valid_signals()}
    pidfd = os.pidfd_open(1)
    answers.update({-number: attempt(signal.pidfd_send_signal, pidfd, number) for number in (9, 15, 19)})
    queued = [call(129, 1, number, bytes(128)) for number in (9, 19, 34)]
    return [os.getuid(), len(answers)]
"""
    )
    name = await target.deploy(source)
    first = await target.client.invoke(name)
    uid, sent = first.json()
    assert sent > 60
    [reaper] = [process for process in target.processes_of(uid) if process.name() == "lambent-reaper"]
    assert reaper.status() != psutil.STATUS_STOPPED
    assert (await target.client.invoke(name)).environment_id == first.environment_id
    assert reaper.is_running()


async def outcome(target: Target, name: str, event: bool) -> str:
    """Invoke: the answer, or the name of the error."""
    try:
        return str((await target.client.invoke(name, event)).json())
    except (lambent.FunctionError, lambent.UnavailableError) as error:
        return type(error).__name__


async def test_a_reaper_whose_limits_were_lowered_is_replaced(target: Target) -> None:
    """It has the function's UID, so the kernel allows that: it is the function's own environment that suffers."""
    source = (
        SYSTEM_CALLS
        + """
import resource
def handler(event, context):
    if event:
        answers = [attempt(resource.prlimit, 1, limit, (0, 0)) for limit in (resource.RLIMIT_NOFILE,
                   resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE)]
        attempt(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
        attempt(os.setpriority, os.PRIO_PROCESS, 1, 19)
        os._exit(3)
    return "alive"
"""
    )
    name = await target.deploy(source)
    for _ in range(2):
        assert await outcome(target, name, True) != "alive"
        # The invocation that finds the environment broken may fail; then there is a new one.
        assert "alive" in [await outcome(target, name, False) for _ in range(3)]


async def test_limits_and_priorities_of_others_cannot_be_set(attack: Attack, target: Target) -> None:
    """Neither of the host's processes nor above the function's own limits."""
    source = (
        SYSTEM_CALLS
        + """
import resource
def handler(event, context):
    outside = set()
    for pid in event:
        outside.add(attempt(resource.prlimit, pid, resource.RLIMIT_CPU, (1, 1)))
        outside.add(attempt(os.setpriority, os.PRIO_PROCESS, pid, 19))
        outside.add(attempt(os.sched_setaffinity, pid, {0}))
        outside.add(attempt(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0)))
    def raised(limit, value):
        try:
            resource.setrlimit(limit, (value, value))
        except ValueError:
            return "EPERM"
    own = [raised(resource.RLIMIT_NOFILE, 4096), raised(resource.RLIMIT_NPROC, 4096),
           raised(resource.RLIMIT_MEMLOCK, 1 << 30), raised(resource.RLIMIT_MSGQUEUE, 1 << 30),
           raised(resource.RLIMIT_CORE, 1 << 30)]
    faster = [attempt(os.nice, -5), attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
              attempt(os.sched_setscheduler, 0, os.SCHED_RR, os.sched_param(1))]
    adjust = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    return [sorted(outside), own, faster, [attempt(os.write, adjust, score) for score in (b"-1000", b"-1")]]
"""
    )
    victims = cluster_processes(target)
    before = [(process.nice(), process.cpu_affinity()) for process in victims]
    outside, own, faster, oom = await attack(source, [process.pid for process in victims])
    assert (outside, own) == (["EPERM", "ESRCH"], ["EPERM"] * 5)
    assert set(faster) <= {"EPERM", "EACCES"}
    assert oom == ["EACCES", "EACCES"]
    assert [(process.nice(), process.cpu_affinity()) for process in victims] == before


def set_id_programs() -> list[str]:
    """Programs of the host that run as another user, whoever starts them."""
    directories = ("/usr/bin", "/usr/sbin", "/usr/local/bin")
    found = [entry.path for path in directories for entry in os.scandir(path) if not entry.is_symlink()]
    return [path for path in found if os.stat(path).st_mode & 0o6000]


async def test_set_id_programs_run_as_the_function(attack: Attack) -> None:
    """The kernel tells each program, in its auxiliary vector, as whom it runs: ld.so(8), LD_SHOW_AUXV."""
    source = (
        SYSTEM_CALLS
        + """
import subprocess
def handler(event, context):
    ids = {str(os.getuid())}
    answers = {}
    for path in event:
        program = subprocess.Popen([path, "--version"], env={"LD_SHOW_AUXV": "1"}, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        vector = {}
        while not vector.keys() >= {"AT_UID", "AT_EUID", "AT_GID", "AT_EGID", "AT_SECURE"}:
            name, _, value = program.stdout.readline().decode().partition(":")
            vector[name] = value.strip()
        program.kill()
        program.communicate()
        answers[path] = [{vector[name] for name in ("AT_UID", "AT_EUID", "AT_GID", "AT_EGID")} == ids,
                         vector["AT_SECURE"]]
    return answers
"""
    )
    programs = set_id_programs()
    assert "/usr/bin/su" in programs
    assert await attack(source, programs) == {path: [True, "0"] for path in programs}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["/usr/bin/su", "-c", "id"], id="su"),
        pytest.param(["/usr/bin/mount", "-t", "tmpfs", "none", "/tmp"], id="mount"),
        pytest.param(["/usr/bin/umount", "/proc/sys"], id="umount"),
        pytest.param(["/usr/bin/unshare", "--user", "--map-root-user", "id"], id="unshare"),
        pytest.param(["/usr/bin/nsenter", "--target", "1", "--mount", "id"], id="nsenter"),
        pytest.param(["/usr/sbin/chroot", "/tmp", "id"], id="chroot"),
        pytest.param(["/usr/bin/dmesg"], id="dmesg"),
    ],
)
async def test_programs_of_administrators_fail(attack: Attack, command: list[str]) -> None:
    """They are in /usr/bin for everybody, and get as far as a function's own code."""
    source = """
import subprocess
def handler(event, context):
    ran = subprocess.run(event, capture_output=True, timeout=5, stdin=subprocess.DEVNULL)
    return [ran.returncode, b"uid=0" in ran.stdout]
"""
    status, root = await attack(source, command)
    assert status != 0
    assert not root
