"""Heads that pool tiles without attention: their mean, or the highest of them."""

import torch

from mil.models.head import HEADS, Head, Inputs, Output, Weights
from mil.models.layers import MLP, Linear, dropout, masked_extremes, masked_mean, masked_softmax
from mil.specs.models import MaxSpec, MeanSpec


@HEADS.register("mean")
class Mean(Head):
    """Mean of the tiles, or of a ReLU embedding of them -> linear layer."""

    def __init__(self, spec: MeanSpec, width: int, outputs: int) -> None:
        self.spec, self.dropout = spec, spec.dropout
        self.only_mean = spec.hidden is None
        self.embed = None if spec.hidden is None else Linear("embed", width, spec.hidden)
        self.score = Linear("score", spec.hidden or width, outputs)
        self.on_tiles = () if self.embed is None else (self.embed,)
        self.parts = (self.score,) if self.embed is None else (self.embed, self.score)

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Logits; every tile weighs the same."""
        tiles = inputs.tiles
        if self.embed is not None:
            tiles = dropout(torch.relu(self.embed(weights, tiles)), self.spec.dropout, inputs.keys, layer=0)
        return Output(self.score(weights, masked_mean(tiles, inputs.mask)))


@HEADS.register("max")
class Max(Head):
    """Logits of every tile -> the highest, output by output. Attention: softmax of the tiles' highest logits."""

    def __init__(self, spec: MaxSpec, width: int, outputs: int) -> None:
        self.spec, self.dropout = spec, spec.dropout
        self.score = MLP("score", (width, *spec.hidden, outputs), torch.relu)
        self.on_tiles = () if spec.dropout else (self.score.layers[0],)
        self.parts = (self.score,)

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Logits, and attention that orders tiles by their own logits."""
        tiles = dropout(inputs.tiles, self.spec.dropout, inputs.keys, layer=0)
        scores = self.score(weights, tiles).mT  # (..., outputs, tiles)
        highest, _ = masked_extremes(scores, inputs.mask.unsqueeze(-3), 1)  # (..., outputs, bags, 1)
        attention = masked_softmax(scores.amax(-2, keepdim=True), inputs.mask)
        return Output(highest.squeeze(-1).mT, attention)
