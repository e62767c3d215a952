"""Runs one function of an App: imports its module once, then calls it with the arguments of each event."""

import importlib
import os
from typing import Any

# Not an import statement: on the cluster this is the small stand-in beside this file, not the package that ships it.
shim = importlib.import_module("lambent")


def _load(module: str, function: str) -> Any:
    stopped = ""
    try:
        importlib.import_module(module)
    except shim.ImportStop as stop:
        # A script that calls its functions at its end, without `if __name__ == "__main__"`: what it defined before
        # that is all that is needed here.
        stopped = str(stop)
    if function in shim.functions:
        return shim.functions[function]
    if stopped:
        raise ImportError(
            f"{module} uses {stopped} before it defines {function}; put that use under `if __name__ == '__main__':`"
        )
    raise ImportError(f"{module} defines no function {function} with @app.function()")


# What the environment says is all that this file knows of its function.
_function = _load(os.environ["LAMBENT_APP_MODULE"], os.environ["LAMBENT_APP_FUNCTION"])
shim.end_import()


def handler(event: dict[str, Any], context: object) -> object:  # noqa: ARG001 - the runtime gives both
    """Call the function. The context is not passed on: the function is an ordinary one."""
    return _function(*event["args"], **event["kwargs"])
