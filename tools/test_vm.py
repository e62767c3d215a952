"""Run the sandbox tests in virtual machines: one with control groups of version 2 alone, one with version 1 alone.

    tools/setup vm && .venv/bin/python tools/test_vm.py [--short] [PYTEST_ARGUMENTS...]

Debian's stock kernel runs under qemu, emulated, over this machine's own file system, which it can read and not change.
`--short` boots the one of version 2 alone, for what this version does in its own way. Arguments that name tests replace
the lists below; others are added to them. The exit status is pytest's, 70 when a machine did not come to running it, or
75 when it was killed at the deadline.
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / ".venv" / "kernel" / "boot"

_STALLS = "tests/agent/test_idle.py::test_the_kernel_tells_of_stalls"
_DELEGATED = "tests/rootless/test_up.py::test_doctor_finds_full_isolation_with_uids_and_control_groups"

# What meets the kernel's control groups. The rest of the suite does not see them, and takes twenty times as long here.
TESTS = {
    "v2": (
        "tests/sandbox",
        "--ignore=tests/sandbox/test_demand.py",  # decides, and meets no kernel
        "--ignore=tests/sandbox/test_seccomp.py",  # one test for each of 440 system calls
        "tests/e2e/test_limits.py",
        "tests/supervisor/test_doctor.py",
        _STALLS,
        _DELEGATED,
    ),
    # The same code in the other version; what is apart from it was tested before.
    "v1": (
        "tests/sandbox/test_cgroups.py",
        "tests/sandbox/test_cgroups_in_containers.py",
        "tests/sandbox/test_control_groups.py",
        "tests/sandbox/test_freezing.py",
        "tests/sandbox/test_host.py",
        "tests/sandbox/test_limits.py",
        "tests/supervisor/test_doctor.py",
    ),
}

# For `.ci/run`, whose own machine has version 1: limits and their kills, peaks, freezing, reclaim, stalls, groups that
# are used again or made anew, a user's groups, and the whole way of a function that is out of memory.
SHORT_TESTS = {
    "v2": (
        "tests/sandbox/test_cgroups.py",
        "tests/sandbox/test_cgroups_in_containers.py",
        "tests/sandbox/test_control_groups.py",
        "tests/sandbox/test_freezing.py",
        "tests/sandbox/test_host.py::test_a_machine_that_cannot_limit_memory_is_refused_unless_allowed_by_name",
        "tests/sandbox/test_limits.py",
        "tests/sandbox/test_supply.py::test_a_slot_that_cannot_be_cleaned_is_no_matter_of_others",
        "tests/sandbox/test_unified_limits.py",
        "tests/e2e/test_limits.py::test_a_function_out_of_memory_is_told_so_and_the_next_call_is_served",
        "tests/supervisor/test_doctor.py::test_doctor_finds_this_machine_fit",
        _STALLS,
        _DELEGATED,
    ),
}

DEADLINE_S = 1200.0
"""For all machines together. They took 515 s and 133 s on two cores that did other work as well."""
SHORT_DEADLINE_S = 330.0
"""`.ci/run` has twenty minutes, of which the rest takes twelve. It took 290 s beside other work."""
TEST_TIMEOUT_S = 300
"""For one test, in place of the suite's 120: emulated code is some fifteen times slower."""
EXIT_NOT_RUN = 70
"""`EX_SOFTWARE` of sysexits.h; pytest's own statuses end at 5."""
EXIT_NO_TIME = 75
"""`EX_TEMPFAIL`: killed at the deadline, which a machine that does other work as well may reach."""
_PYTEST_STATUS = 100
"""The guest adds it to pytest's status, which else could be that of virtme-ng."""
_PYTEST_STATUSES = range(6)
_MEMORY = "6G"
_CONSOLE_LINES = 40


