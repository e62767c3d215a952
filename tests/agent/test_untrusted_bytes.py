"""Readers of bytes that function code may have made up, over short inputs; `tests.security.fuzz_coverage` goes on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.security.fuzz_targets import SEEDS, TARGETS

from lambent_node_agent.sandbox.runtime_process import is_end
from lambent_runtime import messages

CHOICE = st.binary(min_size=2, max_size=2)


@pytest.mark.parametrize("name", TARGETS)
@given(st.data())
def test_a_reader_keeps_its_word_whatever_comes(name: str, data: st.DataObject) -> None:
    """Pieces of what may come and pieces of anything, in any order; the target says what its reader promises."""
    parts = data.draw(st.lists(st.sampled_from(SEEDS[name]) | st.binary(max_size=40), max_size=4))
    TARGETS[name](data.draw(CHOICE) + b"".join(parts))


def test_json_nested_too_deep_is_no_message() -> None:
    """`json` gives up with a RecursionError, of which a reader of sockets knows nothing."""
    with pytest.raises(ValueError, match="nested too deep"):
        messages.unpack(b"[" * 100_000)


@pytest.mark.parametrize("status", [-1, 0x7F, 0x137F, 0xFFFF, 1 << 16, 1 << 64])
def test_a_number_that_is_no_end_is_not_taken_for_one(status: int) -> None:
    """`os.WIFSIGNALED` takes a C int and fails on more; a process that was stopped has not ended."""
    assert not is_end(status)


@pytest.mark.parametrize("status", [0, 0x0100, 0xFF00, 9, 11 | 0x80])
def test_an_exit_and_a_signal_are_ends(status: int) -> None:
    """What waitpid gives."""
    assert is_end(status)
