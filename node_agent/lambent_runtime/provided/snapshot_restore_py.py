"""Hooks around a snapshot, under the name and with the functions of AWS's own module of its Python runtimes.

    from snapshot_restore_py import register_after_restore, register_before_snapshot

    @register_after_restore
    def connect(): ...

Here no snapshot is taken: an environment is initialised and kept. Hooks before the snapshot run at the end of its init,
in the reverse order of their registration; hooks after the restore run before its first invocation, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
Hook = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_before_snapshot: list[Hook] = []
_after_restore: list[Hook] = []


def register_before_snapshot(func: FunctionT, *args: Any, **kwargs: Any) -> FunctionT:
    """Have `func` called with these arguments when init is over; gives it back, to serve as a decorator."""
    _before_snapshot.append((func, args, kwargs))
    return func


def register_after_restore(func: FunctionT, *args: Any, **kwargs: Any) -> FunctionT:
    """Have `func` called with these arguments before the first invocation; gives it back, to serve as a decorator."""
    _after_restore.append((func, args, kwargs))
    return func


def get_before_snapshot() -> list[Hook]:
    """Give the hooks before the snapshot, in the order of their registration."""
    return _before_snapshot


def get_after_restore() -> list[Hook]:
    """Give the hooks after the restore, in the order of their registration."""
    return _after_restore
