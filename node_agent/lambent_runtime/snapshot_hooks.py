"""Runs what a function has registered with `snapshot_restore_py`: our module of that name, or its own copy of AWS's."""

from __future__ import annotations

import sys
from typing import Any

from .faults import FaultError

SNAP_START = "snap-start"
"""AWS_LAMBDA_INITIALIZATION_TYPE of an environment that is initialised before a call comes for it."""
MODULE = "snapshot_restore_py"


def run_before_snapshot() -> None:
    """Run the hooks that stand at the end of init, in the reverse order of their registration, each once.

    Raises:
        FaultError: One raised.
    """
    hooks = _registered("get_before_snapshot")
    while hooks:
        _run(hooks.pop(), "Runtime.BeforeSnapshotError")


def run_after_restore() -> None:
    """Run the hooks that stand before the first invocation, in the order of their registration.

    Raises:
        FaultError: One raised.
    """
    for hook in _registered("get_after_restore"):
        _run(hook, "Runtime.AfterRestoreError")


def _registered(accessor: str) -> list[Any]:
    module = sys.modules.get(MODULE)
    if module is None:
        return []  # the function has never imported it
    hooks: list[Any] = getattr(module, accessor)()
    return hooks


def _run(hook: Any, error_type: str) -> None:
    function, arguments, options = hook
    try:
        function(*arguments, **options)
    except Exception as error:
        raise FaultError(error_type, f"{type(error).__name__}: {error}") from error
