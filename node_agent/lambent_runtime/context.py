"""The context object that a handler gets, with the attributes of AWS's Python runtime."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from .faults import FaultError

if TYPE_CHECKING:
    from .channel import InvokeHeader


class CognitoIdentity:
    """Who called through Amazon Cognito; both attributes are None here."""

    __slots__ = ("cognito_identity_id", "cognito_identity_pool_id")

    def __init__(self) -> None:
        self.cognito_identity_id: str | None = None
        self.cognito_identity_pool_id: str | None = None


class Client:
    """The client application, as it described itself; an attribute that it left out is None."""

    __slots__ = ("app_package_name", "app_title", "app_version_code", "app_version_name", "installation_id")

    def __init__(self, values: dict[str, object]) -> None:
        for name in self.__slots__:
            setattr(self, name, values.get(name))


class ClientContext:
    """The caller's client context: `custom`, `env` and `client`."""

    __slots__ = ("client", "custom", "env")

    def __init__(self, values: dict[str, object]) -> None:
        client = values.get("client")
        self.custom = values.get("custom")
        self.env = values.get("env")
        self.client = Client(client) if isinstance(client, dict) else None


class FunctionFacts:
    """What the context says of the function, read from the environment once."""

    __slots__ = ("function_name", "function_version", "log_group_name", "log_stream_name", "memory_limit_in_mb")

    def __init__(self) -> None:
        self.log_group_name = os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME")
        self.log_stream_name = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME")
        self.function_name = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
        self.memory_limit_in_mb = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        self.function_version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")


class LambdaContext:
    """One invocation as its handler sees it.

    Attributes:
        aws_request_id: The invocation's id.
        function_name: Name of the function.
        function_version: Version that runs; `$LATEST` or a number.
        invoked_function_arn: The ARN as the caller gave it.
        memory_limit_in_mb: Configured memory, as text, as on AWS.
        log_group_name: Where the output goes.
        log_stream_name: This environment's part of it.
        identity: Always there, always empty.
        client_context: The caller's, or None.
    """

    def __init__(self, header: InvokeHeader, facts: FunctionFacts) -> None:
        self.aws_request_id = header.request_id
        self.log_group_name = facts.log_group_name
        self.log_stream_name = facts.log_stream_name
        self.function_name = facts.function_name
        self.memory_limit_in_mb = facts.memory_limit_in_mb
        self.function_version = facts.function_version
        self.invoked_function_arn = header.invoked_function_arn
        self.client_context = _parse_client_context(header.client_context)
        self.identity = CognitoIdentity()
        self._deadline_ms = header.deadline_ms

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the invocation times out; 0 when it is late."""
        return max(self._deadline_ms - int(time.time() * 1000), 0)

    def log(self, message: object) -> None:
        """Write a message to the log as it is."""
        print(message, end="", flush=True)

    def __repr__(self) -> str:
        names = ("aws_request_id", "function_name", "function_version", "invoked_function_arn", "memory_limit_in_mb")
        return f"LambdaContext([{','.join(f'{name}={getattr(self, name)}' for name in names)}])"


def _parse_client_context(text: str | None) -> ClientContext | None:
    if not text:
        return None
    try:
        values = json.loads(text)
    except ValueError as error:
        message = f"Unable to parse Client Context JSON: {error}"
        raise FaultError("Runtime.LambdaContextUnmarshalError", message) from error
    if not isinstance(values, dict):
        raise FaultError("Runtime.LambdaContextUnmarshalError", "Unable to parse Client Context JSON: not an object")
    return ClientContext(values)
