"""Per-bag moments -> mean and deviation of any set of patients, merged as sites would merge theirs (Chan et al. 1979)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mil.training.store import FeatureStore


@dataclass(frozen=True)
class Moments:
    """Of each group of tiles: their number (groups,), mean and sum of squared deviations (groups, width), float64."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, store: FeatureStore) -> "Moments":
        """One group a bag."""
        means, squares = np.empty((2, len(store.sizes), store.width))
        for number in range(len(store.sizes)):
            bag = store.bag(number).numpy().astype(np.float64)
            means[number] = bag.mean(0)
            squares[number] = ((bag - means[number]) ** 2).sum(0)
        return cls(store.sizes.astype(np.float64), means, squares)

    def merged(self, groups: Sequence[int] | np.ndarray) -> "Moments":
        """The groups as one; an empty choice has count 0."""
        groups = np.asarray(groups, np.int64)
        count = self.count[groups].sum()
        mean = self.count[groups] @ self.mean[groups] / max(count, 1.0)
        squares = self.squares[groups].sum(0) + self.count[groups] @ (self.mean[groups] - mean) ** 2
        return Moments(np.array([count]), mean[None], squares[None])

    @staticmethod
    def stacked(parts: "Sequence[Moments]") -> "Moments":
        """The groups of all parts beside one another."""
        return Moments(
            np.concatenate([part.count for part in parts]),
            np.concatenate([part.mean for part in parts]),
            np.concatenate([part.squares for part in parts]),
        )

    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (width,) float32 over all groups; a column that hardly varies keeps deviation 1."""
        whole = self.merged(np.arange(len(self.count)))
        deviation = np.sqrt(whole.squares[0] / max(whole.count[0], 1.0))
        varies = deviation > 1e-6 * np.maximum(np.abs(whole.mean[0]), 1.0)
        return whole.mean[0].astype(np.float32), np.where(varies, deviation, 1.0).astype(np.float32)
