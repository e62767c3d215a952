"""How a service error crosses gRPC: one status code, and its AWS name as ErrorInfo.reason."""

from __future__ import annotations

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from lambent import errors
from lambent.v1 import frame_pb2

_DOMAIN = "lambent"
_DISPATCHED = "lambent-dispatched"

_PLAIN_STATUS: dict[grpc.StatusCode, type[errors.ServiceError]] = {
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.INTERNAL: errors.UnavailableError,  # a connection that ends under a write; ours come with ErrorInfo
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    grpc.StatusCode.CANCELLED: errors.CancelledError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.RequestTooLargeError,
}
"""Statuses that gRPC itself makes, without ErrorInfo."""


def to_status(error: errors.ServiceError) -> grpc.Status:
    """Give the status that a unary call ends with."""
    info = error_details_pb2.ErrorInfo(reason=error.aws_name, domain=_DOMAIN, metadata=dict(error.details))
    if error.dispatched:
        info.metadata[_DISPATCHED] = "true"
    code: int = error.status.value[0]
    status = status_pb2.Status(code=code, message=error.message)
    status.details.add().Pack(info)
    converted: grpc.Status = rpc_status.to_status(status)
    return converted


def from_rpc_error(error: grpc.aio.AioRpcError) -> errors.ServiceError:
    """Rebuild the error that the server raised, or name what gRPC itself met."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # the stub knows the blocking call only
    if status is not None:
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == _DOMAIN:
                details = dict(info.metadata)
                dispatched = details.pop(_DISPATCHED, "") == "true"
                return errors.service_error(info.reason, status.message, dispatched=dispatched, details=details)
    cls = _PLAIN_STATUS.get(error.code(), errors.InternalError)
    # Such a status does not say how far the call came, and unknown counts as dispatched; a refused token got nowhere.
    dispatched = error.code() is not grpc.StatusCode.UNAUTHENTICATED
    return cls(error.details() or error.code().name, dispatched=dispatched)


def to_frame(error: errors.ServiceError) -> frame_pb2.ServiceError:
    """Give the form that the error has in an END frame."""
    code: int = error.status.value[0]
    return frame_pb2.ServiceError(
        reason=error.aws_name,
        message=error.message,
        status_code=code,
        dispatched=error.dispatched,
        details=error.details,
    )


def from_frame(error: frame_pb2.ServiceError) -> errors.ServiceError:
    """Rebuild the error that an END frame carries."""
    return errors.service_error(error.reason, error.message, dispatched=error.dispatched, details=dict(error.details))
