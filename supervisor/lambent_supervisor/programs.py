"""Find etcd and nats-server, and refuse versions that will not do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lambent_common.programs import Program, find_program, program_version

from .errors import ProgramMissingError, ProgramVersionError

if TYPE_CHECKING:
    from pathlib import Path

    from lambent_common.programs import Version


@dataclass(frozen=True, slots=True)
class UsableProgram:
    """A program that will do: its name, where it is and which version it says it has."""

    name: str
    path: Path
    version: Version

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def require(program: Program, search_path: str) -> UsableProgram:
    """Find a program.

    Args:
        program: What is needed.
        search_path: Directories as in PATH.

    Raises:
        ProgramMissingError: It is not there.
        ProgramVersionError: Its version is too old, bad or unknown.
    """
    path = find_program(program, search_path)
    if path is None:
        raise ProgramMissingError(f"{program.name} is not installed", help_=program.help)
    version = program_version(path)
    if version is None:
        raise ProgramVersionError(f"{path} does not say which version of {program.name} it is", help_=program.help)
    objection = program.objection(version)
    if objection is not None:
        raise ProgramVersionError(f"{objection} ({path})", help_=program.help)
    return UsableProgram(program.name, path, version)
