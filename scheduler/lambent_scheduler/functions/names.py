"""Names of functions: plain, qualified, partial ARN or full ARN, as every AWS Lambda operation takes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lambent.errors import InvalidParameterError, PermissionDeniedError, ResourceNotFoundError
from lambent_scheduler.functions.violations import Violations, shown

DEFAULT_ACCOUNT = "default"
LATEST = "$LATEST"

# AWS Lambda's limits on FunctionName: the field as a whole when a function is made or changed, or used; the name in it.
DEFINING_FIELD_LIMIT = 140
USING_FIELD_LIMIT = 256
NAME_LIMIT = 64
QUALIFIER_LIMIT = 128

# AWS Lambda's published patterns. They stand in messages; a region or account of ours need not look like AWS's.
FUNCTION_NAME_PATTERN = (
    r"(arn:(aws[a-zA-Z-]*)?:lambda:)?([a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?"
    r"([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?"
)
QUALIFIER_PATTERN = r"(|[a-zA-Z0-9$_-]+)"
ALIAS_PATTERN = r"(?!^[0-9]+$)([a-zA-Z0-9-_]+)"
VERSION_PATTERN = r"(\$LATEST|[0-9]+)"

_WORD = re.compile(r"[a-zA-Z0-9_-]+", re.ASCII)
_QUALIFIER = re.compile(r"\$LATEST|[a-zA-Z0-9_-]+", re.ASCII)
_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_ARN_PREFIX = re.compile(r"arn:(aws[a-zA-Z-]*)?:lambda", re.ASCII)
_ACCOUNT = re.compile(r"[a-zA-Z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FunctionId:
    """A function, by account and plain name.

    Attributes:
        account: Never empty.
        name: 1 to 64 characters of [A-Za-z0-9_-]; longer where a function is only looked for.
    """

    account: str
    name: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """The pieces of a FunctionName; None where it does not say."""

    region: str | None
    account: str | None
    name: str
    qualifier: str | None


def parse(function_name: str) -> Parsed | None:
    """Take a FunctionName apart; None when it has no form that AWS Lambda knows."""
    parts = function_name.split(":")
    region: str | None = None
    account: str | None = None
    if parts[0] == "arn":
        if len(parts) not in (7, 8) or not _ARN_PREFIX.fullmatch(":".join(parts[:3])) or parts[5] != "function":
            return None
        region, account = parts[3], parts[4]
        parts = parts[6:]
    elif "function" in parts[: min(3, len(parts) - 1)]:
        at = parts.index("function")
        account = parts[at - 1] if at else None
        region = parts[0] if at == 2 else None
        parts = parts[at + 1 :]
    if len(parts) > 2 or not _WORD.fullmatch(parts[0]):
        return None
    if any(part is not None and not _WORD.fullmatch(part) for part in (region, account)):
        return None
    qualifier = parts[1] if len(parts) == 2 else None
    if qualifier is not None and not _QUALIFIER.fullmatch(qualifier):
        return None
    return Parsed(region, account, parts[0], qualifier)


def is_version_number(qualifier: str) -> bool:
    """Tell whether a qualifier names a published version."""
    return _NUMBER.fullmatch(qualifier) is not None


def is_alias_name(name: str) -> bool:
    """Tell whether a name can be an alias's: a word of at most 128 characters that is not a number."""
    return len(name) <= QUALIFIER_LIMIT and _WORD.fullmatch(name) is not None and not is_version_number(name)


@dataclass(frozen=True, slots=True)
class Naming:
    """Reads the names in requests and writes the names in replies.

    Attributes:
        region: The region that this cluster calls itself.
    """

    region: str

    def arn(self, function: FunctionId, qualifier: str = "") -> str:
        """Give the ARN of a function, qualified when a qualifier is given."""
        arn = f"arn:aws:lambda:{self.region}:{function.account}:function:{function.name}"
        return f"{arn}:{qualifier}" if qualifier else arn

    def account(self, account: str) -> str:
        """Give the account that a request means.

        Raises:
            InvalidParameterError: It cannot be an account's name.
        """
        account = account or DEFAULT_ACCOUNT
        if not _ACCOUNT.fullmatch(account):
            raise InvalidParameterError(f"{shown(account, 80)!r} is no account: 1 to 64 characters of [A-Za-z0-9_-]")
        return account

    def read(
        self, account: str, function_name: str, qualifier: str = "", *, field_limit: int = USING_FIELD_LIMIT
    ) -> tuple[FunctionId, str]:
        """Give the function that a request names, and its qualifier, empty when there is none.

        Raises:
            InvalidParameterError: The name or qualifier is malformed, or the two qualifiers given differ.
            ResourceNotFoundError: The ARN is of another region.
            PermissionDeniedError: The ARN is of another account.
        """
        account = self.account(account)
        violations = Violations()
        violations.length("functionName", function_name, 1, field_limit)
        parsed = parse(function_name)
        if parsed is None:
            violations.pattern("functionName", function_name, FUNCTION_NAME_PATTERN)
        if qualifier and not _QUALIFIER.fullmatch(qualifier):
            violations.pattern("qualifier", qualifier, QUALIFIER_PATTERN)
        violations.length("qualifier", qualifier, 0, QUALIFIER_LIMIT)
        violations.raise_any()
        assert parsed is not None, "a violation would have been raised"
        self._check_place(account, parsed, function_name)
        if qualifier and parsed.qualifier and parsed.qualifier != qualifier:
            raise InvalidParameterError(
                "The derived qualifier from the function name does not match the specified qualifier."
            )
        return FunctionId(account, parsed.name), qualifier or parsed.qualifier or ""

    def read_new(self, account: str, function_name: str) -> FunctionId:
        """Give the function that a request is to make.

        Raises:
            InvalidParameterError: As `read`; the name is over 64 characters; a version is given.
        """
        function, qualifier = self.read(account, function_name, field_limit=DEFINING_FIELD_LIMIT)
        if len(function.name) > NAME_LIMIT:
            violations = Violations()
            violations.length("functionName", function.name, 1, NAME_LIMIT)
            raise InvalidParameterError(violations.message())
        self.refuse_qualifier(qualifier)
        return function

    def read_unqualified(
        self, account: str, function_name: str, *, field_limit: int = DEFINING_FIELD_LIMIT
    ) -> FunctionId:
        """Give the function of a request that is about the function as a whole.

        Raises:
            InvalidParameterError: As `read`; or a version or alias other than $LATEST is given.
        """
        function, qualifier = self.read(account, function_name, field_limit=field_limit)
        self.refuse_qualifier("" if qualifier == LATEST else qualifier)
        return function

    def refuse_qualifier(self, qualifier: str) -> None:
        """Refuse a qualifier where only a whole function makes sense."""
        if qualifier:
            raise InvalidParameterError(
                "This operation does not support versions and aliases: give the function's name without the qualifier "
                f"{qualifier!r}."
            )

    def _check_place(self, account: str, parsed: Parsed, function_name: str) -> None:
        if parsed.region is not None and parsed.region != self.region:
            raise ResourceNotFoundError(
                f"Functions from '{parsed.region}' are not reachable in this region ('{self.region}')"
            )
        if parsed.account is not None and parsed.account != account:
            raise PermissionDeniedError(f"The account {account!r} is not authorized to use {function_name}")
