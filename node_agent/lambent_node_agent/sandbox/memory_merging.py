"""Merging of equal pages by the kernel (KSM), which an operator may ask for: ADR 11, and admin-guide/mm/ksm."""

from __future__ import annotations

from pathlib import Path

_RUN = Path("/sys/kernel/mm/ksm/run")
_MERGING = "1"


def objection() -> str | None:
    """Say why the kernel merges no pages now, and what would help; None when it does.

    It is a setting of the whole machine, so no agent changes it. When it is changed later, functions lose nothing.
    """
    try:
        run = _RUN.read_text().strip()
    except OSError as error:
        return f"this kernel cannot merge pages: {_RUN}: {error.strerror}"
    if run != _MERGING:
        return f"the kernel merges no pages now; have it do so: echo {_MERGING} | sudo tee {_RUN}"
    return None
