"""CLAM with a single attention branch (Lu et al., Nature Biomedical Engineering 2021)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from mil.models.attention import Attentive, gated
from mil.models.head import HEADS, Inputs, Output, Weights
from mil.models.layers import Linear, masked_extremes
from mil.specs.models import ClamSBSpec, GatedAttentionSpec

if TYPE_CHECKING:
    from mil.endpoints import Endpoint


@HEADS.register("clam_sb")
class ClamSB(Attentive):
    """Gated attention whose most and least attended tiles teach a classifier of tiles, one for each class."""

    needs_classes = True

    def __init__(self, spec: ClamSBSpec, width: int, outputs: int) -> None:
        inner = GatedAttentionSpec(hidden=spec.hidden, attention=spec.attention, dropout=spec.dropout)
        super().__init__(inner, width, outputs, branches=2)
        self.clam = spec
        self.classes = max(outputs, 2)
        self.tile_class = Linear("tile_class", spec.hidden, 2 * self.classes)
        self.parts = (*self.parts, self.tile_class)

    def gate(self, branches: Tensor) -> Tensor:
        """The product of the branches."""
        return gated(branches)

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Logits and attention; `side`: log probabilities of no and yes (..., bags, 2 x samples, classes, 2).

        Most attended tiles first; each is divided by the number of tiles sampled at that end.
        """
        hidden, attention = self.attended(weights, inputs)
        logits = self.score(weights, attention @ hidden)
        if not inputs.training:
            return Output(logits, attention)
        ranking = attention.detach().sum(-2)  # (..., tiles); a tile is in one bag only
        chosen = [masked_extremes(sign * ranking, inputs.mask, self.clam.samples)[1] for sign in (1, -1)]
        rows = torch.cat(chosen, dim=-1)  # (..., bags, 2 x samples)
        flat = rows.flatten(-2)
        sampled = hidden.gather(-2, flat.unsqueeze(-1).expand(*flat.shape, hidden.shape[-1]))
        scores = self.tile_class(weights, sampled).view(*rows.shape, self.classes, 2)
        ranks = torch.arange(self.clam.samples, device=rows.device)
        real = (ranks < inputs.mask.sum(-1, keepdim=True)).to(
            scores.dtype
        )  # (..., bags, samples): a small bag has fewer
        real = real / real.sum(-1, keepdim=True).clamp(min=1)
        return Output(logits, attention, log_softmax(scores, dim=-1) * torch.cat([real, real], -1)[..., None, None])

    def losses(self, output: Output, targets: Tensor, present: Tensor, endpoint: "Endpoint") -> Tensor:
        """bag_weight x the endpoint's loss + the rest x the tiles' cross-entropy."""
        bag = endpoint.losses(output.logits, targets, present)
        if output.side is None:
            return bag
        labels = one_hot(endpoint.class_of(targets), self.classes).to(bag.dtype)  # (..., bags, classes)
        high, low = output.side.split(self.clam.samples, dim=-3)  # (..., bags, samples, classes, 2)
        inside = -(high[..., 1] + low[..., 0]).sum(-2) / 2
        tiles = (labels * inside).sum(-1)
        if self.clam.subtyping:
            outside = -high[..., 0].sum(-2)
            tiles = (tiles + ((1 - labels) * outside).sum(-1)) / self.classes
        return self.clam.bag_weight * bag + (1 - self.clam.bag_weight) * tiles
