"""What a head is: a pure function of its weights, the tiles and a mask that says which tile belongs to which bag.

All tensors may carry leading axes, the first of them the models that are trained together: `tiles` is
(..., tiles, width), `mask` (..., bags, tiles) and every weight (..., *shape). Bags lie end to end along the tile
axis; a column of the mask without a True is padding and reaches nothing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from mil.registry import Registry

if TYPE_CHECKING:
    from mil.endpoints import Endpoint

Weights = Mapping[str, Tensor]


class Output(NamedTuple):
    """What a head says of every bag."""

    logits: Tensor
    """(..., bags, outputs)"""
    attention: Tensor | None = None
    """(..., bags, tiles), not negative, summing to 1 over a bag's own tiles; none: every tile weighs the same."""
    side: Tensor | None = None
    """Extra tensors for the head's loss. No other module reads them."""


class Inputs(NamedTuple):
    """What a head sees of some bags."""

    tiles: Tensor
    """(..., tiles, width)"""
    mask: Tensor
    """(..., bags, tiles) bool"""
    covariates: Tensor | None = None
    """(..., bags, covariates)"""
    training: bool = False
    """The loss is wanted, not only the logits."""
    keys: Tensor | None = None
    """(..., tiles) int64, seeds of dropout; none: no dropout."""
    whole: bool = False
    """Models have one bag each, all of the same size: the mask is true throughout, and nobody need look."""


class Head:
    """Base of the heads: named weights, and the loss where it is the endpoint's own."""

    only_mean = False
    """The head sees a bag through the mean of its tiles alone, so that the mean may be taken once, before training."""
    positional = False
    """The order of the tiles matters."""
    dropout = 0.0
    """Share of numbers that training sets to zero."""
    on_tiles: "tuple[HeadPart, ...]" = ()
    """The layers that read tiles, if nothing else does; the scaling of features can then be part of their weights."""
    needs_classes = False
    """The loss speaks of classes, so that only endpoints with classes will do."""

    kept = 0
    """Numbers per tile that training keeps besides what the layers of `parts` make; for the memory of a step on a GPU."""

    parts: "tuple[HeadPart, ...]" = ()
    """Layers in the order in which their first values are drawn."""

    def __init__(self, spec: Any, width: int, outputs: int) -> None:
        """From its spec, for tiles of `width` numbers and `outputs` logits a bag."""
        raise NotImplementedError

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """First values of all weights, float32."""
        return {name: value for part in self.parts for name, value in part.initial(generator).items()}

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Logits and attention of every bag."""
        raise NotImplementedError

    def moved(self, output: Output, by: Tensor) -> Output:
        """The output with `by` (..., bags, outputs) added to the logits, and to whatever else the loss reads as logits."""
        return output._replace(logits=output.logits + by)

    def losses(self, output: Output, targets: Tensor, present: Tensor, endpoint: "Endpoint") -> Tensor:
        """Loss of every bag (..., bags) from targets (..., bags, targets) where `present` (..., bags)."""
        return endpoint.losses(output.logits, targets, present)


class HeadPart:
    """A layer: it knows the first values of its weights."""

    name: str
    """What the names of its weights begin with."""

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """First values by full name, float32."""
        raise NotImplementedError


HEADS: Registry[type[Head]] = Registry("model")
