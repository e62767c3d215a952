"""What can go wrong with etcd.

UnavailableError
|-- EtcdUnavailableError      no member did it in time
|   |-- EtcdFullError         the database is at its quota: reads work, writes do not
|   `-- LeaseLostError        the lease that a key was to live under has ended
`-- EtcdUnsupportedError      the member's release is too old, or known to lose data
InternalError
`-- EtcdRequestError          etcd refused the request: a defect, or credentials that do not fit
    `-- EtcdCompactedError    the revision asked for is gone
"""

from __future__ import annotations

import grpc
import grpc.aio

from lambent.errors import InternalError, ServiceError, UnavailableError


class EtcdUnavailableError(UnavailableError):
    """No etcd member answered in time.

    `dispatched` is False when the request certainly had no effect, and True for a write that may have been done.
    """


class EtcdFullError(EtcdUnavailableError):
    """etcd's database has reached its quota (alarm NOSPACE); nothing was written."""


class LeaseLostError(EtcdUnavailableError):
    """The lease does not exist: it has lapsed or was revoked; nothing was written. A new lease helps."""


class EtcdUnsupportedError(UnavailableError):
    """This release of etcd cannot be used."""


class EtcdRequestError(InternalError):
    """etcd refused the request as such."""


class EtcdCompactedError(EtcdRequestError):
    """The revision asked for has been compacted."""


# Statuses of a request that another member, or the same one a little later, may well answer. INTERNAL and UNKNOWN are
# what gRPC makes of a stream that is cut while the server goes down.
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)

# What a member says before it proposes a write to the others: the write certainly had no effect
# (etcd: api/v3rpc/rpctypes/error.go).
_NOT_PROPOSED = ("etcdserver: no leader", "etcdserver: too many requests")


def error_of(error: grpc.aio.AioRpcError, target: str, *, is_write: bool) -> ServiceError:
    """Give Lambent's error for a failed request.

    Args:
        error: What gRPC raised.
        target: host:port of the member.
        is_write: The request changes something, so that a lost answer leaves its effect unknown.
    """
    code, details = error.code(), error.details() or error.code().name
    message = f"etcd at {target}: {details}"
    match code:
        case grpc.StatusCode.OUT_OF_RANGE if "compacted" in details:
            return EtcdCompactedError(message)
        case grpc.StatusCode.NOT_FOUND if "lease not found" in details:
            return LeaseLostError(message)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "space exceeded" in details:
            return EtcdFullError(message)
        case _ if details in _NOT_PROPOSED:
            return EtcdUnavailableError(message)
        case _ if code in _PASSING:
            return EtcdUnavailableError(message, dispatched=is_write)
    return EtcdRequestError(f"{message} ({code.name})")
