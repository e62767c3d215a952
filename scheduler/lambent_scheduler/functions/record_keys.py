"""Reading etcd keys under `accounts/` back: which record of which function a key holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lambent_common import keys


@dataclass(frozen=True, slots=True)
class LatestKey:
    """Of a FunctionRecord."""

    account: str
    name: str


@dataclass(frozen=True, slots=True)
class VersionKey:
    """Of a VersionRecord."""

    account: str
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class AliasKey:
    """Of an AliasRecord."""

    account: str
    name: str
    alias: str


@dataclass(frozen=True, slots=True)
class ConcurrencyKey:
    """Of a ReservedConcurrencyRecord."""

    account: str
    name: str


@dataclass(frozen=True, slots=True)
class AccountReservedKey:
    """Of an AccountReservationRecord."""

    account: str


RecordKey: TypeAlias = LatestKey | VersionKey | AliasKey | ConcurrencyKey | AccountReservedKey


def parse(key: str) -> RecordKey | None:
    """Say what a key holds; None for a key that this release does not know, such as a newer one's."""
    match key.removeprefix(keys.ACCOUNTS).split("/"):
        case [account, "functions", name, "latest"]:
            return LatestKey(account, name)
        case [account, "functions", name, "versions", number] if number.isdecimal():
            return VersionKey(account, name, int(number))
        case [account, "functions", name, "aliases", alias]:
            return AliasKey(account, name, alias)
        case [account, "functions", name, "concurrency"]:
            return ConcurrencyKey(account, name)
        case [account, "reserved"]:
            return AccountReservedKey(account)
        case _:
            return None
