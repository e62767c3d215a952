"""The policy of system calls, as data; what its filters do inside a sandbox is in tests/security."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_node_agent.sandbox.seccomp.filters import ranges
from lambent_node_agent.sandbox.seccomp.libseccomp import Library
from lambent_node_agent.sandbox.seccomp.policy import ALLOWED, ALLOWED_IF, UNSUPPORTED

REFUSED = """
    acct add_key adjtimex bpf chroot clock_adjtime clock_settime clone3 delete_module fanotify_init fanotify_mark
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
    finit_module fsconfig fsmount fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl
    kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages modify_ldt mount mount_setattr move_mount
    move_pages name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root
    process_madvise process_vm_readv process_vm_writev ptrace quotactl quotactl_fd reboot request_key setdomainname
    set_mempolicy sethostname setns settimeofday swapoff swapon syslog umount2 unshare uselib userfaultfd vhangup
"""


@pytest.mark.parametrize("name", REFUSED.split())
def test_what_no_function_needs_is_not_on_the_list(name: str) -> None:
    """Each of these changes the machine, looks into other processes, or is known for holes in the kernel."""
    assert name not in ALLOWED
    assert name not in ALLOWED_IF


@pytest.mark.parametrize("name", sorted(ALLOWED | set(ALLOWED_IF) | UNSUPPORTED | set(REFUSED.split())))
def test_every_name_of_the_policy_is_a_system_call(name: str) -> None:
    """Libseccomp knows it, of this machine or of another; a slip of the pen would allow or refuse nothing."""
    unknown = -1
    assert Library().functions.seccomp_syscall_resolve_name(name.encode()) != unknown


@given(st.sets(st.integers(0, 60)).map(sorted))
def test_ranges_hold_the_numbers_and_no_others(numbers: list[int]) -> None:
    """Each as long as it can be, in ascending order."""
    found = ranges(numbers)
    assert [number for first, last in found for number in range(first, last + 1)] == numbers
    assert all(after - last > 1 for (_, last), (after, _) in pairwise(found))
