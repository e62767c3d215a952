"""Files of the host, of the system and of others cannot be read or changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.security.target import SYSTEM_CALLS, Attack, Target


def appearance(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """What a change to these files and directories of the host would change."""
    return {
        str(path): (found.st_mode, found.st_uid, found.st_size, found.st_mtime_ns, found.st_nlink)
        for path in paths
        if path.exists()
        for found in (path.lstat(),)
    }


def contents(*patterns: str) -> dict[Path, str]:
    """Texts of the host's files that match and can be read."""
    found = [path for pattern in patterns for path in Path("/").glob(pattern.lstrip("/"))]
    return {path: path.read_text() for path in found if path.stat().st_mode & stat.S_IRUSR}


def files_below(directory: Path, name: str = "*") -> list[Path]:
    """Files of this name in a directory of the host and all below it."""
    return [path for path in directory.rglob(name) if path.is_file()]


READ = (
    SYSTEM_CALLS
    + """
def handler(event, context):
    return [attempt(lambda: open(path, "rb").read().decode()) for path in event]
"""
)


async def test_secrets_of_the_host_are_not_there(attack: Attack) -> None:
    """Neither by name nor by a way around: `..` ends at the sandbox's own root."""
    names = ("/etc/shadow", "/etc/gshadow", "/root/.ssh", "/root", "/home", "/sys", "/boot")
    ways = ("/proc/self/root/etc/shadow", "/../../../../etc/shadow", "/proc/self/cwd/../../../etc/shadow")
    assert contents("/etc/shadow")
    assert await attack(READ, [*names, *ways]) == ["ENOENT"] * 10


async def test_files_of_the_cluster_are_not_there(attack: Attack, target: Target) -> None:
    """With the token or the credentials of the agent a function would be an administrator."""
    files = [str(path) for path in files_below(target.data_dir)]
    assert any(path.endswith("/token") for path in files)
    assert any("/credentials/" in path for path in files)
    assert await attack(READ, files) == ["ENOENT"] * len(files)


CHANGE = (
    SYSTEM_CALLS
    + """
def handler(event, context):
    directory, file = event
    new = directory + "/attacker"
    return {
        "create": attempt(lambda: open(new, "w").close()),
        "mkdir": attempt(os.mkdir, new),
        "symlink": attempt(os.symlink, "/tmp", new),
        "mkfifo": attempt(os.mkfifo, new),
        "append": attempt(lambda: open(file, "a").close()),
        "truncate": attempt(os.truncate, file, 0),
        "unlink": attempt(os.unlink, file),
        "rename": attempt(os.rename, file, new),
        "chmod": attempt(os.chmod, file, 0o777),
        "chown": attempt(os.chown, file, os.getuid(), -1),
        "utime": attempt(os.utime, file),
        "setxattr": attempt(os.setxattr, file, "user.attacker", b"x"),
        "link": attempt(os.link, file, "/tmp/attacker"),
    }
"""
)


@pytest.mark.parametrize(
    ("directory", "file"),
    [
        ("/var/task", "/var/task/attack.py"),
        ("/var/runtime/lambent_runtime", "/var/runtime/lambent_runtime/bootstrap.py"),
        ("/opt", "/opt"),
        ("/usr", "/usr/lib/os-release"),
        ("/usr/bin", "/usr/bin/env"),
        ("/etc", "/etc/passwd"),
        ("/etc/ssl/certs", "/etc/ssl/certs"),
        ("/dev", "/dev"),
        ("/run", "/run"),
        ("/", "/var"),
    ],
)
async def test_nothing_but_tmp_can_be_changed(attack: Attack, target: Target, directory: str, file: str) -> None:
    """Code and system are shared with other environments and with the host, which would run what is written there."""
    runtime = Path(__file__).parents[2] / "node_agent/lambent_runtime"
    host = [Path(directory), Path(file), runtime, *files_below(runtime, "*.py")]
    before = appearance(host)
    answers = await attack(CHANGE, [directory, file])
    assert {answers.pop(name) for name in ("append", "truncate")} <= {"EROFS", "EACCES", "EISDIR"}
    assert {answers.pop(name) for name in ("rename", "link")} <= {"EROFS", "EXDEV", "EPERM"}
    assert set(answers.values()) == {"EROFS"}, answers
    assert appearance(host) == before
    code = files_below(target.data_dir / "nodes/1/code")
    assert {path.name for path in code} == {"attack.py"}
    assert CHANGE in [path.read_text() for path in code]


