"""Pieces that heads are made of, each with any leading axes of models."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mil.models.head import HeadPart, Weights

Activation = Callable[[Tensor], Tensor]
MASK32 = 0xFFFFFFFF
NARROW = 8
"""Fewest columns of a matrix product. With one, libraries take other routines for one model than for many."""
ALIGNED = 16
"""Numbers in a vector register. Products of a model whose memory begins within one may be rounded otherwise than alone."""


class Linear(HeadPart):
    """`inputs` -> `outputs` numbers; weights `{name}.weight` (outputs, inputs) and, unless `bias` is off, `{name}.bias`."""

    def __init__(
        self, name: str, inputs: int, outputs: int, bias: bool = True, init: Literal["uniform", "xavier"] = "uniform"
    ) -> None:
        self.name, self.inputs, self.outputs, self.bias, self.init = name, inputs, outputs, bias, init
        grain = ALIGNED // math.gcd(ALIGNED, inputs)
        self.columns = -(-max(outputs, NARROW) // grain) * grain

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """PyTorch's default, uniform in +-1/sqrt(inputs); or Xavier's, uniform with bias zero."""
        xavier = self.init == "xavier"
        bound = (6 / (self.inputs + self.outputs)) ** 0.5 if xavier else self.inputs**-0.5
        values = {f"{self.name}.weight": generator.uniform(-bound, bound, (self.outputs, self.inputs))}
        if self.bias:
            values[f"{self.name}.bias"] = generator.uniform(-bound, bound, self.outputs) * (not xavier)
        return {name: value.astype(np.float32) for name, value in values.items()}

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """(..., rows, inputs) -> (..., rows, outputs)."""
        weight = weights[f"{self.name}.weight"]
        bias = weights[f"{self.name}.bias"] if self.bias else weight.new_zeros((*weight.shape[:-2], self.outputs))
        if missing := self.columns - self.outputs:
            weight, bias = pad(weight, (0, 0, 0, missing)), pad(bias, (0, missing))
        if x.dim() == weight.dim() == 3 and x.dtype != torch.float64:
            y = Affine.apply(x, weight, bias)
        else:
            y = x @ weight.mT + bias.unsqueeze(-2)
        return y[..., : self.outputs] if missing else y


class Affine(torch.autograd.Function):
    """x W' + b for many models at once; PyTorch's own gradient of W would lie transposed and cost a copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(models, rows, inputs), (models, outputs, inputs), (models, outputs) -> (models, rows, outputs)."""
        kind, ctx.kept = x.device.type, weight.dtype
        if torch.is_autocast_enabled(kind):
            lower = torch.get_autocast_dtype(kind)
            x, weight, bias = x.to(lower), weight.to(lower), bias.to(lower)
        ctx.save_for_backward(x, weight)
        if kind != "cpu":  # there baddbmm first copies the bias into the result; a sum is fused with what follows
            return torch.bmm(x, weight.mT) + bias.unsqueeze(-2)
        return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """The weight's and the bias's gradient in their types, the input's in the type of the products."""
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        gradient = gradient.to(x.dtype)
        inward = torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None
        return inward, torch.bmm(gradient.mT, x).to(ctx.kept), gradient.sum(-2, dtype=torch.float32).to(ctx.kept)


class MLP(HeadPart):
    """Linear layers of the given widths with `activation` between them; layers `{name}.0`, `{name}.1`, ..."""

    def __init__(
        self,
        name: str,
        widths: Sequence[int],
        activation: Activation,
        init: Literal["uniform", "xavier"] = "uniform",
    ) -> None:
        names = [name] if len(widths) == 2 else [f"{name}.{k}" for k in range(len(widths) - 1)]
        pairs = zip(names, widths, widths[1:], strict=False)
        self.layers = [Linear(layer, inputs, outputs, init=init) for layer, inputs, outputs in pairs]
        self.activation = activation

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """First values, layer by layer."""
        return {name: value for layer in self.layers for name, value in layer.initial(generator).items()}

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """(..., rows, widths[0]) -> (..., rows, widths[-1])."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(weights, x))
        return self.layers[-1](weights, x)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent by way of the logistic function, which is five times faster on a CPU and as exact to 1e-7."""
    return 2 * torch.sigmoid(2 * x) - 1 if x.device.type == "cpu" else torch.tanh(x)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of `scores` (..., bags or 1, tiles) over each bag's own tiles; exactly 0 elsewhere, and for a bag of none."""
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()  # exponentials and their sum need the digits
    scores = scores.masked_fill(~mask, float("-inf"))
    peak = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    powers = torch.exp(scores - peak)
    return powers / powers.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


def masked_mean(tiles: Tensor, mask: Tensor) -> Tensor:
    """(..., tiles, width), (..., bags, tiles) -> mean of each bag's tiles (..., bags, width)."""
    share = mask.to(tiles.dtype)
    return (share / share.sum(-1, keepdim=True).clamp(min=1)) @ tiles


def masked_extremes(scores: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of scores (..., tiles) in each bag of mask (..., bags, tiles), falling, and their tile numbers.

    Both (..., bags, count). A bag of fewer tiles repeats its lowest one; a bag of none gives zeros.
    """
    spread = scores.unsqueeze(-2).masked_fill(~mask, float("-inf"))
    ranked = spread.topk(min(count, spread.shape[-1]), dim=-1)
    last = mask.sum(-1, keepdim=True).clamp(min=1) - 1
    ranks = torch.minimum(torch.arange(count, device=scores.device), last).expand(*spread.shape[:-1], count)
    values = ranked.values.gather(-1, ranks)
    return values.masked_fill(~mask.any(-1, keepdim=True), 0.0), ranked.indices.gather(-1, ranks)


def dropout(x: Tensor, share: float, keys: Tensor | None, layer: int) -> Tensor:
    """Zero a `share` of x (..., rows, width) and scale the rest; which, follows from `keys` (..., rows), `layer`, column.

    A counter-based stream (the 32-bit finaliser of MurmurHash3): what becomes of a number depends on its own model,
    step, patient and tile only, not on what is trained beside it, on how bags are packed or on the device.
    """
    if keys is None or share == 0:
        return x
    column = mixed32(torch.arange(x.shape[-1], device=x.device) + layer * 0x9E3779B1)
    kept = at_least(mixed_words(words(column) ^ words(keys).unsqueeze(-1)), int(share * 2**32))
    return x * (kept.to(x.dtype) / (1 - share))


def words(bits: Tensor) -> Tensor:
    """The lower 32 bits of int64 as int32."""
    return bits.to(torch.int32)


def mixed_words(bits: Tensor) -> Tensor:
    """As `mixed32`, in int32: a quarter of the memory traffic. The argument is used up."""
    bits ^= (bits >> 16) & 0xFFFF  # shifts of int32 copy the sign
    bits *= 0x85EBCA6B - 2**32
    bits ^= (bits >> 13) & 0x7FFFF
    bits *= 0xC2B2AE35 - 2**32
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def at_least(bits: Tensor, bound: int) -> Tensor:
    """Whether int32 `bits`, read as unsigned, are at least `bound`. The argument is used up."""
    bits ^= -(2**31)  # order of unsigned numbers -> order of signed ones
    return bits >= bound - 2**31


def mixed32(bits: Tensor) -> Tensor:
    """Finaliser of MurmurHash3 on the lower 32 bits of int64."""
    bits = bits & MASK32
    bits = ((bits ^ (bits >> 16)) * 0x85EBCA6B) & MASK32
    bits = ((bits ^ (bits >> 13)) * 0xC2B2AE35) & MASK32
    return bits ^ (bits >> 16)
