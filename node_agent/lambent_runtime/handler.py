"""Finds the handler that a function's configuration names, with AWS's errors when it is not there."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from typing import TYPE_CHECKING, Any

from .faults import FaultError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TASK_ROOT = "/var/task"
_LOADED_ON_AWS = frozenset(
    (
        "__main__",
        "abc",
        "codecs",
        "encodings",
        "importlib",
        "io",
        "json",
        "lambent_runtime",
        "logging",
        "os",
        "sys",
        "time",
        "traceback",
    )
)
"""AWS's runtime has these loaded before it looks for the handler, so that a function's file cannot replace them."""


def load_handler(name: str) -> Callable[[Any, Any], object]:
    """Import the handler's module and return the handler.

    Args:
        name: `package/module.function` or `package.module.function`; the last dot divides.

    Raises:
        FaultError: The name is malformed, the module cannot be imported or has no such attribute; types as on AWS.
        Exception: Whatever the module itself raises.
    """
    module_name, dot, attribute = name.rpartition(".")
    if not dot:
        message = f"Bad handler '{name}': not enough values to unpack (expected 2, got 1)"
        raise FaultError("Runtime.MalformedHandlerName", message)
    if module_name.split(".")[0] in sys.builtin_module_names:
        message = f"Cannot use built-in module {module_name} as a handler module"
        raise FaultError("Runtime.BuiltInModuleConflict", message)
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        raise FaultError("Runtime.ImportModuleError", f"Unable to import module '{module_name}': {error}") from error
    except SyntaxError as error:
        trace = [f'  File "{error.filename}" Line {error.lineno}\n    {error.text}']
        message = f"Syntax error in module '{module_name}': {error}"
        raise FaultError("Runtime.UserCodeSyntaxError", message, trace) from error
    try:
        handler: Callable[[Any, Any], object] = getattr(module, attribute)
    except AttributeError as error:
        message = f"Handler '{attribute}' missing on module '{module_name}'"
        raise FaultError("Runtime.HandlerNotFound", message) from error
    return handler


def search_path(standard: Iterable[str], extra: str | None) -> list[str]:
    """Return `sys.path` as AWS's Python runtimes have it.

    Args:
        standard: The interpreter's own directories.
        extra: The function's `PYTHONPATH`, whose entries come before those.
    """
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    layers = [f"/opt/python/lib/{version}/site-packages", "/opt/python"]
    wanted = [entry for entry in (extra or "").split(os.pathsep) if entry]
    return list(dict.fromkeys([TASK_ROOT, *layers, *wanted, "/var/runtime", *standard]))


def _is_module(directory: str, entry: str, name: str) -> bool:
    """Tell whether the import system takes an entry of a directory for the module `name`.

    A folder without `__init__` is a namespace package, which comes after any module of its name: PEP 420.
    """
    suffixes = importlib.machinery.all_suffixes()
    if entry == name:
        return any(os.path.isfile(f"{directory}/{name}/__init__{suffix}") for suffix in suffixes)
    return entry[len(name) :] in suffixes


class _Preloaded:
    """Top-level names of modules that only the zygote has loaded."""

    names: frozenset[str] = frozenset()


def remember_preloaded() -> None:
    """Note, in the zygote, which modules a function's own ones come before."""
    loaded = {name.split(".", 1)[0] for name in sys.modules}
    _Preloaded.names = frozenset(loaded - _LOADED_ON_AWS - set(sys.builtin_module_names))


def forget_shadowed(directory: str) -> None:
    """Drop preloaded modules that the function's code replaces by its own of the same name.

    The zygote has loaded more of the standard library than AWS's runtime does before it imports the handler; there a
    file `queue.py` of the function's comes before the standard library's, so it must here.

    Args:
        directory: The function's code.
    """
    shadowed = {
        name
        for entry in os.listdir(directory)
        if (name := entry.split(".", 1)[0]) in _Preloaded.names
        if _is_module(directory, entry, name)
    }
    if not shadowed:
        return
    for name in [name for name in sys.modules if name.split(".", 1)[0] in shadowed]:
        del sys.modules[name]