async def test_what_is_in_tmp_cannot_be_made_to_stay(attack: Attack) -> None:
    """Not immutable, not with capabilities: the agent must be able to take it away, and nobody may gain by it."""
    source = (
        SYSTEM_CALLS
        + """
import fcntl, struct
def handler(event, context):
    file = os.open("/tmp/x", os.O_CREAT | os.O_RDWR, 0o755)
    immutable = attempt(fcntl.ioctl, file, 0x40086602, struct.pack("L", 0x10))
    capability = struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0)
    trusted = attempt(os.setxattr, "/tmp/x", "trusted.x", b"x")
    return [immutable, attempt(os.setxattr, "/tmp/x", "security.capability", capability), trusted]
"""
    )
    immutable, *attributes = await attack(source)
    assert immutable in ("EPERM", "ENOTTY", "EOPNOTSUPP")
    assert attributes == ["EPERM", "EPERM"]


async def test_links_in_tmp_are_not_followed_when_it_is_taken_away(target: Target, tmp_path: Path) -> None:
    """The agent, which is root, cleans up after functions that know it."""
    os.chmod(tmp_path, 0o777)
    (tmp_path / "file").write_text("of the host")
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    os.symlink(event, "/tmp/directory")
    os.symlink(event + "/file", "/tmp/file")
    return [os.getuid(), attempt(os.listdir, "/tmp/directory"), attempt(open, "/tmp/file", "w")]
"""
    )
    name = await target.deploy(source)
    uid, *followed = (await target.client.invoke(name, str(tmp_path))).json()
    assert followed == ["ENOENT", "ENOENT"]
    await target.end(name, uid)
    await target.next_tenant(uid, 'import os\ndef handler(event, context): return {"uid": os.getuid()}\n')
    assert (tmp_path / "file").read_text() == "of the host"
    assert os.listdir(tmp_path) == ["file"]


SEARCH = (
    SYSTEM_CALLS
    + """
import re
def handler(event, context):
    found = []
    for parent, directories, names in os.walk("/"):
        if parent == "/":
            directories[:] = [name for name in directories if name not in ("proc", "usr", "dev")]
        for name in names:
            content = attempt(lambda: open(os.path.join(parent, name), "rb").read(1 << 16))
            if isinstance(content, bytes) and re.search(b"neighbour-secret-[0-9a-f]{32}", content):
                found.append(os.path.join(parent, name))
    return {"found": found, "tmp": os.listdir("/tmp"), "mine": open("/tmp/mine", "w").write("x")}
"""
)


async def test_files_of_another_environment_are_not_there(attack: Attack) -> None:
    """Each has a /tmp of its own, empty at first; the neighbour's holds its secret all the while."""
    assert await attack(SEARCH) == {"found": [], "tmp": [], "mine": 1}


async def test_nothing_is_left_of_the_environment_before(target: Target) -> None:
    """UID, control groups and mount points are used again; files, shared memory and queues are not."""
    leave = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    open("/tmp/left", "w").write("x")
    key, size = 4711, 4096
    return [os.getuid(), call(29, key, size, 0o1666), call(64, key, 1, 0o1666), call(68, key, 0o1666),
            call(240, b"left", os.O_CREAT | os.O_RDWR, 0o666, 0)]
