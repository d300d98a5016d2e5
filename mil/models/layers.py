"""Pieces that heads are made of, each with any leading axes of models."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mil.models.head import Weights

MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Linear:
    """`inputs` -> `outputs` numbers; weights `{name}.weight` (outputs, inputs) and `{name}.bias` (outputs,)."""

    name: str
    inputs: int
    outputs: int

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Uniform in +-1/sqrt(inputs), PyTorch's own default."""
        bound = self.inputs**-0.5
        return {
            f"{self.name}.weight": generator.uniform(-bound, bound, (self.outputs, self.inputs)).astype(np.float32),
            f"{self.name}.bias": generator.uniform(-bound, bound, self.outputs).astype(np.float32),
        }

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """(..., rows, inputs) -> (..., rows, outputs)."""
        weight, bias = weights[f"{self.name}.weight"], weights[f"{self.name}.bias"]
        if x.dim() == weight.dim() == 3:
            return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
        return x @ weight.mT + bias.unsqueeze(-2)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of `scores` (..., 1 or bags, tiles) over each bag's own tiles; exactly 0 elsewhere, all 0 for no tile."""
    scores = scores.masked_fill(~mask, float("-inf"))
    peak = scores.detach().amax(-1, keepdim=True)
    powers = torch.exp(scores - peak.clamp(min=torch.finfo(scores.dtype).min))
    return powers / powers.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def masked_mean(tiles: Tensor, mask: Tensor) -> Tensor:
    """(..., tiles, width), (..., bags, tiles) -> mean of each bag's tiles (..., bags, width)."""
    share = mask.to(tiles.dtype)
    return (share / share.sum(-1, keepdim=True).clamp(min=1)) @ tiles


def dropout(x: Tensor, share: float, keys: Tensor | None, layer: int) -> Tensor:
    """Zero a `share` of x (..., rows, width) and scale the rest; which, follows from `keys` (...,), `layer` and position.

    A counter-based stream (the 32-bit finaliser of MurmurHash3 over the element's index): an element's fate depends
    on its own model's key only, not on what is trained beside it, on padding or on the device.
    """
    if keys is None or share == 0:
        return x
    index = torch.arange(x.shape[-2] * x.shape[-1], device=x.device).view(x.shape[-2:])
    bits = _mixed(_mixed(index + layer * 0x9E3779B1) ^ _mixed(keys)[..., None, None])
    kept = bits >= int(share * 2**32)
    return x * (kept.to(x.dtype) / (1 - share))


def _mixed(bits: Tensor) -> Tensor:
    bits = bits & MASK32
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & MASK32
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & MASK32
    return bits ^ (bits >> 16)
