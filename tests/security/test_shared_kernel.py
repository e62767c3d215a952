"""What all environments have in common, the kernel and the zygote: what one takes or learns of it harms no other."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest

from tests.security.target import SYSTEM_CALLS, Attack, Target

MIB = 1 << 20


def number(path: str) -> int:
    """A counter of the kernel's."""
    return int(Path(path).read_text())


def udp_memory_mib() -> int:
    """Memory that all UDP sockets of the machine hold."""
    lines = Path("/proc/net/sockstat").read_text().splitlines()
    [pages] = [int(line.split()[-1]) for line in lines if line.startswith("UDP:")]
    return pages * resource.getpagesize() // MIB


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")
async def test_asynchronous_io_of_the_machine_cannot_be_used_up(attack: Attack) -> None:
    """`fs.aio-max-nr` is one number for all: with it used up, databases on the host do not start."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    made = 0
    while call(206, event, ctypes.byref(ctypes.c_long(0))) == 0:
        made += 1
    return made
"""
    )
    most, before = number("/proc/sys/fs/aio-max-nr"), number("/proc/sys/fs/aio-nr")
    made = await attack(source, 4000)
    assert number("/proc/sys/fs/aio-nr") - before < most // 8
    assert made == 0


async def test_buffers_of_sockets_count_as_memory(attack: Attack) -> None:
    """Datagrams that nobody reads are a way to hold memory of the machine outside of the limit."""
    source = """
import socket
kept = []
def handler(event, context):
    held = 0
    while held < event and len(kept) < 900:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(("127.0.0.1", 0))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
        one.setblocking(False)
        kept.append(one)
        try:
            for _ in range(20):
                held += one.sendto(bytes(40_000), one.getsockname())
        except OSError:
            continue
    return held
"""
    before = udp_memory_mib()
    await attack(source, 240 * MIB, memory_mib=128)
    assert udp_memory_mib() - before <= 160


async def test_command_line_tells_nothing_of_the_host(attack: Attack, target: Target) -> None:
    """Neither where the cluster keeps its data nor the agent's PID."""
    source = """
def handler(event, context):
    return [open(f"/proc/{pid}/cmdline").read().split("\\0") for pid in ("self", "1")]
"""
    for arguments in await attack(source):
        assert not [one for one in arguments if str(target.data_dir) in one]
        assert str(target.agent.pid) not in arguments


async def test_environment_is_not_the_agent_s(attack: Attack, target: Target) -> None:
    """What the agent was started with may be secret, and is the host's business anyway."""
    source = """
import os
def handler(event, context):
    return [open("/proc/self/environ").read(), sorted(os.environ)]
"""
    initial, names = await attack(source)
    assert target.agent.environ()
    assert not [value for value in target.agent.environ().values() if len(value) > 8 and value in initial]
    assert not {name for name in names if name.startswith("LAMBENT")}
    assert "SECURITY_TEST" not in names


async def test_random_numbers_are_of_one_environment_alone(target: Target) -> None:
    """All are forks of one process, whose generators they would go on with; and their PIDs are the same."""
    source = """
import os, random, secrets, ssl, tempfile, uuid
def handler(event, context):
    return [random.random(), random.SystemRandom().random(), secrets.token_hex(), ssl.RAND_bytes(16).hex(),
            uuid.uuid4().hex, uuid.uuid1().hex, next(tempfile._get_candidate_names()), os.urandom(8).hex()]
"""
    drawn = []
    for _ in range(4):
        name = await target.deploy(source)
        drawn.append((await target.client.invoke(name)).json())
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == len(drawn)
