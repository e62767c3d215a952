"""The CPython interpreters of this machine that can run functions."""

from __future__ import annotations

import asyncio
import glob
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

OLDEST_VERSION = (3, 9)
"""What `lambent_runtime` is written for."""
STANDARD_DIRECTORIES = ("/usr/local/bin", "/usr/bin", "/opt/python*/bin", "~/.pyenv/versions/*/bin")
_NAME = re.compile(r"python3(\.\d+)?")
_ELF_MAGIC = b"\x7fELF"
_SYSTEM_DIRECTORIES = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
# A cold interpreter on a slow disk; one that takes longer is no candidate for cold starts.
_QUESTION_TIMEOUT_S = 10.0
_QUESTION = """
import json, platform, sys
print(json.dumps([platform.python_implementation(), list(sys.version_info[:3]), sys.base_prefix, sys.base_exec_prefix]))
"""


_ANSWER = json.dumps(
    [platform.python_implementation(), list(sys.version_info[:3]), sys.base_prefix, sys.base_exec_prefix]
)
"""What the interpreter that runs the agent says of itself; it need not be started to be asked."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One CPython.

    Attributes:
        executable: Its real path.
        version: Major, minor and micro.
        prefixes: Directories outside the system's own that it needs inside a sandbox.
    """

    executable: Path
    version: tuple[int, int, int]
    prefixes: tuple[str, ...]

    @property
    def runtime(self) -> str:
        """Its name as a runtime: `python3.11`."""
        return f"python{self.version[0]}.{self.version[1]}"


def own_executable() -> Path:
    """Return the interpreter that runs the agent, itself and not the virtual environment's link to it."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))


async def discover(search_path: Sequence[str]) -> dict[str, Interpreter]:
    """Find the interpreters and ask each for its version.

    Args:
        search_path: Directories to look in before the standard ones, as from PATH.

    Returns:
        One interpreter for each runtime name, newest runtime first. Of several with the same minor version the agent's
        own wins, then the one found first.
    """
    own, *others = _candidates([*search_path, *STANDARD_DIRECTORIES])
    turns = asyncio.Semaphore(os.cpu_count() or 1)  # all at once, on a slow machine none would answer in time
    answers = await asyncio.gather(*(_ask(path, turns) for path in others))
    found: dict[str, Interpreter] = {}
    for interpreter in (parse_answer(own, _ANSWER.encode()), *answers):
        if interpreter is not None:
            found.setdefault(interpreter.runtime, interpreter)
    return dict(sorted(found.items(), key=lambda item: item[1].version, reverse=True))


def _candidates(directories: Iterable[str]) -> list[Path]:
    """Return real executables with a fitting name, each once, the agent's own first."""
    candidates = [own_executable()]
    for pattern in directories:
        for directory in sorted(glob.glob(os.path.expanduser(pattern))):
            candidates += (entry for entry in _entries(Path(directory)) if _is_binary(entry))
    return list(dict.fromkeys(candidates))


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(Path(os.path.realpath(entry)) for entry in directory.iterdir() if _NAME.fullmatch(entry.name))
    except OSError:
        return []  # on PATH, and not there


def _is_binary(path: Path) -> bool:
    """Leave out scripts that choose an interpreter when run."""
    try:
        with path.open("rb") as file:
            return file.read(4) == _ELF_MAGIC and os.access(path, os.X_OK)
    except OSError:
        return False


async def _ask(executable: Path, turns: asyncio.Semaphore) -> Interpreter | None:
    """Ask an interpreter what it is; None when it cannot run functions."""
    async with turns:
        # In a thread, by `subprocess`, which uses vfork: gRPC's fork handlers would stop its threads, or complain.
        output = await asyncio.to_thread(_run, executable)
    return None if output is None else parse_answer(executable, output)


def _run(executable: Path) -> bytes | None:
    try:
        asked = subprocess.run(
            [executable, "-I", "-S", "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            timeout=_QUESTION_TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        log.warning("interpreter_left_out", executable=str(executable), waited_s=_QUESTION_TIMEOUT_S)
        return None
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout


def parse_answer(executable: Path, output: bytes) -> Interpreter | None:
    """Read an interpreter's answer.

    Returns:
        None when it is not CPython, too old, or lies where it cannot be shown to functions.
    """
    try:
        implementation, version, *prefixes = json.loads(output)
    except ValueError:
        return None
    if implementation != "CPython" or tuple(version) < OLDEST_VERSION:
        return None
    needed = tuple(dict.fromkeys(prefix for prefix in map(os.path.realpath, prefixes) if not _is_system(prefix)))
    if any(len(Path(prefix).parts) <= 2 for prefix in needed):
        return None  # binding it would show a whole top-level directory of the host, such as /root
    return Interpreter(executable, (version[0], version[1], version[2]), needed)


def _is_system(prefix: str) -> bool:
    return any(prefix == directory or prefix.startswith(directory + "/") for directory in _SYSTEM_DIRECTORIES)
