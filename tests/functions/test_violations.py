"""Messages that hold callers' values."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from lambent_scheduler.functions.violations import shown


@given(st.text(max_size=400), st.integers(0, 400))
def test_shown_value_is_the_beginning_and_fits(value: str, limit: int) -> None:
    """Percent-encoded, as gRPC sends a message, it must not be longer than the limit; what fits is whole."""
    text = shown(value, limit)
    kept = value if text == value else text.removesuffix("...")
    assert value.startswith(kept)
    assert len(quote(kept, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")) <= limit


def test_lone_surrogate_is_no_crash() -> None:
    """JSON can bring one in."""
    assert shown("\ud800" * 300).endswith("...")
