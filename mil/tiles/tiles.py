"""What tiling a slide gives."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Tiles:
    """The tiles of one slide: `coords` int64 (n, 2) level-0 corners row by row, `tissue` float32 (n,) share of each tile."""

    coords: np.ndarray
    tissue: np.ndarray
    size_level0: tuple[float, float]
    mask: np.ndarray
    thumbnail: np.ndarray
    thumbnail_mpp: float
    missing_share: float = 0.0
    """Share of the slide for which the file holds no pixels, or black that was never scanned."""
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    """Quality scores float32 (n,) by name, see `QualitySpec`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Tiles left out, by flag."""

    @property
    def tissue_share(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.mask.mean())
