"""What a daemon needs to be let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from lambent_common.credentials import Credentials


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_directory_without_a_token_is_refused(content: str | None, tmp_path: Path) -> None:
    """A copy that broke off must not open the doors to everybody."""
    if content is not None:
        (tmp_path / "token").write_text(content)
    with pytest.raises(OSError, match=str(tmp_path)):
        Credentials.load(tmp_path)


def test_all_but_the_token_may_be_absent(tmp_path: Path) -> None:
    """Stores that ask for nothing need nothing; without a directory there is no token either."""
    (tmp_path / "token").write_text("secret\n")
    assert Credentials.load(tmp_path) == Credentials(token="secret")
    assert Credentials.load(None) == Credentials()
