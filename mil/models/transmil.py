"""TransMIL (Shao et al., NeurIPS 2021): two Nystroem attention layers with a pyramid of convolutions between them.

Positional: tiles are laid row by row into a square in their given order, and the order changes the logits.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, layer_norm, pad

from mil.models.head import HEADS, Head, HeadPart, Inputs, Output, Weights
from mil.models.layers import Linear, dropout
from mil.specs.models import TransMILSpec

KERNELS = (7, 5, 3)


class Fixed(HeadPart):
    """A tensor whose first values are all the same, or normal."""

    def __init__(self, name: str, shape: tuple[int, ...], value: float | None = None) -> None:
        self.name, self.shape, self.value = name, shape, value

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """`value` everywhere, or standard normal numbers."""
        drawn = generator.normal(size=self.shape) if self.value is None else np.full(self.shape, self.value)
        return {self.name: drawn.astype(np.float32)}


class Depthwise(HeadPart):
    """Weights of a convolution with one filter a channel: `{name}.weight` (channels, 1, height, width), optional bias."""

    def __init__(self, name: str, channels: int, height: int, width: int, bias: bool) -> None:
        self.name, self.channels, self.height, self.width, self.bias = name, channels, height, width, bias

    def initial(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """PyTorch's default, uniform in +-1/sqrt(filter size)."""
        bound = (self.height * self.width) ** -0.5
        shape = (self.channels, 1, self.height, self.width)
        values = {f"{self.name}.weight": generator.uniform(-bound, bound, shape)}
        if self.bias:
            values[f"{self.name}.bias"] = generator.uniform(-bound, bound, self.channels)
        return {name: value.astype(np.float32) for name, value in values.items()}

    def __call__(self, weights: Weights, x: Tensor) -> Tensor:
        """(..., channels, rows, columns), same size out; models are more channels of one convolution."""
        padding = (self.height // 2, self.width // 2)
        weight, bias = weights[f"{self.name}.weight"].flatten(0, -4), weights.get(f"{self.name}.bias")
        planes = x.reshape(1, -1, *x.shape[-2:])
        bias = None if bias is None else bias.flatten()
        return conv2d(planes, weight, bias, padding=padding, groups=planes.shape[1]).view(x.shape)


class NystromLayer:
    """x + attention(layer norm of x), attention by landmarks (Xiong et al. 2021) with a convolution of the values."""

    def __init__(self, name: str, spec: TransMILSpec) -> None:
        self.name, self.spec = name, spec
        self.qkv = Linear(f"{name}.qkv", spec.width, 3 * spec.width, bias=False)
        self.out = Linear(f"{name}.out", spec.width, spec.width)
        self.residual = Depthwise(f"{name}.residual", spec.heads, spec.kernel, 1, bias=False)
        shape = (spec.width,)
        norm = (Fixed(f"{name}.norm.weight", shape, 1.0), Fixed(f"{name}.norm.bias", shape, 0.0))
        self.parts = (*norm, self.qkv, self.out, self.residual)

    def __call__(self, weights: Weights, x: Tensor, keys: Tensor | None, layer: int) -> tuple[Tensor, Tensor]:
        """(..., tokens, width) -> the same, and the attention of the first token to all (..., tokens)."""
        spec, tokens = self.spec, x.shape[-2]
        normed = normalised(x, weights, f"{self.name}.norm")
        padded = pad(normed, (0, 0, -tokens % spec.landmarks, 0))  # zeros in front, as in the authors' code
        q, k, v = (
            part.unflatten(-1, (spec.heads, -1)).transpose(-3, -2)  # (..., heads, tokens, width of a head)
            for part in self.qkv(weights, padded).chunk(3, dim=-1)
        )
        q = q * (spec.width // spec.heads) ** -0.5
        q_marks, k_marks = (t.unflatten(-2, (spec.landmarks, -1)).mean(-2) for t in (q, k))
        to_marks = (q @ k_marks.mT).softmax(-1)
        between = pseudo_inverse((q_marks @ k_marks.mT).softmax(-1), spec.iterations)
        from_marks = (q_marks @ k.mT).softmax(-1)
        mixed = (to_marks @ between) @ (from_marks @ v) + self.residual(weights, v)
        y = self.out(weights, mixed[..., -tokens:, :].transpose(-3, -2).flatten(-2))
        attention = (to_marks[..., -tokens, None, :] @ between @ from_marks).mean((-3, -2))  # of the first real token
        return x + dropout(y, spec.dropout, keys, layer), attention[..., -tokens:]


def normalised(x: Tensor, weights: Weights, name: str) -> Tensor:
    """Layer norm of (..., tokens, width) with each model's weights `{name}.weight` and `{name}.bias` (..., width)."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if weight.dim() == 1:
        return layer_norm(x, weight.shape, weight, bias)
    return layer_norm(x, weight.shape[-1:]) * weight.unsqueeze(-2) + bias.unsqueeze(-2)


def pseudo_inverse(x: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose inverse of (..., heads, n, n) by the iteration of Razavi et al. 2014, as in the authors' code.

    Never in bf16, whatever the precision around it: the iteration subtracts numbers that are nearly equal, which bf16 rounds away.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        absolute = x.abs()
        rows, columns = (
            absolute.sum(axis).flatten(-2).amax(-1) for axis in (-1, -2)
        )  # of all heads of a model, as there
        z = x.mT / (rows * columns)[..., None, None, None]
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        for _ in range(iterations):
            xz = x @ z
            z = 0.25 * z @ (13 * identity - xz @ (15 * identity - xz @ (7 * identity - xz)))
        return z


@HEADS.register("transmil")
class TransMIL(Head):
    """Takes one bag at a time, since every tile looks at every other; of all models that hold it where `Inputs.whole`.

    Attention: of the class token to the tiles in the last layer, mean over the heads, negative values (there are some,
    from the approximation) set to zero, normalised.
    """

    positional = True

    def __init__(self, spec: TransMILSpec, width: int, outputs: int) -> None:
        if spec.width % spec.heads:
            raise ValueError(f"model transmil: width {spec.width} is not a multiple of heads {spec.heads}")
        self.spec, self.dropout = spec, spec.dropout
        self.embed = Linear("embed", width, spec.width)
        self.on_tiles = (self.embed,)
        self.kept = 2 * (8 * spec.heads * spec.landmarks + 16 * spec.width)  # products with landmarks, planes
        self.first, self.second = NystromLayer("first", spec), NystromLayer("second", spec)
        self.pyramid = [Depthwise(f"pyramid{k}", spec.width, k, k, bias=True) for k in KERNELS]
        shape = (spec.width,)
        norm = (Fixed("norm.weight", shape, 1.0), Fixed("norm.bias", shape, 0.0))
        self.score = Linear("score", spec.width, outputs)
        token = Fixed("token", (1, spec.width))
        self.parts = (self.embed, token, *self.first.parts, *self.pyramid, *self.second.parts, *norm, self.score)

    def __call__(self, weights: Weights, inputs: Inputs) -> Output:
        """Logits and attention, bag after bag."""
        if inputs.whole:
            logits, attention = self._bag(weights, inputs.tiles, inputs.keys)
            return Output(logits.unsqueeze(-2), attention.unsqueeze(-2))
        if inputs.mask.dim() > 2:
            each = [
                self(
                    {name: weight[k].clone() for name, weight in weights.items()},  # laid out as that model's alone
                    Inputs(inputs.tiles[k], inputs.mask[k], keys=None if inputs.keys is None else inputs.keys[k]),
                )
                for k in range(len(inputs.mask))
            ]
            attentions = [output.attention for output in each if output.attention is not None]
            return Output(torch.stack([output.logits for output in each]), torch.stack(attentions))
        logits, attentions = [], []
        for mask in inputs.mask:
            where = mask.nonzero().squeeze(-1)
            attention = inputs.tiles.new_zeros(len(mask))
            if len(where):
                keys = None if inputs.keys is None else inputs.keys[where]
                row, weight = self._bag(weights, inputs.tiles[where], keys)
                attention = attention.index_put((where,), weight)
            else:
                row = self.score(weights, inputs.tiles.new_zeros((1, self.spec.width)))[0]
            logits.append(row)
            attentions.append(attention)
        return Output(torch.stack(logits), torch.stack(attentions))

    def _bag(self, weights: Weights, tiles: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """One bag (..., tiles, width) -> logits (..., outputs), attention (..., tiles)."""
        count = tiles.shape[-2]
        side = math.isqrt(count - 1) + 1
        hidden = torch.relu(self.embed(weights, tiles))
        again = side * side - count
        square = torch.cat([hidden, hidden[..., :again, :]], dim=-2)  # the first tiles again, up to a square
        if keys is not None:
            keys = torch.cat([keys[..., :1] ^ 1, keys, keys[..., :again] ^ 2], dim=-1)
        x, _ = self.first(weights, torch.cat([weights["token"], square], dim=-2), keys, layer=0)
        plane = x[..., 1:, :].mT.unflatten(-1, (side, side))
        plane = plane + sum(convolution(weights, plane) for convolution in self.pyramid)
        x = torch.cat([x[..., :1, :], plane.flatten(-2).mT], dim=-2)
        x, attention = self.second(weights, x, keys, layer=1)
        last = normalised(x[..., :1, :], weights, "norm")
        positive = attention[..., 1 : count + 1].clamp(min=0)
        positive = torch.where(positive.sum(-1, keepdim=True) > 0, positive, torch.ones_like(positive))
        return self.score(weights, last)[..., 0, :], positive / positive.sum(-1, keepdim=True)
