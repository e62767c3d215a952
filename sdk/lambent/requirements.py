"""Requirements of a function, installed into a folder for the runtime's own Python version."""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lambent.errors import InvalidCodeError, InvalidParameterError

if TYPE_CHECKING:
    from collections.abc import Iterable

_TIMEOUT_S = 600.0
"""Large wheels over a slow line; longer than this is a hang."""

_INSTALLERS_NOTES = ("INSTALLER", "REQUESTED", "direct_url.json")
"""What an installer says of itself in a `.dist-info` folder: who it was, what it was asked for, and the path or URL."""

_ERROR_LINES = 15
"""Lines of the installer's complaint that go into the error: the cause stands at the end."""


def install_requirements(requirements: Path | str | Iterable[str], target: Path, runtime: str) -> None:
    """Install requirements into `target`, without what differs between machines: byte code, scripts, notes. Blocks.

    When the runtime's version is not this interpreter's, only wheels are taken: a source distribution would be built
    for the wrong version.

    Args:
        requirements: Path of a requirements file, or requirement specifiers.
        target: An empty folder.
        runtime: For example `python3.11`; empty means this interpreter's version.

    Raises:
        InvalidCodeError: The file is missing, no installer is here, or the installer failed; with its last lines.
    """
    version = _python_version(runtime)
    if isinstance(requirements, Path | str):
        if not Path(requirements).is_file():
            raise InvalidCodeError(f"there is no requirements file {requirements}")
        _install(Path(requirements), target, version)
        return
    with tempfile.TemporaryDirectory(prefix="lambent-requirements-") as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text("".join(f"{line}\n" for line in requirements))
        _install(listed, target, version)


def installer_command(listed: Path, target: Path, version: str) -> list[str]:
    """Give the command that installs: this interpreter's pip, or uv where the environment was made without pip.

    Raises:
        InvalidCodeError: Neither is here.
    """
    own_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", "--no-compile", "--disable-pip-version-check", "--no-input"]
        command += ["--quiet", "--no-warn-script-location", "--target", str(target), "--requirement", str(listed)]
        if version != own_version:
            command += ["--python-version", version, "--implementation", "cp", "--only-binary", ":all:"]
        return command
    if uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--quiet", "--target", str(target), "--requirement", str(listed)]
        command += ["--python", sys.executable]
        if version != own_version:
            command += ["--python-version", version, "--only-binary", ":all:"]
        return command
    raise InvalidCodeError(f"requirements need pip in {sys.executable}, or uv on PATH")


def _install(listed: Path, target: Path, version: str) -> None:
    command = installer_command(listed.resolve(), target, version)
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        output = f"{error.stdout}\n{error.stderr}".strip().splitlines()
        tail = "\n".join(output[-_ERROR_LINES:])
        raise InvalidCodeError(f"installing the requirements for Python {version} failed:\n{tail}") from error
    except subprocess.TimeoutExpired as error:
        raise InvalidCodeError(f"installing the requirements took longer than {_TIMEOUT_S:.0f} s") from error
    _remove_traces(target)


def _remove_traces(target: Path) -> None:
    """Remove what tells of this machine, so that the same requirements give the same package everywhere."""
    # Scripts name this machine's interpreter in their first line.
    shutil.rmtree(target / "bin", ignore_errors=True)
    for metadata in target.glob("*.dist-info"):
        for note in _INSTALLERS_NOTES:
            (metadata / note).unlink(missing_ok=True)
        record = metadata / "RECORD"
        if not record.is_file():
            continue
        with record.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        with record.open("w", newline="", encoding="utf-8") as file:
            # Digests of the removed scripts would still differ; pip names them by a way out of the folder.
            csv.writer(file, lineterminator="\n").writerows(
                sorted(row for row in rows if not row[0].startswith("../") and (target / row[0]).exists())
            )


def _python_version(runtime: str) -> str:
    if not runtime:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    if (match := re.fullmatch(r"python(3\.\d{1,2})", runtime)) is None:
        raise InvalidParameterError(f"requirements can be installed for Python runtimes only, not for {runtime!r}")
    return match[1]