def main(arguments: list[str]) -> int:
    """Run all machines, one after another; return the first exit status that is not 0."""
    machines, deadline_s = (SHORT_TESTS, SHORT_DEADLINE_S) if "--short" in arguments else (TESTS, DEADLINE_S)
    arguments = [argument for argument in arguments if argument != "--short"]
    chosen = any((ROOT / argument.partition("::")[0]).exists() for argument in arguments if argument[:1] != "-")
    deadline = time.monotonic() + deadline_s
    first = 0
    for groups, tests in machines.items():
        status = run_machine(groups, arguments if chosen else [*tests, *arguments], deadline)
        first = first or status
    return first


def run_machine(groups: str, arguments: list[str], deadline: float) -> int:
    """Boot a machine with this version of control groups, run pytest in it and show what that prints.

    Args:
        groups: `v1` or `v2`.
        arguments: Pytest's.
        deadline: Of `time.monotonic`; the machine is killed then.
    """
    started = time.monotonic()
    unusual = EXIT_NOT_RUN
    console_fd, console_name = tempfile.mkstemp(prefix=f"lambent-vm-{groups}-", suffix=".log")
    with open(console_fd, "wb") as console:
        try:
            status = _boot(_command(groups, arguments), console, deadline) - _PYTEST_STATUS
            problem = "" if status in _PYTEST_STATUSES else "it ended without pytest"
        except TimeoutError:
            problem = f"it was killed after {time.monotonic() - started:.0f} s, at the deadline for all machines"
            unusual = EXIT_NO_TIME
    console_path = Path(console_name)
    if problem:
        lines = console_path.read_text(errors="replace").splitlines()
        print(*lines[-_CONSOLE_LINES:], sep="\n", file=sys.stderr)
        print(f"test-vm: {groups}: {problem}; its console: {console_name}", file=sys.stderr)
        return unusual
    console_path.unlink()
    print(f"test-vm: {groups}: {time.monotonic() - started:.0f} s, pytest's exit status {status}", flush=True)
    return status


def _command(groups: str, arguments: list[str]) -> list[str]:
    """Return the command that boots a machine; whatever ends it, nothing of it is left.

    A PID namespace holds all of it. `unshare` is killed with this process, and the namespace with `unshare`.
    """
    kernels = list(KERNELS.glob("vmlinuz-*"))
    if len(kernels) != 1:
        sys.exit(f"test-vm: {KERNELS} has {len(kernels)} kernels and should have one; 'tools/setup vm' unpacks it")
    guest = [str(ROOT / "tools" / "vm_guest"), groups, str(ROOT), f"--timeout={TEST_TIMEOUT_S}", *arguments]
    # Beside virtme-ng's own: without its cache, an import takes seconds. See vm_guest.
    host = "local,id=lambent-host,path=/,security_model=none,readonly=on,multidevs=remap"
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *([] if os.geteuid() == 0 else ["--map-root-user"]),
        *(str(ROOT / ".venv/bin/virtme-run"), "--kimg", str(kernels[0]), "--mods", "auto"),
        *("--disable-kvm", "--force-9p", "--show-boot-console"),
        *("--memory", _MEMORY, "--cpus", "2", "--kopt", "psi=1", "--kopt", "loglevel=6"),
        *("--script-sh", shlex.join(guest)),
        *("--qemu-opts", "-fsdev", host, "-device", "virtio-9p-pci,fsdev=lambent-host,mount_tag=lambent-host"),
    ]


def _boot(command: list[str], console: BinaryIO, deadline: float) -> int:
    """Run the command in a session of its own, so that Ctrl-C meets this process alone; copy what it says.

    Raises:
        TimeoutError: It was killed at the deadline.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, sys.stdout.buffer)
        selector.register(process.stderr, selectors.EVENT_READ, console)
        try:
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise TimeoutError
                for key, _events in ready:
                    if data := os.read(key.fd, 1 << 16):
                        key.data.write(data)
                        key.data.flush()
                    else:
                        selector.unregister(key.fileobj)
            return process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # also what `unshare` has forked and not tied to itself yet
                process.stdout.read()  # ends with the last process that has it
                process.wait()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