"""
    )
    look = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    return {"uid": os.getuid(), "tmp": os.listdir("/tmp"), "memory": call(29, 4711, 4096, 0),
            "semaphores": call(64, 4711, 1, 0), "queues": [call(68, 4711, 0), call(240, b"left", os.O_RDWR, 0, 0)]}
"""
    )
    name = await target.deploy(leave)
    uid, *made = (await target.client.invoke(name)).json()
    assert all(isinstance(one, int) for one in made)
    await target.end(name, uid)
    found = await target.next_tenant(uid, look)
    assert found == {"uid": uid, "tmp": [], "memory": "ENOENT", "semaphores": "ENOENT", "queues": ["ENOENT"] * 2}


async def test_the_disks_of_the_host_cannot_be_opened(attack: Attack) -> None:
    """Device nodes of disks, of memory and of the kernel's log are not there and cannot be made."""
    disk = os.stat("/").st_dev
    source = (
        SYSTEM_CALLS
        + """
import stat
def handler(event, context):
    kinds = {"disk": (stat.S_IFBLK, event), "loop": (stat.S_IFBLK, os.makedev(7, 0)),
             "mem": (stat.S_IFCHR, os.makedev(1, 1)), "kmsg": (stat.S_IFCHR, os.makedev(1, 11)),
             "kvm": (stat.S_IFCHR, os.makedev(10, 232)), "fuse": (stat.S_IFCHR, os.makedev(10, 229))}
    made = {name: attempt(os.mknod, "/tmp/" + name, kind | 0o666, device) for name, (kind, device) in kinds.items()}
    at = call(259, -100, b"/tmp/at", stat.S_IFBLK | 0o666, event)
    names = ["vda", "sda", "mem", "kmsg", "kvm", "fuse", "loop-control", "net/tun", "tty", "ptmx", "console"]
    opened = {name: attempt(os.open, "/dev/" + name, os.O_RDONLY) for name in names}
    return [set(made.values()) == {"EPERM"}, at, set(opened.values()) == {"ENOENT"}, os.listdir("/tmp")]
"""
    )
    assert await attack(source, disk) == [True, "EPERM", True, []]


KERNEL_SETTINGS = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/pid_max",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/poweroff_cmd",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/fs/file-max",
    "/proc/sys/fs/protected_symlinks",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/fs/binfmt_misc/register",
)


@pytest.mark.parametrize("path", KERNEL_SETTINGS, ids=lambda path: path.removeprefix("/proc/sys/"))
async def test_settings_of_the_kernel_cannot_be_written(attack: Attack, path: str) -> None:
    """`core_pattern` and `modprobe` name programs that the kernel runs as root outside of every sandbox.

    A read-only mount stands before them, and behind it the want of privilege.
    """
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    truncating = [attempt(os.open, way, os.O_WRONLY | os.O_TRUNC) for way in (event, event.replace("self/../", ""))]
    return [attempt(os.stat, event) == "ENOENT", [*truncating, attempt(os.chmod, event, 0o666)],
            attempt(os.open, event, os.O_WRONLY)]
"""
    )
    before = contents(path)
    absent, changes, writing = await attack(source, path.replace("/proc/", "/proc/self/../"))
    assert changes == ["ENOENT" if absent else "EROFS"] * 3
    assert writing == ("ENOENT" if absent else "EACCES")
    assert contents(path) == before


async def test_the_machine_cannot_be_commanded_through_proc(attack: Attack) -> None:
    """What is masked is the null device; the rest is read-only, or root's."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    def write(path):
        if os.path.exists(path) and os.stat(path).st_rdev == os.stat("/dev/null").st_rdev:
            return "masked"
        with open(path, "wb", buffering=0) as file:
            file.write(b"b")
    return {path: attempt(write, path) for path in event}
