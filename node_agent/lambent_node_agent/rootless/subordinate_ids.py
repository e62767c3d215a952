"""The UIDs and GIDs that an administrator lets a user have beside the own one: subuid(5), subgid(5); pure."""

from __future__ import annotations

from typing import NamedTuple


class Block(NamedTuple):
    """`size` numbers from `first` on."""

    first: int
    size: int


def largest_block(text: str, user: int, name: str | None) -> Block | None:
    """Find the largest block of a user in the text of `/etc/subuid` or `/etc/subgid`; None when there is none.

    Args:
        text: Lines of `user:first:size`, the user being a name or a UID. Others are passed over, as by `newuidmap`.
        user: UID of the user.
        name: Name of the user, if it has one.
    """
    blocks = []
    for line in text.splitlines():
        owner, _, numbers = line.strip().partition(":")
        first, _, size = numbers.partition(":")
        if owner in {str(user), name} and first.isdecimal() and size.isdecimal():
            blocks.append(Block(int(first), int(size)))
    return max(blocks, key=lambda block: block.size, default=None)
