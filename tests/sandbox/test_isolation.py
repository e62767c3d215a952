"""What a function can see and do inside its sandbox."""

from __future__ import annotations

import pytest
from tests.sandbox_harness import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROBE = """
import os, json
def handler(event, context):
    try:
        return repr(eval(event, {**globals(), "__builtins__": __builtins__}))
    except BaseException as error:
        return type(error).__name__ + " " + str(getattr(error, "errno", ""))
"""


async def probe(world: Lab, *expressions: str) -> list[str]:
    """Evaluate expressions inside one environment."""
    async with world.function(PROBE) as function:
        return [await function.invoke(expression) for expression in expressions]


async def test_a_function_has_no_privilege(world: Lab) -> None:
    """Every capability set is empty and none can come back."""
    [status, uid, groups] = await probe(world, "open('/proc/self/status').read()", "os.getresuid()", "os.getgroups()")
    fields = {line.partition(":")[0]: line.partition(":")[2].strip() for line in eval(status).splitlines()}
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert len(set(eval(uid))) == 1
    assert eval(uid)[0] >= 0x1000_0000
    assert eval(groups) == []


async def test_the_host_is_not_there(world: Lab) -> None:
    """Nothing of the host's files, processes and interfaces but its programs."""
    root, home, shadow, processes, interfaces, sysfs, host = await probe(
        world,
        "sorted(os.listdir('/'))",
        "os.path.exists('/home') or (os.path.exists('/root') and os.listdir('/root'))",
        "open('/etc/shadow').read()",
        "[p for p in os.listdir('/proc') if p.isdigit()]",
        "[line.split(':')[0].strip() for line in open('/proc/net/dev').read().splitlines()[2:]]",
        "os.path.exists('/sys')",
        "os.uname().nodename",
    )
    assert not {"boot", "home", "mnt", "srv", "sys"} & set(eval(root))
    assert home in ("False", "[]")
    assert shadow == "FileNotFoundError 2"
    assert eval(processes) == ["1", "2"]
    assert eval(interfaces) == ["lo", "eth0"]  # the second is down, for whoever has no network
    assert (sysfs, host) == ("False", "'localhost'")


@pytest.mark.parametrize(
    "path", ["/x", "/etc/x", "/usr/x", "/var/task/x", "/dev/x", "/var/runtime/x", "/opt/x", "/proc/sys/kernel/x"]
)
async def test_only_tmp_is_writable(world: Lab, path: str) -> None:
    """Code and system are shared between environments; what one writes, another would run."""
    [written, temporary] = await probe(world, f"open({path!r}, 'w')", "open('/tmp/x', 'w').write('12')")
    assert written in ("OSError 30", "PermissionError 13", "FileNotFoundError 2")
    assert temporary == "2"


async def test_devices_are_the_harmless_five(world: Lab) -> None:
    """No disk, no terminal, no kernel memory."""
    devices, null, zero, random = await probe(
        world,
        "sorted(os.listdir('/dev'))",
        "open('/dev/null', 'w').write('x')",
        "open('/dev/zero', 'rb').read(2)",
        "len(open('/dev/urandom', 'rb').read(9))",
    )
    assert eval(devices) == ["fd", "full", "null", "random", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert [eval(null), eval(zero), eval(random)] == [1, b"\0\0", 9]


@pytest.mark.parametrize("path", ["/proc/keys", "/proc/timer_list", "/proc/kcore", "/proc/sysrq-trigger"])
async def test_masked_parts_of_proc_are_empty(world: Lab, path: str) -> None:
    """They tell of, or command, the whole machine."""
    [content] = await probe(world, f"open({path!r}, 'rb').read()")
    assert content in ("b''", "FileNotFoundError 2", "PermissionError 13")


async def test_the_reaper_cannot_be_killed_traced_or_read(world: Lab) -> None:
    """It has the function's UID and must outlive it."""
    results = await probe(
        world,
        "os.kill(1, 9)",
        "os.kill(1, 19)",
        "os.kill(1, 11)",
        "os.listdir('/proc/1/fd')",
        "open('/proc/1/mem', 'rb')",
        "__import__('ctypes').CDLL(None).ptrace(16, 1, 0, 0)",
        "1 + 1",
    )
    assert results == ["None", "None", "None", "PermissionError 13", "PermissionError 13", "-1", "2"]


async def test_limits_are_those_of_aws(world: Lab) -> None:
    """Measured there; libraries size their pools by them."""
    code = """
import resource
def handler(event, context):
    return [resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in event]
"""
    async with world.function(code) as function:
        limits = await function.invoke(["NOFILE", "NPROC", "MEMLOCK", "STACK"])
    assert limits == [[1024, 1024], [742, 742], [65536, 65536], [8388608, -1]]


async def test_a_function_holds_no_descriptor_but_its_own(world: Lab) -> None:
    """A leaked one would reach the agent or another environment."""
    [count] = await probe(world, "len(os.listdir('/proc/self/fd'))")
    assert int(count) == 5  # three standard streams, the channel, and the directory being listed


async def test_loopback_works(world: Lab) -> None:
    """Functions start local servers for themselves."""
    code = """
import socket
def handler(event, context):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        server.accept()[0].sendall(b"hi")
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=1)
        except OSError as error:
            return [client.recv(9).decode(), error.errno]
"""
    async with world.function(code) as function:
        assert await function.invoke() == ["hi", 101]


async def test_user_name_host_name_and_certificates_resolve(world: Lab) -> None:
    """The generated part of /etc is enough for the standard library."""
    name, address, zone = await probe(
        world,
        "__import__('getpass').getuser()",
        "__import__('socket').gethostbyname('localhost')",
        "__import__('zoneinfo').ZoneInfo('Europe/Paris').key",
    )
    assert eval(name).startswith("sbx_user")
    assert (address, zone) == ("'127.0.0.1'", "'Europe/Paris'")


async def test_exploits_of_mounts_and_namespaces_are_refused(world: Lab) -> None:
    """Without capabilities neither mounts nor host names nor other namespaces can be changed."""
    mount, name, chroot, node = await probe(
        world,
        "__import__('ctypes').CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None)",
        "__import__('socket').sethostname('x')",
        "os.chroot('/tmp')",
        "os.mknod('/tmp/n', 0o60600, os.makedev(8, 0))",
    )
    assert [mount, name, chroot, node] == ["-1", "PermissionError 1", "PermissionError 1", "PermissionError 1"]


async def test_setuid_programs_give_nothing(world: Lab) -> None:
    """`no_new_privs` and nosuid mounts."""
    [output] = await probe(world, "__import__('subprocess').run(['/usr/bin/id', '-u'], capture_output=True).stdout")
    assert int(eval(output)) >= 0x1000_0000
    async with world.function(PROBE) as function:
        mounts = eval(await function.invoke("open('/proc/self/mounts').read()"))
    assert all("nosuid" in line.split(" ")[3] for line in mounts.splitlines())
