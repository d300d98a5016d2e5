"""Moments of groups of rows -> mean and deviation of any choice of groups, merged as sites merge theirs (Chan et al. 1979)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SINGLE, DOUBLE = 1e-6, 1e-12
"""Deviations, as shares of the mean, below which values of single (double) precision do not vary."""
LEAST = 1e-30
"""A deviation that single precision can still divide by."""
FEW_AT_SITE = 20
"""Patients below which the moments of a site's features say much of single patients."""


class Bags(Protocol):
    """Features of bags, one after the other."""

    @property
    def sizes(self) -> np.ndarray:
        """Number of tiles of each bag (bags,)."""
        ...

    @property
    def width(self) -> int:
        """Number of features per tile."""
        ...

    def bag(self, number: int, /) -> np.ndarray:
        """Features (tiles, width) of one bag."""
        ...


@dataclass(frozen=True)
class Moments:
    """Of groups of rows: their number (groups, width or 1), mean and sum of squared deviations (groups, width), float64."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of_bags(cls, store: Bags) -> "Moments":
        """One group a bag."""
        means, squares = np.empty((2, len(store.sizes), store.width))
        for number in range(len(store.sizes)):
            bag = store.bag(number).astype(np.float64)
            means[number] = bag.mean(0)
            squares[number] = ((bag - means[number]) ** 2).sum(0)
        return cls(store.sizes.astype(np.float64)[:, None], means, squares)

    @classmethod
    def of_table(cls, values: np.ndarray) -> "Moments":
        """One group a row (rows, columns); NaN counts as absent."""
        known = np.isfinite(values)
        return cls(known.astype(np.float64), np.where(known, values, 0.0), np.zeros(values.shape))

    def merged(self, groups: np.ndarray) -> "Moments":
        """The groups as one; an empty choice has count 0."""
        count, means = self.count[groups], self.mean[groups]
        total = count.sum(0)
        mean = (count * means).sum(0) / np.maximum(total, 1.0)
        squares = self.squares[groups].sum(0) + (count * (means - mean) ** 2).sum(0)
        return Moments(total[None], mean[None], squares[None])

    @staticmethod
    def stacked(parts: "Sequence[Moments]") -> "Moments":
        """The groups of all parts beside one another."""
        return Moments(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("count", "mean", "squares"))
        )

    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """`mean_and_deviation` as float32."""
        mean, deviation = self.mean_and_deviation()
        return mean.astype(np.float32), deviation.astype(np.float32)

    def mean_and_deviation(self, smallest: float = SINGLE) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (width,) over all groups; a column that does not vary keeps deviation 1.

        A column varies when its deviation is above `smallest` times the size of its own mean: there are features of the order of
        1e-7.
        """
        whole = self.merged(np.arange(len(self.count)))
        deviation = np.sqrt(whole.squares[0] / np.maximum(whole.count[0], 1.0))
        varies = deviation > np.maximum(smallest * np.abs(whole.mean[0]), LEAST)
        return whole.mean[0], np.where(varies, deviation, 1.0)
