"""DSMIL (Li, Li, Eliceiri, CVPR 2021): one stream takes the highest tile, the other attends to tiles that resemble it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mil.models.head import HEADS, Head, Inputs, Output, Weights
from mil.models.layers import MLP, Linear, masked_extremes, masked_softmax
from mil.specs.models import DSMILSpec

if TYPE_CHECKING:
    from mil.endpoints import Endpoint


@HEADS.register("dsmil")
class DSMIL(Head):
    """Each output has its own critical tile and attention; the attention reported is their mean."""

    def __init__(self, spec: DSMILSpec, width: int, outputs: int) -> None:
        self.spec, self.outputs = spec, outputs
        self.tile_score = MLP("tile_score", (width, *spec.score_hidden, outputs), torch.sigmoid)
        self.query = MLP("query", (width, *spec.query_hidden, spec.queries), torch.sigmoid)
        self.value = Linear("value", width, width)
        self.score = MLP("score", (outputs * width, *spec.hidden, outputs), torch.sigmoid)
        self.on_tiles = (self.tile_score.layers[0], self.query.layers[0], self.value) if spec.values else ()
        self.parts = (self.tile_score, self.query, *((self.value,) if spec.values else ()), self.score)

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Mean logits of the streams; `side`: both streams' logits (..., bags, 2, outputs)."""
        tiles, mask = inputs.tiles, inputs.mask.unsqueeze(-3)
        highest, critical = masked_extremes(self.tile_score(weights, tiles).mT, mask, 1)  # (..., outputs, bags, 1)
        queries = self.query(weights, tiles)  # (..., tiles, queries)
        flat = critical.flatten(-3)  # (..., outputs x bags)
        wanted = queries.gather(-2, flat.unsqueeze(-1).expand(*flat.shape, queries.shape[-1]))
        likeness = wanted @ queries.mT  # (..., outputs x bags, tiles)
        if self.spec.scaled:
            likeness = likeness * self.spec.queries**-0.5
        attention = masked_softmax(likeness.view(*critical.shape[:-1], -1), mask)  # (..., outputs, bags, tiles)
        values = self.value(weights, tiles) if self.spec.values else tiles
        bags = attention @ values.unsqueeze(-3)  # (..., outputs, bags, width)
        joined = bags.transpose(-3, -2).flatten(-2)  # (..., bags, outputs x width)
        streams = torch.stack([self.score(weights, joined), highest.squeeze(-1).mT], dim=-3)
        return Output(streams.mean(-3), attention.mean(-3), streams.transpose(-3, -2))

    def moved(self, output: Output, by: Tensor) -> Output:
        """Logits, and both streams' logits, with `by` (..., bags, outputs) added."""
        assert output.side is not None
        return output._replace(logits=output.logits + by, side=output.side + by.unsqueeze(-2))

    def losses(self, output: Output, targets: Tensor, present: Tensor, endpoint: "Endpoint") -> Tensor:
        """Mean of the streams' losses, or loss of their mean."""
        if self.spec.loss == "mean" or output.side is None:
            return endpoint.losses(output.logits, targets, present)
        bag, tile = (endpoint.losses(logits, targets, present) for logits in output.side.unbind(-2))
        return (bag + tile) / 2
