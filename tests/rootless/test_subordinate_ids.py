"""Which UIDs a user may use beside the own one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent_node_agent.rootless.subordinate_ids import Block, largest_block


@pytest.mark.parametrize("owner", ["ada", "1000"])
def test_a_block_is_found_by_name_and_by_number(owner: str) -> None:
    """Both are written there."""
    assert largest_block(f"root:1:1\n{owner}:100000:65536\n", 1000, "ada") == Block(100000, 65536)


def test_the_largest_of_several_blocks_is_taken() -> None:
    """They need not be next to each other, and one is enough."""
    text = "ada:100000:65536\nada:300000:1000000\nada:200000:5\n"
    assert largest_block(text, 1000, "ada") == Block(300000, 1000000)


@pytest.mark.parametrize(
    "text", ["", "eve:100000:65536", "ada", "ada:", "ada:x:65536", "ada:100000", "ada:100000:65536:1", "ada:-1:5"]
)
def test_what_is_not_the_user_s_or_not_a_block_is_passed_over(text: str) -> None:
    """As by newuidmap."""
    assert largest_block(text, 1000, "ada") is None


def test_a_user_without_a_name_has_what_its_number_has() -> None:
    """And nothing of a nameless line."""
    assert largest_block("None:1:2\n:3:4\n", 1000, None) is None


@given(st.text())
def test_no_text_fails(text: str) -> None:
    """An administrator wrote it."""
    largest_block(text, 1000, "ada")
