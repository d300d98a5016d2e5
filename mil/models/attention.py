"""Attention over tiles, plain and gated (Ilse, Tomczak, Welling, ICML 2018)."""

from itertools import pairwise

import torch
from torch import Tensor

from mil.models.head import HEADS, Head, Inputs, Output, Weights
from mil.models.layers import MLP, Linear, dropout, masked_softmax, tanh
from mil.specs.models import Attending, AttentionSpec, GatedAttentionSpec


class Attentive(Head):
    """Tile embedding -> a score a tile -> softmax over the bag -> weighted mean of the embeddings -> classifier."""

    def __init__(self, spec: Attending, width: int, outputs: int, branches: int) -> None:
        self.spec, self.dropout = spec, spec.dropout
        widths, init = (width, *spec.before), spec.init
        self.before = [Linear(f"before.{k}", *pair, init=init) for k, pair in enumerate(pairwise(widths))]
        self.embed = Linear("embed", widths[-1], spec.hidden, init=init)
        self.branches = Linear("branches", spec.hidden, branches * spec.attention, init=init)
        self.weigh = Linear("weigh", spec.attention, 1, init=init)
        self.score = MLP("score", (spec.hidden, *spec.classifier, outputs), torch.relu, init=init)
        self.on_tiles = ((*self.before, self.embed)[0],)
        self.parts = (*self.before, self.embed, self.branches, self.weigh, self.score)

    def gate(self, branches: Tensor) -> Tensor:
        """(..., tiles, branches x attention) -> (..., tiles, attention)."""
        raise NotImplementedError

    def attended(self, weights: Weights, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Tile embeddings (..., tiles, hidden) and the attention to them (..., bags, tiles)."""
        tiles = inputs.tiles
        for k, layer in enumerate(self.before):
            tiles = dropout(torch.relu(layer(weights, tiles)), self.spec.dropout, inputs.keys, layer=2 + k)
        hidden = self.embed(weights, tiles)
        if self.spec.activation == "relu":
            hidden = torch.relu(hidden)
        hidden = dropout(hidden, self.spec.dropout, inputs.keys, layer=0)
        gate = dropout(self.gate(self.branches(weights, hidden)), self.spec.dropout, inputs.keys, layer=1)
        return hidden, masked_softmax(self.weigh(weights, gate).mT, inputs.mask)

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Logits and the attention of every tile in its bag."""
        hidden, attention = self.attended(weights, inputs)
        return Output(self.score(weights, attention @ hidden), attention)


@HEADS.register("attention")
class Attention(Attentive):
    """Scores by one tanh layer."""

    def __init__(self, spec: AttentionSpec, width: int, outputs: int) -> None:
        super().__init__(spec, width, outputs, branches=1)

    def gate(self, branches: Tensor) -> Tensor:
        """The tanh layer."""
        return tanh(branches)


@HEADS.register("gated_attention")
class GatedAttention(Attentive):
    """Scores by a tanh layer times a sigmoid layer; both are rows of one weight, tanh first."""

    def __init__(self, spec: GatedAttentionSpec, width: int, outputs: int) -> None:
        super().__init__(spec, width, outputs, branches=2)

    def gate(self, branches: Tensor) -> Tensor:
        """The product of the branches."""
        return gated(branches)


def gated(branches: Tensor) -> Tensor:
    """tanh of the first half of the columns times the logistic function of the second."""
    left, right = branches.chunk(2, dim=-1)
    return tanh(left) * torch.sigmoid(right)
