"""The operator's file of subnets and security groups (TOML).

[subnets.subnet-database]
cidrs = ["10.20.0.0/16"]

[security_groups.sg-postgres]
allow = [{ protocol = "tcp", ports = "5432", cidrs = ["10.20.30.0/24"] }]
"""

from __future__ import annotations

import re
import tomllib
from ipaddress import IPv4Network
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from lambent.errors import InvalidParameterError

from .model import ALL_PORTS, AllowRule, NamedNetworks, PortRange, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    ValueT = TypeVar("ValueT")

# As functions name them: AWS Lambda API reference, VpcConfig.
_SUBNET: Final = re.compile(r"subnet-[0-9a-z]+")
_SECURITY_GROUP: Final = re.compile(r"sg-[0-9a-zA-Z]+")
_PORTS: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_RULE_KEYS: Final = frozenset({"protocol", "ports", "cidrs"})


def parse_networks(text: str) -> NamedNetworks:
    """Read the file; pure.

    Raises:
        InvalidParameterError: It is not TOML, or something in it has no meaning; the message names it.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidParameterError(f"this is no TOML: {error}") from error
    _only(document, {"subnets", "security_groups"}, "the file")
    return NamedNetworks(
        subnets=_named(document, "subnets", _SUBNET, _subnet),
        security_groups=_named(document, "security_groups", _SECURITY_GROUP, _security_group),
    )


def _named(
    document: Mapping[str, object],
    key: str,
    pattern: re.Pattern[str],
    read: Callable[[Mapping[str, object], str], ValueT],
) -> Mapping[str, ValueT]:
    table = _table(document.get(key, {}), key)
    for name in table:
        if not pattern.fullmatch(name):
            raise InvalidParameterError(f"{key}.{name}: a name must match {pattern.pattern}, as functions name it")
    return MappingProxyType({name: read(_table(one, f"{key}.{name}"), f"{key}.{name}") for name, one in table.items()})


def _subnet(table: Mapping[str, object], where: str) -> tuple[IPv4Network, ...]:
    _only(table, {"cidrs"}, where)
    return _cidrs(table.get("cidrs"), where)


def _security_group(table: Mapping[str, object], where: str) -> tuple[AllowRule, ...]:
    _only(table, {"allow"}, where)
    rules = table.get("allow")
    if not isinstance(rules, list):
        raise InvalidParameterError(f"{where}: allow must be a list of rules")
    return tuple(_rule(_table(rule, f"{where}.allow"), f"{where}.allow[{at}]") for at, rule in enumerate(rules))


def _rule(table: Mapping[str, object], where: str) -> AllowRule:
    _only(table, _RULE_KEYS, where)
    try:
        protocol = Protocol(table.get("protocol", Protocol.ALL.value))
    except ValueError as error:
        known = ", ".join(repr(one.value) for one in Protocol)
        raise InvalidParameterError(f"{where}: protocol {table['protocol']!r} is none of {known}") from error
    ports = ALL_PORTS
    if "ports" in table:
        if protocol not in {Protocol.TCP, Protocol.UDP}:
            raise InvalidParameterError(f"{where}: only rules for tcp and udp have ports")
        ports = _ports(str(table["ports"]), where)
    return AllowRule(protocol, ports, _cidrs(table.get("cidrs"), where))


def _ports(text: str, where: str) -> PortRange:
    found = _PORTS.fullmatch(text)
    if found is not None:
        first, last = int(found[1]), int(found[2] or found[1])
        if first <= last <= ALL_PORTS.last:
            return PortRange(first, last)
    raise InvalidParameterError(f"{where}: ports {text!r} is neither a port nor a range such as '8000-8080'")


def _cidrs(value: object, where: str) -> tuple[IPv4Network, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidParameterError(f"{where}: cidrs must be a list of networks such as ['10.0.0.0/8']")
    return tuple(parse_cidr(text, where) for text in value)


def parse_cidr(text: object, where: str) -> IPv4Network:
    """Read one network.

    Raises:
        InvalidParameterError: It is none.
    """
    try:
        return IPv4Network(str(text))
    except ValueError as error:
        raise InvalidParameterError(f"{where}: {text!r} is no IPv4 network: {error}") from error


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise InvalidParameterError(f"{where} must be a table")
    return value


def _only(table: Mapping[str, object], known: frozenset[str] | set[str], where: str) -> None:
    if unknown := sorted(set(table) - known):
        raise InvalidParameterError(f"{where}: {unknown[0]!r} is unknown; known are {', '.join(sorted(known))}")
