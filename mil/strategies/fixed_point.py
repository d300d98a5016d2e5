"""Numbers as integers, so that their sum over sites is exact and the same in any order.

A number is rounded to a multiple of a step and held as an integer; sums are modulo 2^64 or 2^32. Two parties that add the same
integers get the same bits, and masks that cancel in the sum cost nothing in exactness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FixedPoint:
    """Integers of `bits` bits: multiples of `step` for numbers below `largest` in size, times weights that sum to 1 over sites or less.

    So the sum over sites is below `largest` too, and far from where it would wrap, step x 2^(bits - 1).
    """

    bits: int
    step: float
    largest: float

    def steps(self, values: Tensor, weight: float | Tensor = 1.0) -> Tensor:
        """float64 -> int64 steps of weight x value, rounded to the nearest. ValueError for NaN and for values of `largest` or more."""
        if not (values.abs() < self.largest).all():
            more = "" if self is WIDE else ", or set the strategy's sum_bits to 64"
            raise ValueError(
                f"a number to be summed is {float(values.abs().max()):.3g}; with {self.bits} bits it must be below "
                f"{self.largest:g}. Lower the learning rate{more}"
            )
        return (values * weight / self.step).round().long()

    def numbers(self, total: Tensor) -> Tensor:
        """Steps -> float64."""
        return total.double() * self.step

    def sum(self, values: Tensor, weights: Tensor) -> Tensor:
        """Sum over sites of weight x value: (sites, *shape), (sites, 1...) -> (*shape) float64; NaN where a value cannot be held."""
        held = values.abs() < self.largest
        steps = (values.where(held, values.new_zeros(())) * weights / self.step).round().long()
        return self.numbers(steps.sum(0)).where(held.all(0), values.new_full((), float("nan")))


WIDE = FixedPoint(64, 2.0**-40, 2.0**20)
"""Steps of 9e-13, a thousandth of what float32 tells apart at 0.01; seven sites' numbers without weights fit, too."""
NARROW = FixedPoint(32, 2.0**-29, 2.0)
"""Steps of 1.9e-9, what float32 tells apart at 0.02. Half of all sums are never used, so that wrong masks are seen."""
