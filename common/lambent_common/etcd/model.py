"""What etcd holds and how it changes, without protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key at one revision.

    Attributes:
        create_revision: Revision that made the key.
        mod_revision: Revision that wrote this value.
        lease_id: Lease under which it lives; 0 for none.
    """

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys of a prefix at one revision, in order."""

    revision: int
    items: Sequence[KeyValue]


@dataclass(frozen=True, slots=True)
class Put:
    """A key was written."""

    item: KeyValue


@dataclass(frozen=True, slots=True)
class Delete:
    """A key was deleted, or its lease lapsed."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened up to a revision, in order."""

    revision: int
    events: Sequence[Put | Delete]


WatchBatch: TypeAlias = Snapshot | Changes


def prefix_end(prefix: str) -> bytes:
    """Give the first key after all keys that begin with `prefix`, as etcd's ranges want it."""
    encoded = bytearray(prefix.encode())
    while encoded and encoded[-1] == 0xFF:
        encoded.pop()
    if not encoded:
        return b"\0"
    encoded[-1] += 1
    return bytes(encoded)
