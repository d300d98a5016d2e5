"""Numbers as integers, so that their sum over sites is exact and the same in any order.

A number is rounded to a multiple of 2^-40 and held as int64; sums are modulo 2^64, as int64 arithmetic is. Two parties that add
the same integers get the same bits, and masks that cancel in the sum cost nothing in exactness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STEP = 2.0**-40
"""Distance of two neighbours: 9e-13, a thousandth of what float32 tells apart at 0.01."""
LARGEST = 2.0**20
"""Size from which on a site's number is refused: eight sites' sum stays below 2^63 steps."""


def to_fixed(values: Tensor) -> Tensor:
    """float64 -> int64 steps, rounded to the nearest. Raise ValueError for NaN and for numbers of `LARGEST` or more."""
    if not (values.abs() < LARGEST).all():
        raise ValueError(f"a number to be summed is {float(values.abs().max()):.3g}; it must be below {LARGEST:g}")
    return (values / STEP).round().long()


def from_fixed(total: Tensor) -> Tensor:
    """int64 steps -> float64."""
    return total.double() * STEP


def exact_sum(values: Tensor) -> Tensor:
    """Sum over sites (sites, *shape) -> (*shape) float64, by integers; NaN where a site's number cannot be held."""
    held = values.abs() < LARGEST
    steps = (values.where(held, values.new_zeros(())) / STEP).round().long()
    return from_fixed(steps.sum(0)).where(held.all(0), values.new_full((), float("nan")))
