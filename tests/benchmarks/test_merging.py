"""KSM is on for the time of a measurement, and the machine is then as it was."""

from __future__ import annotations

import pytest
from benchmarks.merging import KSM, can_merge, merging_kernel


def settings() -> dict[str, str]:
    names = ("run", "pages_to_scan", "sleep_millisecs", "advisor_mode")
    return {name: (KSM / name).read_text() for name in names if (KSM / name).exists()}


def test_the_machine_is_as_it_was_after_a_measurement_that_failed() -> None:
    """Nothing stays merged, either: whoever had it off has it off."""
    if not can_merge():
        pytest.skip("this kernel has no KSM, or it is not ours to set")
    before = settings()
    with pytest.raises(ZeroDivisionError), merging_kernel():  # noqa: PT012 - it has to fail inside
        assert settings() != before
        assert (KSM / "run").read_text() == "1\n"
        raise ZeroDivisionError
    assert settings() == before


def test_an_advisor_that_was_there_is_there_again() -> None:
    """While it advises, the kernel does not let anybody else set how many pages it looks at."""
    if not can_merge() or not (KSM / "advisor_mode").exists():
        pytest.skip("this kernel has no KSM that advises itself, or it is not ours to set")
    before = settings()
    (KSM / "advisor_mode").write_text("scan-time")
    try:
        with merging_kernel():
            assert (KSM / "pages_to_scan").read_text() == "20000\n"
        assert "[scan-time]" in (KSM / "advisor_mode").read_text()
    finally:
        (KSM / "advisor_mode").write_text("none")
        (KSM / "pages_to_scan").write_text(before["pages_to_scan"])
