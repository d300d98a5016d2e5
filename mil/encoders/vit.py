"""timm's vision transformers with the pooling that their authors recommend, and no work that the pooling discards."""

from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from torch.nn.functional import linear, scaled_dot_product_attention

Pool = Literal["class", "class+mean"]
SWIGLU = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}


class Vit(torch.nn.Module):
    """(tiles, 3, h, w) -> the normalised class token (`class`), or it beside the mean of the patch tokens (`class+mean`).

    Where only the class token is wanted, the last block computes nothing else: the same numbers for a block's work less.
    """

    def __init__(self, architecture: str, pooling: Pool, **settings: Any) -> None:
        super().__init__()
        self.net: Any = timm.create_model(architecture, pretrained=False, num_classes=0, **settings)
        self.pooling = pooling
        block = self.net.blocks[-1]
        plain = type(block).__name__ == "Block" and type(block.attn).__name__ == "Attention"
        self.short = pooling == "class" and plain and getattr(block.attn, "gate", None) is None

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Vectors of a batch."""
        if self.short:
            return self._class_only(tiles)
        tokens = self.net.forward_features(tiles)
        if self.pooling == "class":
            return tokens[:, 0]
        return torch.cat([tokens[:, 0], tokens[:, self.net.num_prefix_tokens :].mean(1)], dim=1)

    def _class_only(self, tiles: torch.Tensor) -> torch.Tensor:
        net = self.net
        tokens = net._pos_embed(net.patch_embed(tiles))
        tokens = net.norm_pre(net.patch_drop(tokens))
        tokens = net.blocks[:-1](tokens)
        block = net.blocks[-1]
        head = tokens[:, :1]
        head = head + block.ls1(_attend_from_first(block.attn, block.norm1(tokens)))
        head = head + block.ls2(block.mlp(block.norm2(head)))
        return net.norm(head)[:, 0]


def _attend_from_first(attention: Any, tokens: torch.Tensor) -> torch.Tensor:
    """timm's `Attention` for the first token's query alone: (tiles, tokens, width) -> (tiles, 1, width)."""
    batch, count, width = tokens.shape
    weight, bias = attention.qkv.weight, attention.qkv.bias
    heads = attention.num_heads
    query = linear(tokens[:, :1], weight[:width], None if bias is None else bias[:width])
    both = linear(tokens, weight[width:], None if bias is None else bias[width:])
    query = query.reshape(batch, 1, heads, -1).transpose(1, 2)
    key, value = both.reshape(batch, count, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, 1, width)
    return attention.proj(attention.norm(mixed) if hasattr(attention, "norm") else mixed)


def make_vit(name: str, pool: Pool, swiglu: bool = False, norm_eps: float | None = None, **settings: Any) -> Vit:
    """A `Vit` of an entry of encoders.toml.

    `swiglu`: the blocks' second half is a gated SiLU. `norm_eps`: epsilon of every layer norm (default: timm's).
    """
    if norm_eps is not None:
        settings["norm_layer"] = partial(torch.nn.LayerNorm, eps=norm_eps)
    return Vit(name, pool, **settings, **(SWIGLU if swiglu else {}))
