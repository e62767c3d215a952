"""Pages of lists: opaque tokens, and how many items a page has."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, TypeVar

from lambent.errors import InvalidParameterError
from lambent.framing import MAX_MESSAGE_BYTES
from lambent_scheduler.functions.violations import Violations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

# AWS Lambda: at most 10,000 may be asked for, and a page has 50 whatever is asked for. Ours may have more.
DEFAULT_PAGE_SIZE = 50
MOST_PAGE_SIZE = 10_000
# A quarter of what a message may hold: the items that are over it go to the next page.
_PAGE_BYTES = MAX_MESSAGE_BYTES // 4
_TOKEN_VERSION = b"1:"

MessageT = TypeVar("MessageT", bound="Message")


def page_size(asked: int) -> int:
    """Give the number of items of a page.

    Raises:
        InvalidParameterError: More than 10,000 are asked for.
    """
    violations = Violations()
    violations.range("maxItems", asked, 0, MOST_PAGE_SIZE)
    violations.raise_any()
    return asked or DEFAULT_PAGE_SIZE


def fill(messages: Iterable[MessageT], size: int) -> tuple[list[MessageT], bool]:
    """Take a page from messages in order: up to `size`, and up to 4 MiB or one; tell whether there are more."""
    page: list[MessageT] = []
    room = _PAGE_BYTES
    for message in messages:
        room -= message.ByteSize()
        if page and (len(page) == size or room < 0):
            return page, True
        page.append(message)
    return page, False


def token_after(last: str) -> str:
    """Give the token of the page after an item. It stays good when items come and go meanwhile."""
    return base64.urlsafe_b64encode(_TOKEN_VERSION + last.encode()).decode().rstrip("=")


def read_token(token: str) -> str:
    """Give the item after which a page begins; empty for the first page.

    Raises:
        InvalidParameterError: The token is none that `token_after` gave.
    """
    if not token:
        return ""
    try:
        plain = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        if plain.startswith(_TOKEN_VERSION):
            return plain[len(_TOKEN_VERSION) :].decode()
    except (binascii.Error, UnicodeError):
        pass
    raise InvalidParameterError("The marker is not one that a list has given. Please begin again without one.")
