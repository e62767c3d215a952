"""What the kernel is asked directly, past every library: the filter of system calls, and what lies behind it."""

from __future__ import annotations

import platform
import struct

import pytest

import lambent
from tests.security.target import SYSTEM_CALLS, Attack, Target

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")

CALL = (
    SYSTEM_CALLS
    + """
def handler(event, context):
    pid = os.getpid()
    number, *arguments = event
    answer = call(number, *(one.encode("latin-1") if isinstance(one, str) else one for one in arguments))
    if os.getpid() != pid:
        os._exit(0)  # a child, of a clone that should have been refused
    return answer
"""
)
"""Makes the system call of its event: number and arguments, of which texts are bytes."""

AT = -100  # AT_FDCWD
HERE = "\0" * 256  # room for an answer, or an argument of zeros


def text(layout: str, *values: int) -> str:
    """Give a structure as an argument of CALL."""
    return struct.pack(layout, *values).decode("latin-1")


MEASURE = text("IIQQQQQ80x", 1, 128, 0, 0, 0, 0, 1 << 5 | 1 << 6)
"""A `struct perf_event_attr` that anybody may use: a software counter of the process's own time, without the kernel."""
PLACES = text("QQQQ", 0, 0, 0, 0)

REFUSED: dict[str, tuple[int | str, ...]] = {
    "mount": (165, "none", "/tmp", "tmpfs", 0, 0),
    "mount, bind": (165, "/usr", "/tmp", 0, 4096, 0),
    "mount, proc": (165, "proc", "/tmp", "proc", 0, 0),
    "mount, sysfs": (165, "sysfs", "/tmp", "sysfs", 0, 0),
    "remount /": (165, 0, "/", 0, 32 | 4096, 0),
    "remount /var/task": (165, 0, "/var/task", 0, 32 | 4096, 0),
    "remount /proc/sys": (165, 0, "/proc/sys", 0, 32 | 4096, 0),
    "umount /proc/sys": (166, "/proc/sys", 2),
    "umount /proc/keys": (166, "/proc/keys", 0),
    "pivot_root": (155, "/tmp", "/tmp"),
    "chroot": (161, "/tmp"),
    "chroot, process's root": (161, "/proc/1/root"),
    "setns, number": (308, 3, 0),
    "open_tree": (428, AT, "/", 0),
    "open_tree, clone": (428, AT, "/", 1),
    "fsopen": (430, "tmpfs", 0),
    "fsconfig": (431, 3, 6, 0, 0, 0),
    "fsmount": (432, 3, 0, 0),
    "fspick": (433, AT, "/", 0),
    "move_mount": (429, AT, "/tmp", AT, "/var", 0),
    "mount_setattr": (442, AT, "/", 0, PLACES, 32),
    "name_to_handle_at": (303, AT, "/etc", text("II", 128, 0) + HERE, HERE, 0),
    "open_by_handle_at": (304, AT, text("IIQQ", 8, 1, 2, 0), 0),
    "fanotify_init": (300, 0x200, 0),
    "quotactl": (179, 0x80000100, "/dev/vda", 0, HERE),
    "swapon": (167, "/tmp/swap", 0),
    "swapoff": (168, "/tmp/swap"),
    "acct": (163, "/tmp/accounts"),
    "ptrace, traced by its parent": (101, 0, 0, 0, 0),
    "ptrace, attach to the reaper": (101, 16, 1, 0, 0),
    "ptrace, seize the reaper": (101, 0x4206, 1, 0, 0),
    "process_vm_readv, of the reaper": (310, 1, PLACES, 1, PLACES, 1, 0),
    "process_vm_writev, of the reaper": (311, 1, PLACES, 1, PLACES, 1, 0),
    "process_madvise": (440, 3, PLACES, 1, 20, 0),
    "process_mrelease": (448, 3, 0),
    "pidfd_getfd": (438, 3, 0, 0),
    "kcmp": (312, 1, 1, 0, 0, 0),
    "add_key": (248, "user", "attacker", "x", 1, -2),
    "add_key, session": (248, "user", "attacker", "x", 1, -3),
    "request_key": (249, "user", "attacker", 0, -2),
    "keyctl, session keyring": (250, 0, -3, 1),
    "keyctl, join": (250, 1, "attacker"),
    "keyctl, link to the user's": (250, 8, -4, -3),
    "io_uring_setup": (425, 8, HERE),
    "io_uring_enter": (426, 3, 1, 0, 0, 0, 0),
    "io_uring_register": (427, 3, 0, 0, 0),
    "bpf, map": (321, 0, text("IIII", 2, 4, 4, 1) + HERE, 128),
    "bpf, program": (321, 5, HERE, 128),
    "perf_event_open": (298, MEASURE, 0, -1, -1, 0),
    "perf_event_open, all processes": (298, MEASURE, -1, 0, -1, 0),
    "userfaultfd": (323, 0o2000000),
    "userfaultfd, user mode only": (323, 0o2000001),
    "memfd_secret": (447, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "kexec_file_load": (320, 0, -1, 0, "", 4),
    "init_module": (175, "\x7fELF", 4, ""),
    "finit_module": (313, 0, "", 0),
    "delete_module": (176, "loop", 0o4000),
    "reboot": (169, 0xFEE1DEAD, 0x28121969, 0x01234567, 0),
    "reboot, Ctrl-Alt-Delete": (169, 0xFEE1DEAD, 0x28121969, 0x89ABCDEF, 0),
    "clock_settime": (227, 0, text("qq", 0, 0)),
    "settimeofday": (164, text("qq", 0, 0), 0),
    "adjtimex": (159, text("I", 1) + HERE),
    "clock_adjtime": (305, 0, text("I", 1) + HERE),
    "sethostname": (170, "attacker", 8),
    "setdomainname": (171, "attacker", 8),
    "syslog": (103, 10, 0, 0),
    "syslog, read": (103, 3, HERE, 256),
    "iopl": (172, 3),
    "ioperm": (173, 0x80, 1, 1),
    "modify_ldt": (154, 0, HERE, 256),
    "vhangup": (153,),
    "ustat": (136, 0, HERE),
    "sysfs": (139, 3),
    "move_pages": (279, 1, 0, 0, 0, 0, 0),
    "migrate_pages": (256, 1, 1, HERE, HERE),
    "mbind": (237, 0, 0, 0, 0, 0, 0),
    "set_mempolicy": (238, 0, 0, 0),
    "ioctl, subvolume": (16, 0, 0x5000940E, HERE),
    "ioctl, subvolume with an inheritance": (16, 0, 0x50009418, HERE),
    "ioctl, snapshot": (16, 0, 0x50009417, HERE),
    "ioctl, destroy a subvolume": (16, 0, 0x5000940F, HERE),
    "ioctl, number with bits that the kernel ignores": (16, 0, 0x1_5000_940E, HERE),
    "ioctl, limit of a quota group": (16, 0, 0x8030942B, HERE),
    "ioctl, search of all subvolumes": (16, 0, 0xD0009411, HERE),
    "ioctl, send": (16, 0, 0x40489426, HERE),
    "ioctl, received subvolume": (16, 0, 0xC0C89425, HERE),
    "ioctl, defragment and compress": (16, 0, 0x40309410, HERE),
    "ioctl, copy on write and compression": (16, 0, 0x40086602, HERE),
    "ioctl, project": (16, 0, 0x401C5820, HERE),
    "ioctl, trim": (16, 0, 0xC0185879, HERE),
    "ioctl, freeze": (16, 0, 0xC0045877, HERE),
    "personality, layout of memory": (135, 0x0040000),
    "personality, executable data": (135, 0x0400000),
    "madvise, mergeable": (28, 0, 0, 12),
    "madvise, mergeable, bits that the kernel ignores": (28, 0, 0, 0x1_0000_000C),
    "prctl, merge memory": (157, 67, 1, 0, 0, 0),
    "prctl, merge memory, bits that the kernel ignores": (157, 0x1_0000_0043, 1, 0, 0, 0),
    "personality, bits that the kernel ignores": (135, 0x1_0004_0000),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_call_is_refused_by_the_filter(attack: Attack, case: str) -> None:
    """Before the kernel's own code for it runs; the machine's clock, mounts, keys and name are what they were."""
    assert await attack(CALL, REFUSED[case]) == "EPERM"


NAMESPACES = {
    "time": 0x00000080,
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "UTS": 0x04000000,
    "IPC": 0x08000000,
    "user": 0x10000000,
    "PID": 0x20000000,
    "network": 0x40000000,
    "user and all others": 0x7E020080,
    "user, with bits that the kernel ignores": 0x1_1000_0000,
}
SIGCHLD = 17


@pytest.mark.parametrize("flags", NAMESPACES.values(), ids=NAMESPACES.keys())
@pytest.mark.parametrize("number", [272, 56], ids=["unshare", "clone"])
async def test_new_namespaces_are_refused(target: Target, number: int, flags: int) -> None:
    """In a user namespace of its own a function would have every capability; its processes stay where they were."""
    source = CALL.replace("return answer", "return [answer, os.getuid()]")
    name = await target.deploy(source)
    event = [number, flags | (SIGCHLD if number == 56 else 0), 0, 0, 0, 0]
    answer, uid = (await target.client.invoke(name, event)).json()
    assert answer == "EPERM"
    found = {target.namespaces(process) for process in target.processes_of(uid)}
    assert len(found) == 1


async def test_namespaces_of_others_cannot_be_entered(attack: Attack) -> None:
    """Neither by a descriptor of /proc nor by a pidfd."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    own = [attempt(os.open, "/proc/self/ns/" + kind, os.O_RDONLY) for kind in ("mnt", "pid", "net", "user", "uts")]
    reaper = [attempt(os.open, "/proc/1/ns/" + kind, os.O_RDONLY) for kind in ("mnt", "pid", "net", "user", "uts")]
    pidfd = os.pidfd_open(1)
    return [[call(308, fd, 0) for fd in own], reaper, call(308, pidfd, 0x00020000), call(308, pidfd, 0x10000000)]
"""
    )
    assert await attack(source) == [["EPERM"] * 5, ["EACCES"] * 5, "EPERM", "EPERM"]


async def test_all_other_advice_and_options_reach_the_kernel(attack: Attack) -> None:
    """C libraries and allocators give memory back, guard stacks and name what is theirs."""
    source = (
        SYSTEM_CALLS
        + """
def handler(event, context):
    advice, options = event
    return [[number for number in advice if call(28, 0, 0, number) == "EPERM"],
            [number for number in options if call(157, number, 0, 0, 0, 0) == "EPERM"]]
"""
    )
    # 100 and 101 are of the machine's memory, and root's alone. PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME,
    # PR_GET_NO_NEW_PRIVS, PR_GET_THP_DISABLE, PR_GET_MDWE, PR_GET_MEMORY_MERGE, PR_SET_VMA, PR_SET_PTRACER.
    options = [3, 15, 16, 39, 42, 66, 68, 0x53564D41, 0x59616D61]
    advice = [number for number in range(128) if number not in {100, 101}]
    assert await attack(source, [advice, options]) == [[12], []]


async def test_clone3_is_not_there_and_threads_and_programs_start(attack: Attack) -> None:
    """A filter cannot see its flags; the C library falls back to `clone`."""
    source = (
        SYSTEM_CALLS
        + """
import struct, subprocess, threading
def handler(event, context):
    answers = [call(435, struct.pack("11Q", flags, *[0] * 3, 17, *[0] * 6), 88) for flags in (0x10000000, 0)]
    thread = threading.Thread(target=answers.append, args=("thread",))
    thread.start()
    thread.join()
    return [*answers, subprocess.run(["/usr/bin/echo", "program"], capture_output=True).stdout.decode().strip()]
"""
    )
    assert await attack(source) == ["ENOSYS", "ENOSYS", "thread", "program"]


@pytest.mark.parametrize("number", [400, 600, 1023, 100_000, 0x3FFF_FFFF])
async def test_unknown_call_is_answered_as_by_an_older_kernel(attack: Attack, number: int) -> None:
    """Programs try new calls and fall back; a call that nobody has thought about does not get through."""
    assert await attack(CALL, [number, 0, 0, 0]) == "ENOSYS"


@pytest.mark.parametrize(
    "event",
    [
        pytest.param([457, HERE, HERE, 256, 0], id="statmount"),
        pytest.param([458, HERE, HERE, 8, 0], id="listmount"),
        pytest.param([460, 100, HERE, 32, 0], id="lsm_set_self_attr"),
        pytest.param([467, AT, "/", 1, PLACES, 32], id="open_tree_attr"),
        pytest.param([469, AT, "/tmp", HERE, 24, 0], id="file_setattr"),
    ],
)
async def test_newer_call_is_refused_whether_libseccomp_knows_it_or_not(attack: Attack, event: list[int | str]) -> None:
    """What a later kernel brings is no hole."""
    assert await attack(CALL, event) in ("EPERM", "ENOSYS")


FOREIGN = {
    "int 0x80": b"\xb8\x14\0\0\0\xcd\x80\xc3",  # mov eax, 20 (getpid of 32 bits); int 0x80; ret
    "int 0x80, mount": b"\xb8\x15\0\0\0\xcd\x80\xc3",  # mov eax, 21
    "x32": b"\xb8\x27\0\0\x40\x0f\x05\xc3",  # mov eax, 0x40000027 (getpid of x32); syscall; ret
}


@pytest.mark.parametrize("code", FOREIGN.values(), ids=FOREIGN.keys())
async def test_call_of_another_architecture_kills_the_process(target: Target, code: bytes) -> None:
    """Its numbers mean other things than those that the filter knows; the function goes on in a new process."""
    source = (
        SYSTEM_CALLS
        + """
import mmap
def handler(event, context):
    if event is None:
        return os.getpid()
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(event.encode("latin-1"))
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
"""
    )
    name = await target.deploy(source)
    with pytest.raises(lambent.FunctionError) as ended:
        await target.client.invoke(name, code.decode("latin-1"))
    assert ended.value.error_type == "Runtime.ExitError"
    assert "signal: " in ended.value.error_message
    assert (await target.client.invoke(name, b"null")).json() > 1


async def test_a_filter_of_one_s_own_opens_nothing(attack: Attack) -> None:
    """Of several filters the strictest counts."""
    source = (
        SYSTEM_CALLS
        + """
import struct
def handler(event, context):
    allow = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    program = struct.pack("@HP", 1, ctypes.addressof(allow))
    installed = [call(317, 1, 0, program), call(157, 22, 2, program, 0, 0)]
    return [*installed, call(317, 0, 0, 0), call(165, b"none", b"/tmp", b"tmpfs", 0, None), call(272, 0x10000000)]
"""
    )
    assert await attack(source) == [0, 0, "EINVAL", "EPERM", "EPERM"]


async def test_no_privilege_can_be_taken(target: Target) -> None:
    """No UID, group, capability, secure bit or lack of `no_new_privs`; the host sees the process as it was."""
    source = (
        SYSTEM_CALLS
        + """
import struct
def handler(event, context):
    all_capabilities = struct.pack("III", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF) * 2
    uid, neighbour = os.getuid(), event
    return [uid, {
        "setuid 0": call(105, 0), "setuid of the neighbour": call(105, neighbour), "setgid 0": call(106, 0),
        "setreuid": call(113, 0, 0), "setresuid": call(117, 0, 0, 0), "setresgid": call(119, 0, 0, 0),
        "setgroups": call(116, 1, struct.pack("I", 0)),
        "capset": call(126, struct.pack("Ii", 0x20080522, 0), all_capabilities),
        "no_new_privs off": call(157, 38, 0, 0, 0, 0), "ambient": call(157, 47, 2, 21, 0, 0),
        "secure bits": call(157, 28, 0, 0, 0, 0), "keep capabilities": call(157, 8, 1, 0, 0, 0),
        "program's file": call(157, 35, 13, 0, 0, 0),
    }, [call(122, 0), call(123, 0)]]
"""
    )
    neighbour = (await target.client.invoke(target.neighbour.name)).json()
    target.neighbour.calls += 1
    name = await target.deploy(source)
    uid, answers, file_system_ids = (await target.client.invoke(name, neighbour["uid"])).json()
    assert set(answers.values()) <= {"EPERM", "EINVAL"}, answers
    assert file_system_ids == [uid, uid]  # what they were before the change, which is none
    for process in target.processes_of(uid):
        status = target.status(process)
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["Uid"].split(), status["Gid"].split()) == ([str(uid)] * 4, [str(uid)] * 4)
        assert (status["NoNewPrivs"], status["Seccomp"], status["Groups"]) == ("1", "2", "")
    assert len(target.processes_of(uid)) == 2


async def test_every_process_of_every_environment_is_filtered(target: Target) -> None:
    """Seen from the host, where nothing that a function says counts: each reaper and each runtime, in use or blank."""
    found = target.environments()
    assert len(found) >= 2
    filtered = {(status["Seccomp"], status["Seccomp_filters"], status["NoNewPrivs"]) for status in found}
    assert filtered == {("2", "2", "1")}
