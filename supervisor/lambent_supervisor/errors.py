"""What can keep a cluster from starting; each error says what would help.

LambentError
`-- SupervisorError
    |-- NodeShareError
    |-- DataDirectoryError
    |   |-- DataDirectoryLockedError
    |   |-- DataDirectoryNotWritableError
    |   `-- DataDirectoryFormatError
    |-- PortTakenError
    |-- ProgramError
    |   |-- ProgramMissingError
    |   `-- ProgramVersionError
    `-- ChildFailedError
"""

from __future__ import annotations

from lambent.errors import LambentError


class SupervisorError(LambentError):
    """The cluster cannot be started or stopped.

    Attributes:
        message: What is wrong, with its value.
        help: One sentence: what would help.
    """

    def __init__(self, message: str, *, help_: str) -> None:
        super().__init__(message)
        self.message = message
        self.help = help_


class NodeShareError(SupervisorError):
    """The machine cannot be divided among so many nodes."""


class DataDirectoryError(SupervisorError):
    """The data directory cannot be used."""


class DataDirectoryLockedError(DataDirectoryError):
    """Another `lambent up` runs on it."""


class DataDirectoryNotWritableError(DataDirectoryError):
    """Nothing can be written there."""


class DataDirectoryFormatError(DataDirectoryError):
    """It is of another format version, or not ours."""


class PortTakenError(SupervisorError):
    """Another process listens on a port that was asked for."""


class ProgramError(SupervisorError):
    """etcd or nats-server cannot be used."""


class ProgramMissingError(ProgramError):
    """The program is not installed."""


class ProgramVersionError(ProgramError):
    """The program is too old, or of a version that loses data."""


class ChildFailedError(SupervisorError):
    """A child did not become ready while the cluster started."""


def _subclasses(cls: type[SupervisorError]) -> list[type[SupervisorError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _subclasses(child))]


_BY_NAME = {cls.__name__: cls for cls in _subclasses(SupervisorError)}


def supervisor_error(name: str, message: str, help_: str) -> SupervisorError:
    """Rebuild an error that a detached supervisor reported by the name of its class."""
    return _BY_NAME.get(name, SupervisorError)(message, help_=help_)
