"""Values in etcd: protobuf JSON, which a person can read with etcdctl."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf import json_format

from lambent.errors import InternalError

if TYPE_CHECKING:
    from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound="Message")


def encode(record: Message) -> bytes:
    """Give the value of a record."""
    return json_format.MessageToJson(record, indent=None).encode()


def decode(value: bytes, record_type: type[MessageT], *, key: str = "") -> MessageT:
    """Read a value. Fields of a newer release are passed over.

    Raises:
        InternalError: The value is not such a record.
    """
    try:
        return json_format.Parse(value, record_type(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise InternalError(
            f"the value of {key or 'a key'} in etcd is not a {record_type.__name__}: {error}"
        ) from error