"""
    )
    masked = [f"/proc/{name}" for name in ("sysrq-trigger", "kcore", "kmsg", "keys", "key-users", "timer_list")]
    others = [f"/proc/{name}" for name in ("irq/default_smp_affinity", "mtrr", "self/uid_map", "1/oom_score_adj")]
    before = contents("/proc/irq/default_smp_affinity")
    answers = await attack(source, [*masked, *others])
    assert {answers[path] for path in masked} <= {"masked", "ENOENT"}
    assert {answers[path] for path in others} <= {"EROFS", "EACCES", "EPERM", "ENOENT"}
    assert contents("/proc/irq/default_smp_affinity") == before


async def test_addresses_of_the_kernel_are_not_told(attack: Attack) -> None:
    """They would help whoever has found a hole in it."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    symbols = attempt(lambda: {line.split()[0] for line in open("/proc/kallsyms")})
    memory = attempt(lambda: {line.split()[0] for line in open("/proc/iomem")})
    frames = [attempt(open, path, "rb") for path in ("/proc/kpageflags", "/proc/kpagecount", "/proc/slabinfo")]
    return [sorted(symbols) if isinstance(symbols, set) else symbols,
            sorted(memory) if isinstance(memory, set) else memory, frames]
"""
    )
    symbols, memory, frames = await attack(source)
    assert symbols in (["0000000000000000"], "ENOENT")
    assert memory in (["00000000-00000000"], "EACCES", "ENOENT")
    assert set(frames) <= {"EACCES", "ENOENT"}


async def test_control_groups_are_out_of_reach(attack: Attack) -> None:
    """A `release_agent` runs as root on the host; limits that a function could write would be none."""
    before = contents("/sys/fs/cgroup/*/release_agent", "/sys/fs/cgroup/release_agent")
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    wanted = ("release_agent", "notify_on_release", "cgroup.procs", "tasks", "memory.limit_in_bytes", "memory.max")
    found = []
    for parent, directories, names in os.walk("/"):
        if parent == "/":
            directories[:] = [name for name in directories if name not in ("proc", "usr")]
        found += [os.path.join(parent, name) for name in names if name in wanted]
    os.mkdir("/tmp/cgroup")
    mounts = [call(165, b"cgroup", b"/tmp/cgroup", kind, 0, options) for kind, options in
              ((b"cgroup", b"memory"), (b"cgroup", b"rdma"), (b"cgroup2", None), (b"cgroup", b"none,name=attacker"))]
    return [found, mounts, {line.strip().rpartition(":")[2] for line in open("/proc/self/cgroup")} == {"/"}]
"""
    )
    assert await attack(source) == [[], ["EPERM"] * 4, True]
    assert contents("/sys/fs/cgroup/*/release_agent", "/sys/fs/cgroup/release_agent") == before


async def test_open_descriptors_are_the_function_s_own(attack: Attack) -> None:
    """A descriptor of a directory, a pidfd or another socket would lead out of the sandbox."""
    source = (
        SYSTEM_CALLS
        + """
import fcntl, socket
def handler(event, context):
    names = {int(name): attempt(os.readlink, "/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")}
    really = [fd for fd in range(4096) if not isinstance(attempt(fcntl.fcntl, fd, fcntl.F_GETFD), str)]
    channel = socket.socket(fileno=os.dup(3))
    facts = [channel.family.name, channel.type.name, channel.getsockname(), channel.getpeername()]
    fdinfo = open("/proc/self/fdinfo/3").read()
    climbs = [attempt(lambda: os.open("..", os.O_RDONLY, dir_fd=fd)) for fd in really]
    return [[names[fd].partition(":")[0] for fd in really], really, facts, climbs]
"""
    )
    kinds, really, channel, climbs = await attack(source)
    assert kinds == ["/dev/null", "pipe", "pipe", "socket"]
    assert really == [0, 1, 2, 3]
    assert channel == ["AF_UNIX", "SOCK_STREAM", "", ""]
    assert climbs == ["ENOTDIR"] * 4


async def test_the_function_s_own_user_has_a_name(attack: Attack) -> None:
    """Programs ask for it; the agent's files are its own alone, but this one is the function's."""
    source = """
import getpass, os, pwd
def handler(event, context):
    os.environ.pop("USER", None), os.environ.pop("LOGNAME", None)
    return [getpass.getuser(), pwd.getpwuid(os.getuid()).pw_name]
"""
    name, entry = await attack(source)
    assert name
    assert name == entry
