"""Whether this kernel lets each sandbox have a user namespace of its own."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import lambent_runtime

from .interpreters import own_executable

if TYPE_CHECKING:
    from .uid_range import SandboxUid

_ATTEMPT = """
import sys
sys.path.insert(0, sys.argv[1])
from lambent_runtime import user_namespace
user_namespace.attempt(int(sys.argv[2]), int(sys.argv[3]))
"""
# The start of an interpreter; see `interpreters`.
_TIMEOUT_S = 10.0


async def objection(uid: SandboxUid) -> str | None:
    """Try it in a process that ends at once.

    Args:
        uid: Of a sandbox of this agent's.

    Returns:
        None when it works, else what the kernel said.
    """
    # In a thread, by `subprocess`, which uses vfork: gRPC's fork handlers would stop its threads, or complain.
    return await asyncio.to_thread(_try, uid)


def _try(uid: SandboxUid) -> str | None:
    package = Path(lambent_runtime.__file__).resolve().parent
    command = [str(own_executable()), "-I", "-S", "-c", _ATTEMPT, str(package.parent), *map(str, uid)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = done.stdout.decode(errors="replace").strip()
    return said or (f"the attempt ended with status {done.returncode}" if done.returncode else None)
