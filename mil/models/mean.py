"""Mean of the tiles -> linear layer."""

import numpy as np
from torch import Tensor

from mil.config import MeanSpec
from mil.models.head import HEADS, Output, Weights
from mil.models.layers import Linear, masked_mean


@HEADS.register("mean")
class Mean:
    """Linear layer on the mean of the tiles."""

    only_mean = True

    def __init__(self, spec: MeanSpec, width: int, outputs: int) -> None:
        self.score = Linear("score", width, outputs)

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """First values of the one layer."""
        return self.score.initial(generator)

    def __call__(self, weights: Weights, tiles: Tensor, mask: Tensor, keys: Tensor | None = None) -> Output:
        """Logits; no attention."""
        return Output(self.score(weights, masked_mean(tiles, mask)), None)
