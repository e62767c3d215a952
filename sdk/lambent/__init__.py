"""Lambent: AWS Lambda for machines you own.

    async with lambent.AsyncClient() as client:
        result = await client.invoke("thumbnail", {"width": 64}, timeout_s=30)
        print(result.json())

`Client` is the same, blocking. `App` makes remote functions of Python functions. Names are loaded when first used, so
that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambent.app import App, RemoteFunction
    from lambent.blocking import BlockingStream, Client
    from lambent.client import AsyncClient
    from lambent.endpoint import Endpoint, discover
    from lambent.errors import (
        AliasNotFoundError,
        CallerError,
        CancelledError,
        CodeTooLargeError,
        DeadlineExceededError,
        FunctionError,
        FunctionNotFoundError,
        InternalError,
        InvalidCodeError,
        InvalidParameterError,
        InvalidRequestContentError,
        InvalidRuntimeError,
        LambentError,
        NoCapacityError,
        NodeLostError,
        PermissionDeniedError,
        PreconditionFailedError,
        RequestTooLargeError,
        ResourceConflictError,
        ResourceNotFoundError,
        ServiceError,
        SnapStartTimeoutError,
        StaleEpochError,
        ThrottledError,
        UnauthenticatedError,
        UnavailableError,
    )
    from lambent.packaging import CodePackage, build_package
    from lambent.results import (
        Alias,
        ClusterStatus,
        ColdStartPhases,
        Component,
        Function,
        FunctionState,
        InvokeResult,
        LastUpdateStatus,
        LogEvent,
        NetworkMode,
        Node,
        VpcConfig,
    )
    from lambent.stream import ResponseStream

__all__ = [
    # Clients.
    "App",
    "AsyncClient",
    "BlockingStream",
    "Client",
    "Endpoint",
    "RemoteFunction",
    "ResponseStream",
    "discover",
    # Code packages.
    "CodePackage",
    "build_package",
    # Results.
    "Alias",
    "ClusterStatus",
    "ColdStartPhases",
    "Component",
    "Function",
    "FunctionState",
    "InvokeResult",
    "LastUpdateStatus",
    "LogEvent",
    "NetworkMode",
    "Node",
    "VpcConfig",
    # Errors.
    "AliasNotFoundError",
    "CallerError",
    "CancelledError",
    "CodeTooLargeError",
    "DeadlineExceededError",
    "FunctionError",
    "FunctionNotFoundError",
    "InternalError",
    "InvalidCodeError",
    "InvalidParameterError",
    "InvalidRequestContentError",
    "InvalidRuntimeError",
    "LambentError",
    "NoCapacityError",
    "NodeLostError",
    "PermissionDeniedError",
    "PreconditionFailedError",
    "RequestTooLargeError",
    "ResourceConflictError",
    "ResourceNotFoundError",
    "ServiceError",
    "SnapStartTimeoutError",
    "StaleEpochError",
    "ThrottledError",
    "UnauthenticatedError",
    "UnavailableError",
]

_MODULES = {
    "App": "app",
    "AsyncClient": "client",
    "BlockingStream": "blocking",
    "Client": "blocking",
    "CodePackage": "packaging",
    "Endpoint": "endpoint",
    "RemoteFunction": "app",
    "ResponseStream": "stream",
    "build_package": "packaging",
    "discover": "endpoint",
} | dict.fromkeys(
    (
        "Alias",
        "ClusterStatus",
        "ColdStartPhases",
        "Component",
        "Function",
        "FunctionState",
        "InvokeResult",
        "LastUpdateStatus",
        "LogEvent",
        "NetworkMode",
        "Node",
        "VpcConfig",
    ),
    "results",
)


def __getattr__(name: str) -> object:
    """Load a public name's module (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'lambent' has no attribute {name!r}")
    module = importlib.import_module(f"lambent.{_MODULES.get(name, 'errors')}")
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
