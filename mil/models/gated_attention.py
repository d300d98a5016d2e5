"""Gated attention over tiles (Ilse, Tomczak, Welling, ICML 2018)."""

import numpy as np
import torch
from torch import Tensor

from mil.config import GatedAttentionSpec
from mil.models.head import HEADS, Output, Weights
from mil.models.layers import Linear, dropout, masked_softmax


@HEADS.register("gated_attention")
class GatedAttention:
    """Tile embedding -> tanh and sigmoid branches -> softmax over the bag -> weighted mean -> linear layer."""

    only_mean = False

    def __init__(self, spec: GatedAttentionSpec, width: int, outputs: int) -> None:
        self.spec = spec
        self.embed = Linear("embed", width, spec.hidden)
        self.branches = Linear("branches", spec.hidden, 2 * spec.attention)  # tanh rows, then sigmoid rows
        self.weigh = Linear("weigh", spec.attention, 1)
        self.score = Linear("score", spec.hidden, outputs)

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """First values, layer by layer."""
        layers = (self.embed, self.branches, self.weigh, self.score)
        return {name: value for layer in layers for name, value in layer.initial(generator).items()}

    def __call__(self, weights: Weights, tiles: Tensor, mask: Tensor, keys: Tensor | None = None) -> Output:
        """Logits and the attention of every tile in its bag."""
        hidden = dropout(torch.relu(self.embed(weights, tiles)), self.spec.dropout, keys, layer=0)
        tanh, sigmoid = self.branches(weights, hidden).chunk(2, dim=-1)
        gate = dropout(torch.tanh(tanh) * torch.sigmoid(sigmoid), self.spec.dropout, keys, layer=1)
        attention = masked_softmax(self.weigh(weights, gate).mT, mask)  # (..., bags, tiles)
        return Output(self.score(weights, attention @ hidden), attention)
