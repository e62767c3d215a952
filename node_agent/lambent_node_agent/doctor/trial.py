"""Make one real sandbox and run a function in it: what no list of prerequisites can tell."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from lambent_node_agent.isolation import NEEDED
from lambent_node_agent.network import NetworkError, Router
from lambent_node_agent.sandbox import (
    NETWORK,
    SandboxConfig,
    SandboxError,
    SandboxHost,
    enter_private_mount_namespace,
)
from lambent_node_agent.sandbox.uid_range import UidRange
from lambent_runtime.channel import HEADER, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lambent_node_agent.isolation import Protection
    from lambent_node_agent.sandbox import Confinement, Sandbox

_MEMORY_MIB = 128
_CPU_MILLIS = 1000
_STORAGE_MIB = 16
_DISK_MIB = 64
_ASKED_APART = frozenset({NETWORK, *(protection.value for protection in NEEDED)})
"""Other lines tell of those."""
# Milliseconds as a rule, a second where an interpreter starts from a cold disk.
_TIMEOUT_S = 30.0


def try_network() -> str | None:
    """Make a network for functions as the agent does, and take it off the machine again; None, or what failed."""
    config = SandboxConfig(Path(os.devnull), f"doctor-{os.getpid()}")
    try:
        uids = UidRange(config.lock_dir / "uids")
        try:
            router = Router(uids.block, config.network, config.lock_dir)
            router.open()
            router.close()
        finally:
            uids.close()
    except (NetworkError, SandboxError) as error:
        return str(error)
    return None


async def try_sandbox(
    confinement: Confinement | None, locks: Path
) -> tuple[str | None, Mapping[Protection, str] | None]:
    """Make a sandbox as the agent does, and take everything off the machine again.

    Call it in a process that makes nothing else: it leaves the process in a mount namespace of its own.

    Args:
        confinement: What this process has, when it is not root.
        locks: Where agents agree on UIDs.

    Returns:
        None when a function came up in it, else what failed; and what the machine lacks, unless that is not known.
    """
    missing: Mapping[Protection, str] | None = None
    with tempfile.TemporaryDirectory(prefix="lambent-doctor-") as directory:
        code = _write_code(directory)
        config = SandboxConfig(
            Path(directory, "state"),
            f"doctor-{os.getpid()}",
            pool_size=0,
            disk_mib=_DISK_MIB,
            lock_dir=locks,
            allow_missing=_ASKED_APART,
            confinement=confinement,
        )
        try:
            enter_private_mount_namespace()
            # Threads that are there already have stayed in the namespace before, and would unmount nothing.
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
            async with asyncio.timeout(_TIMEOUT_S), SandboxHost(config) as host:
                missing = host.missing
                if not host.runtimes:
                    return "there is no interpreter to run in it", missing
                own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
                sandbox = await host.create(own if own in host.runtimes else host.runtimes[0])
                await sandbox.specialise(code, _MEMORY_MIB, _CPU_MILLIS, _STORAGE_MIB)
                await _run(sandbox)
        except TimeoutError:
            return f"it was not ready within {_TIMEOUT_S:g} s", missing
        except (SandboxError, OSError) as error:
            return str(error), missing
    return None, missing


def _write_code(directory: str) -> Path:
    code = Path(directory, "code")
    code.mkdir()
    code.chmod(0o755)  # whatever our umask is: the function's user reads it
    (code / "trial.py").write_text("def handler(event, context):\n    return event\n")
    return code


async def _run(sandbox: Sandbox) -> None:
    process = await sandbox.start_runtime("trial.handler", {})
    try:
        answer = await asyncio.get_running_loop().sock_recv(process.channel, HEADER.size)
    finally:
        process.channel.close()
        os.close(process.log_fd)
    if len(answer) < HEADER.size or HEADER.unpack(answer)[1] != Kind.READY:
        raise SandboxError("a function in it did not come up")
