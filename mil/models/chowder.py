"""Heads that judge a bag by its highest and lowest tile scores: Chowder and WELDON."""

import torch
from torch import Tensor

from mil.models.head import HEADS, Head, Inputs, Output, Weights
from mil.models.layers import MLP, masked_extremes, masked_softmax
from mil.specs.models import ChowderSpec, WeldonSpec


def extremes(scores: Tensor, mask: Tensor, top: int, bottom: int) -> Tensor:
    """Scores (..., outputs, tiles) -> the `top` highest (falling) and `bottom` lowest (rising) of each bag, end to end.

    (..., outputs, bags, top + bottom). A bag of fewer tiles repeats its last one (Owkin's code fills in zeros there).
    """
    mask = mask.unsqueeze(-3)
    highest, _ = masked_extremes(scores, mask, top)
    if not bottom:
        return highest
    lowest, _ = masked_extremes(-scores, mask, bottom)
    return torch.cat([highest, -lowest], dim=-1)


@HEADS.register("chowder")
class Chowder(Head):
    """Tile scores -> extremes -> MLP (Courtiol et al. 2018). Attention: softmax of the tiles' highest scores."""

    def __init__(self, spec: ChowderSpec, width: int, outputs: int) -> None:
        self.spec = spec
        self.tile_score = MLP("tile_score", (width, *spec.tile_hidden, outputs), torch.sigmoid, init="xavier")
        self.score = MLP("score", (spec.top + spec.bottom, *spec.hidden, 1), torch.sigmoid, init="xavier")
        self.on_tiles = (self.tile_score.layers[0],)
        self.parts = (self.tile_score, self.score)

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Logits, one MLP for all outputs, and attention that orders tiles by score."""
        scores = self.tile_score(weights, inputs.tiles).mT
        ends = extremes(scores, inputs.mask, self.spec.top, self.spec.bottom)
        rows = ends.flatten(-3, -2)  # (..., outputs x bags, top + bottom)
        logits = self.score(weights, rows).view(*ends.shape[:-1])
        return Output(logits.mT, masked_softmax(scores.amax(-2, keepdim=True), inputs.mask))


@HEADS.register("weldon")
class Weldon(Head):
    """Linear tile scores -> mean of the extremes (Durand et al. 2016). Attention: softmax of the highest scores."""

    def __init__(self, spec: WeldonSpec, width: int, outputs: int) -> None:
        self.spec = spec
        self.score = MLP("score", (width, outputs), torch.sigmoid, init="xavier")
        self.on_tiles = (self.score.layers[0],)
        self.parts = (self.score,)

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Logits, and attention that orders tiles by score."""
        scores = self.score(weights, inputs.tiles).mT
        ends = extremes(scores, inputs.mask, self.spec.top, self.spec.bottom)
        return Output(ends.mean(-1).mT, masked_softmax(scores.amax(-2, keepdim=True), inputs.mask))
