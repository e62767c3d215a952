"""Stop a cluster from another process, and remove what one that was killed left."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from .data_directory import LockedDataDirectory
from .errors import DataDirectoryLockedError, SupervisorError
from .sweep import Swept, sweep

if TYPE_CHECKING:
    from .data_directory import DataDirectory

# Longer than the supervisor needs when every layer of its children has to be killed.
DOWN_TIMEOUT_S = 60.0


def stop_cluster(directory: DataDirectory) -> bool:
    """Stop the cluster of a data directory and wait for its end; whether one was running.

    A supervisor that does not end in time is killed, and what it leaves is removed.

    Raises:
        DataDirectoryError: The data directory cannot be used.
        SupervisorError: The supervisor belongs to another user, or cannot be killed.
    """
    holder = directory.holder()
    if holder is None:
        return bool(sweep_leftovers(directory))
    try:
        holder.send(signal.SIGTERM)
        if not holder.wait_until_ended(DOWN_TIMEOUT_S):
            holder.send(signal.SIGKILL)
            holder.wait_until_ended(DOWN_TIMEOUT_S)
    except PermissionError as error:
        raise SupervisorError(
            f"the supervisor, process {holder.pid}, belongs to another user", help_="Run this as root."
        ) from error
    with contextlib.suppress(DataDirectoryLockedError):  # another `up` was quicker; it has swept
        sweep_leftovers(directory)
    return True


def sweep_leftovers(directory: DataDirectory) -> Swept:
    """Remove what a killed supervisor left in a data directory that nobody uses; nothing when there is no directory."""
    if not directory.format.exists():
        return Swept()
    with LockedDataDirectory(directory):
        swept = sweep(directory)
        directory.cluster.unlink(missing_ok=True)
    return swept
