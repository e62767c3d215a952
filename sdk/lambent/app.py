"""Remote functions out of Python functions.

    app = lambent.App("photos")

    @app.function(memory_mib=256, timeout_s=10)
    def double(x: int) -> int:
        return 2 * x

    double.local(3)
    double.remote(3)
    list(double.map(range(1000)))

The defining module is deployed on first use when it changed. A module inside a package is sent with its whole top
package, a script or a lone module by itself. Arguments and results travel as JSON.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import threading
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar, cast

from lambent.blocking import Client
from lambent.errors import InvalidCodeError, InvalidParameterError
from lambent.functions import default_runtime
from lambent.packaging import build_package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import ModuleType

    from lambent.map_run import MapProgress
    from lambent.packaging import CodePackage

P = ParamSpec("P")
R = TypeVar("R")

_HANDLER_MODULE = "lambent_app_handler"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class _Options:
    runtime: str | None
    memory_mib: int | None
    timeout_s: float | None
    environment: Mapping[str, str]
    requirements: tuple[str, ...]


class App:
    """A set of Python functions that run on the cluster.

    Args:
        name: Begins the names of its functions: `<app>-<function>`.
        client: Talks to the cluster; None makes one when first needed, as `Client()` does.
        requirements: Requirement specifiers that every function's package gets.

    Raises:
        InvalidParameterError: The name has other characters than [A-Za-z0-9_-].
    """

    def __init__(self, name: str, *, client: Client | None = None, requirements: Iterable[str] = ()) -> None:
        if _NAME.fullmatch(name) is None:
            raise InvalidParameterError(f"app name {name!r} must be 1 to 64 characters of [A-Za-z0-9_-]")
        self.name = name
        self._client = client
        self._requirements = tuple(requirements)
        self._lock = threading.Lock()

    @property
    def client(self) -> Client:
        """The client that remote calls go through."""
        with self._lock:
            if self._client is None:
                self._client = Client()
            return self._client

    def function(
        self,
        *,
        name: str = "",
        runtime: str | None = None,
        memory_mib: int | None = None,
        timeout_s: float | None = None,
        environment: Mapping[str, str] | None = None,
        requirements: Iterable[str] = (),
    ) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]:
        """Make a remote function of the function below.

        Args:
            name: Function name on the cluster; empty means `<app>-<function>`.
            runtime: For example `python3.11`; the default is the version of this interpreter.
            memory_mib: [128, 10240], default 128.
            timeout_s: [1, 900], default 3.
            environment: Environment variables.
            requirements: Requirement specifiers beside the app's; resolved at each process's first use.

        Raises:
            InvalidParameterError: The function is a coroutine function or a generator function, or is not at the
                module's top level.
        """
        options = _Options(
            runtime=runtime,
            memory_mib=memory_mib,
            timeout_s=timeout_s,
            environment=dict(environment or {}),
            requirements=(*self._requirements, *requirements),
        )

        def decorate(function: Callable[P, R]) -> RemoteFunction[P, R]:
            return RemoteFunction(self, function, name or f"{self.name}-{function.__name__}", options)

        return decorate


class RemoteFunction(Generic[P, R]):
    """A function that runs here (`local`) or on the cluster (`remote`, `map`). Calling it runs it here.

    Attributes:
        name: Its name on the cluster.
    """

    def __init__(self, app: App, function: Callable[P, R], name: str, options: _Options) -> None:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidParameterError(f"{function.__name__} is asynchronous; a remote function is an ordinary one")
        if inspect.isgeneratorfunction(function):
            raise InvalidParameterError(
                f"{function.__name__} is a generator; deploy a handler and read it by `client.stream`"
            )
        if "." in function.__qualname__:
            raise InvalidParameterError(
                f"{function.__qualname__} is defined inside {function.__qualname__.rpartition('.')[0]}; a remote "
                "function stands at the top level of its module, where the cluster can find it"
            )
        functools.update_wrapper(self, function)
        self.name = name
        self._app = app
        self._function = function
        self._options = options
        self._deploying = threading.Lock()
        self._deployed = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it in this process, like `local`."""
        return self._function(*args, **kwargs)

    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it in this process."""
        return self._function(*args, **kwargs)

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it on the cluster and wait for the result.

        Raises:
            FunctionError: It raised, timed out or ended; with the remote stack trace.
            ServiceError: The call failed outside the function.
        """
        self.deploy()
        # The cluster gives back what the function returned, as far as JSON can say it.
        return cast("R", self._app.client.invoke(self.name, _event(*args, **kwargs)).json())

    def map(
        self,
        items: Iterable[object],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        on_progress: MapProgress | None = None,
    ) -> Iterator[R]:
        """Run it once for each item, which becomes its only argument.

        Args:
            items: Any iterable; taken as calls start.
            concurrency: Most calls in flight.
            ordered: True for the order of the items, False for results as they come.
            on_progress: Called with the number of results and of items (None if unknown).

        Raises:
            FunctionError: A call failed; the rest is cancelled.
        """
        self.deploy()
        results = self._app.client.map(
            self.name,
            _Events(items) if hasattr(items, "__len__") else (_event(item) for item in items),
            concurrency=concurrency,
            ordered=ordered,
            on_progress=on_progress,
        )
        for result in results:
            yield cast("R", result.json())

    def deploy(self) -> None:
        """Bring the cluster to this code and these options. Done by the first remote call of a process."""
        with self._deploying:
            if self._deployed:
                return
            options = self._options
            with self._package() as package:
                self._app.client.deploy(
                    self.name,
                    package,
                    handler=f"{_HANDLER_MODULE}.handler",
                    runtime=options.runtime or default_runtime(),
                    memory_mib=128 if options.memory_mib is None else options.memory_mib,
                    timeout_s=3 if options.timeout_s is None else options.timeout_s,
                    environment={
                        **options.environment,
                        "LAMBENT_APP_MODULE": self._module_name,
                        "LAMBENT_APP_FUNCTION": self._function.__name__,
                    },
                )
            self._deployed = True

    @functools.cached_property
    def _module(self) -> ModuleType:
        return sys.modules[self._function.__module__]

    @functools.cached_property
    def _module_name(self) -> str:
        """Name that the module has on the cluster: a script is imported there by the name of its file."""
        if self._module.__name__ != "__main__":
            return self._module.__name__
        if (spec := self._module.__spec__) is not None:
            return spec.name
        source = _source_of(self._module)
        if "." in source.stem:
            raise InvalidCodeError(
                f"script {source.name} cannot be imported on the cluster, where a dot means a package; rename it"
            )
        return source.stem

    def _package(self) -> CodePackage:
        source = _source_of(self._module)
        extra = _bootstrap_files()
        depth = self._module_name.count(".")
        if source.name == "__init__.py":
            depth += 1
        top = source.parents[depth - 1] if depth else source
        if depth and top.name != self._module_name.partition(".")[0]:
            raise InvalidCodeError(
                f"{source} is not where module {self._module_name} would be in its package; {top} is not sent"
            )
        return build_package(
            top,
            requirements=self._options.requirements,
            runtime=self._options.runtime or "",
            prefix=f"{top.name}/",
            extra=extra,
        )


class _Events:
    """Items of a known number as events, made when taken."""

    def __init__(self, items: Iterable[object]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # the caller looked

    def __iter__(self) -> Iterator[object]:
        return (_event(item) for item in self._items)


def _event(*args: object, **kwargs: object) -> dict[str, object]:
    return {"args": args, "kwargs": kwargs}


def _source_of(module: ModuleType) -> Path:
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise InvalidCodeError(
            f"module {module.__name__} has no source file to deploy (an interactive session?); put the function into a "
            "file"
        )
    return Path(file).resolve()


def _bootstrap_files() -> dict[str, bytes]:
    """Give what runs beside the module: the handler, and a `lambent` that needs nothing but the standard library."""
    folder = resources.files("lambent.app_bootstrap")
    return {
        f"{_HANDLER_MODULE}.py": (folder / "handler.py").read_bytes(),
        "lambent/__init__.py": (folder / "remote_lambent.py").read_bytes(),
    }
