"""The errors that Lambent raises, and how they travel.

    LambentError
    |-- FunctionError                     the function failed: its own type, message and stack trace
    `-- ServiceError                      the call failed outside the function
        |-- CallerError                   the caller has to change something
        |   |-- InvalidParameterError
        |   |   `-- InvalidRequestContentError
        |   |-- ResourceNotFoundError
        |   |   |-- FunctionNotFoundError
        |   |   `-- AliasNotFoundError
        |   |-- ResourceConflictError
        |   |-- PreconditionFailedError
        |   |-- RequestTooLargeError
        |   |-- CodeTooLargeError
        |   |-- InvalidCodeError
        |   |-- InvalidRuntimeError
        |   |-- UnauthenticatedError
        |   `-- PermissionDeniedError
        |-- ThrottledError                retry later
        |-- NoCapacityError               no node can hold the environment now, or ever
        |-- UnavailableError              a part of the cluster is away
        |   |-- NodeLostError
        |   `-- StaleEpochError
        |-- DeadlineExceededError
        |-- CancelledError
        `-- InternalError                 a defect of Lambent

Each class carries its gRPC status and its AWS name, so that the mapping is in one place and works both ways. On a
unary call the name travels as ErrorInfo.reason, on a stream as ServiceError.reason; the client rebuilds the class from
the name alone, never from the message.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class LambentError(Exception):
    """Base of everything that Lambent raises."""


class FunctionError(LambentError):
    """The function raised, timed out, exited or gave a result that cannot be sent.

    Attributes:
        error_type: AWS's `errorType`, for example `ValueError` or `Sandbox.Timedout`.
        error_message: AWS's `errorMessage`.
        stack_trace: Lines of the remote stack trace; empty when the platform, not the handler, reported the failure.
        request_id: The invocation's request id.
        payload: The error JSON as received.
        log_tail: Last 4 KiB of the invocation's log, when asked for.
    """

    def __init__(
        self,
        error_type: str,
        error_message: str,
        *,
        stack_trace: tuple[str, ...] = (),
        request_id: str = "",
        payload: bytes = b"",
        log_tail: bytes = b"",
    ) -> None:
        super().__init__(error_type, error_message)  # What pickle makes it of again: an answer crosses processes.
        self.error_type = error_type
        self.error_message = error_message
        self.stack_trace = stack_trace
        self.request_id = request_id
        self.payload = payload
        self.log_tail = log_tail

    def __str__(self) -> str:
        return f"{self.error_type}: {self.error_message}"


class ServiceError(LambentError):
    """The call failed outside the function.

    Attributes:
        message: One sentence: the thing, its value and what would help.
        dispatched: True when the function may have run. Only what was not dispatched is safe to send again.
        details: Further facts by name, for example `Reason` of a throttle.
    """

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    aws_name: ClassVar[str] = "UnknownException"

    def __init__(self, message: str, *, dispatched: bool = False, details: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.dispatched = dispatched
        self.details = details or {}


class CallerError(ServiceError):
    """The caller has to change something; the same call fails again."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    aws_name = "CallerException"


class InvalidParameterError(CallerError):
    """A value is out of its range or form."""

    aws_name = "InvalidParameterValueException"


class InvalidRequestContentError(InvalidParameterError):
    """The body of the request cannot be read."""

    aws_name = "InvalidRequestContentException"


class ResourceNotFoundError(CallerError):
    """Something that the call names does not exist."""

    status = grpc.StatusCode.NOT_FOUND
    aws_name = "ResourceNotFoundException"


class FunctionNotFoundError(ResourceNotFoundError):
    """No function or version has this name."""

    aws_name = "ResourceNotFoundException.Function"


class AliasNotFoundError(ResourceNotFoundError):
    """No alias has this name."""

    aws_name = "ResourceNotFoundException.Alias"


class ResourceConflictError(CallerError):
    """It exists already, or its state forbids the call."""

    status = grpc.StatusCode.ALREADY_EXISTS
    aws_name = "ResourceConflictException"


class PreconditionFailedError(CallerError):
    """The revision given is not the latest one."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    aws_name = "PreconditionFailedException"


class RequestTooLargeError(CallerError):
    """The payload is over 6 MiB."""

    status = grpc.StatusCode.OUT_OF_RANGE
    aws_name = "RequestTooLargeException"


class CodeTooLargeError(CallerError):
    """The code package is over a limit."""

    status = grpc.StatusCode.OUT_OF_RANGE
    aws_name = "RequestEntityTooLargeException"


class InvalidCodeError(InvalidParameterError):
    """The code package is not a sound zip."""

    aws_name = "InvalidZipFileException"


class InvalidRuntimeError(CallerError):
    """No node has this runtime."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    aws_name = "InvalidRuntimeException"


class UnauthenticatedError(CallerError):
    """The call carries no token, or a wrong one."""

    status = grpc.StatusCode.UNAUTHENTICATED
    aws_name = "UnrecognizedClientException"


class PermissionDeniedError(CallerError):
    """The token does not allow this call."""

    status = grpc.StatusCode.PERMISSION_DENIED
    aws_name = "AccessDeniedException"


class ThrottledError(ServiceError):
    """A concurrency limit is reached; `details["Reason"]` says which one."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    aws_name = "TooManyRequestsException"


class NoCapacityError(ServiceError):
    """No node could hold the environment within the time that a call may wait."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    aws_name = "NoCapacityException"


class UnavailableError(ServiceError):
    """A part of the cluster does not answer; the call may be sent again if it was not dispatched."""

    status = grpc.StatusCode.UNAVAILABLE
    aws_name = "ServiceUnavailableException"


class NodeLostError(UnavailableError):
    """The node that ran the invocation is gone."""

    aws_name = "NodeLostException"


class StaleEpochError(UnavailableError):
    """The scheduler no longer owns the function."""

    aws_name = "StaleEpochException"


class DeadlineExceededError(ServiceError):
    """The caller's time ran out."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    aws_name = "DeadlineExceededException"


class SnapStartTimeoutError(ServiceError):
    """The hooks that stand before the first invocation of an environment with SnapStart took too long."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    aws_name = "SnapStartTimeoutException"


class CancelledError(ServiceError):
    """The caller cancelled the call."""

    status = grpc.StatusCode.CANCELLED
    aws_name = "CancelledException"


class InternalError(ServiceError):
    """A defect of Lambent; the scheduler's log has the details."""

    status = grpc.StatusCode.INTERNAL
    aws_name = "ServiceException"


def service_error_classes(root: type[ServiceError] = ServiceError) -> list[type[ServiceError]]:
    """Give every class of service error that can travel, `root` and all below it that have a name of their own."""
    own = [root] if "aws_name" in vars(root) else []
    return [*own, *(cls for child in root.__subclasses__() for cls in service_error_classes(child))]


_BY_AWS_NAME: dict[str, type[ServiceError]] = {cls.aws_name: cls for cls in service_error_classes()}


def service_error(
    reason: str, message: str, *, dispatched: bool = False, details: dict[str, str] | None = None
) -> ServiceError:
    """Rebuild an error from the name it travelled under. An unknown name gives the base class."""
    return _BY_AWS_NAME.get(reason, ServiceError)(message, dispatched=dispatched, details=details)
