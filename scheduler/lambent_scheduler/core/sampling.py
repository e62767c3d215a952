"""Draws places without looking at what stands there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_MASK_64 = (1 << 64) - 1


def scatter(seed: int) -> int:
    """Turn a seed into 64 bits that look random (the finaliser of SplitMix64, Steele et al., 2014)."""
    bits = (seed * 0x9E3779B97F4A7C15) & _MASK_64
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return bits ^ (bits >> 31)


def positions(count: int, wanted: int, excluded: int, draw: int) -> Collection[int]:
    """Draw positions below `count`: enough that `wanted` remain when `excluded` of them are struck out.

    Args:
        count: Of all positions.
        wanted: 1 or 2.
        excluded: How many may be struck out.
        draw: 64 random bits.
    """
    if count <= wanted + excluded:
        return range(count)
    start = draw % count
    if excluded:
        return [(start + step) % count for step in range(wanted + excluded)]
    if wanted == 1:
        return (start,)
    other = (draw >> 32) % (count - 1)
    return (start, other + 1 if other >= start else other)
