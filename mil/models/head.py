"""What a head is: a pure function of its weights, the tiles and a mask that says which tile belongs to which bag.

All tensors may carry leading axes, the first of them the models that are trained together: `tiles` is
(..., tiles, width), `mask` (..., bags, tiles) and every weight (..., *shape). Bags lie end to end along the tile
axis; a column of the mask without a True is padding and reaches nothing.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from mil.registry import Registry

Weights = Mapping[str, Tensor]


class Output(NamedTuple):
    """Logits (..., bags, outputs) and, where the head has one, the attention (..., bags, tiles) that sums to 1 a bag."""

    logits: Tensor
    attention: Tensor | None


class Head(Protocol):
    """Weights' names, shapes and first values; and the function itself."""

    only_mean: bool
    """The head sees a bag through the mean of its tiles alone, so that the mean may be taken once, before training."""

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """First values, float32, drawn from `generator` in a fixed order."""
        ...

    def __call__(self, weights: Weights, tiles: Tensor, mask: Tensor, keys: Tensor | None = None) -> Output:
        """Logits and attention; `keys` (...,) int64 seed each model's dropout, none: no dropout."""
        ...


HEADS: Registry[Any] = Registry("model")


def attention_of(output: Output, mask: Tensor) -> Tensor:
    """The head's attention, or equal weight on every tile of the bag where it has none."""
    if output.attention is not None:
        return output.attention
    return mask / mask.sum(-1, keepdim=True)
