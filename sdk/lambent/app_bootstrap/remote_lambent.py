"""What `import lambent` gives inside an App's function: enough to import its module, and nothing that calls out.

The real package needs gRPC, which a function's package does not carry.
"""

from collections.abc import Callable
from typing import Any, NoReturn

functions: dict[str, Callable[..., object]] = {}
"""The module's remote functions by name."""

_imported = False


class ImportStop(BaseException):
    """The module being imported begins to use the cluster: its definitions are over.

    Not an Exception, so that the module's own `except Exception` does not swallow it.
    """


def end_import() -> None:
    """Say that the module is imported: from now on a use of the cluster is an ordinary error."""
    global _imported  # noqa: PLW0603 - the state of this process
    _imported = True


def _refuse(what: str) -> NoReturn:
    if _imported:
        raise RuntimeError(f"{what} cannot be used inside a function; call the function itself instead")
    raise ImportStop(what)


class App:
    """Remembers which functions the module declares."""

    def __init__(self, name: str, **_options: object) -> None:
        self.name = name

    def function(self, **_options: object) -> Callable[[Callable[..., object]], "RemoteFunction"]:
        """Declare the function below."""

        def decorate(function: Callable[..., object]) -> RemoteFunction:
            functions[function.__name__] = function
            return RemoteFunction(function)

        return decorate

    @property
    def client(self) -> NoReturn:
        """There is none here."""
        _refuse("App.client")


class RemoteFunction:
    """A declared function: here it can only be called."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.__wrapped__ = function
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.local = function

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the function."""
        return self.__wrapped__(*args, **kwargs)

    def remote(self, *_args: object, **_kwargs: object) -> NoReturn:
        """There is no cluster here."""
        _refuse(f"{self.__name__}.remote")

    def map(self, *_args: object, **_kwargs: object) -> NoReturn:
        """There is no cluster here."""
        _refuse(f"{self.__name__}.map")

    def deploy(self) -> NoReturn:
        """There is no cluster here."""
        _refuse(f"{self.__name__}.deploy")


def __getattr__(name: str) -> Any:
    """Errors can be named in `except`, clients cannot be made."""
    if name.startswith("_"):
        raise AttributeError(name)
    if name.endswith("Error"):
        value = type(name, (Exception,), {"__module__": "lambent"})
    else:
        value = type(name, (), {"__new__": lambda *_args, **_kwargs: _refuse(f"lambent.{name}")})
    globals()[name] = value
    return value
