"""The image towers of CONCH and CONCH v1.5: a vision transformer with attentional pooling."""

from typing import Any

import timm
import torch
from torch.nn.functional import scaled_dot_product_attention

from mil.encoders.state import StateDict, load_strictly, resized_positions, unwrapped


class ConchPooler(torch.nn.Module):
    """CONCH's attentional pooling: one learned query over all tokens (CoCa; multi-head attention with biases)."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.query = torch.nn.Parameter(torch.randn(1, width))
        self.attn = torch.nn.MultiheadAttention(width, 8, kdim=context, vdim=context, batch_first=True)
        self.ln_q, self.ln_k = torch.nn.LayerNorm(width), torch.nn.LayerNorm(context)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tiles, tokens, context) -> (tiles, width)."""
        tokens = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)
        return self.attn(query, tokens, tokens, need_weights=False)[0][:, 0]


class Conch15Pooler(torch.nn.Module):
    """CONCH v1.5's attentional pooling: as CONCH's, with one key-value matrix and no biases."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.query = torch.nn.Parameter(torch.randn(1, width))
        self.ln_k, self.ln_q = torch.nn.LayerNorm(context), torch.nn.LayerNorm(width)
        self.to_q = torch.nn.Linear(width, width, bias=False)
        self.to_kv = torch.nn.Linear(context, 2 * width, bias=False)
        self.to_out = torch.nn.Linear(width, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tiles, tokens, context) -> (tiles, width)."""
        batch = len(tokens)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        query = self.to_q(self.ln_q(self.query)).expand(batch, -1, -1)
        query, key, value = (part.reshape(batch, part.shape[1], 8, -1).transpose(1, 2) for part in (query, key, value))
        mixed = scaled_dot_product_attention(query, key, value)  # (tiles, heads, 1, width / heads)
        return self.to_out(mixed.transpose(1, 2).reshape(batch, -1))


class PooledVit(torch.nn.Module):
    """A vision transformer whose tokens an attentional pooler brings to one vector, normalised."""

    def __init__(self, architecture: str, pooler: torch.nn.Module, width: int, **settings: Any) -> None:
        super().__init__()
        self.trunk: Any = timm.create_model(architecture, pretrained=False, num_classes=0, **settings)
        self.attn_pool_contrast = pooler
        self.ln_contrast = torch.nn.LayerNorm(width)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Vectors of a batch."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(tiles)))


def load_pooled(module: Any, state: StateDict) -> None:
    """CONCH's checkpoint (its `visual.` part) or CONCH v1.5's into a `PooledVit`; its caption head and projection are left out."""
    plain = {name.removeprefix("visual."): tensor for name, tensor in unwrapped(state).items()}
    kept = {name: plain[name] for name in module.state_dict() if name in plain}
    if "trunk.pos_embed" in kept:
        side = module.trunk.patch_embed.grid_size[0]
        kept["trunk.pos_embed"] = resized_positions(kept["trunk.pos_embed"], side, prefix=1, antialias=False)
    load_strictly(module, kept)


def make_conch() -> PooledVit:
    """CONCH: ViT-B/16 at 448 px, 512 numbers per tile."""
    return PooledVit("vit_base_patch16_224", ConchPooler(512, 768), 512, img_size=448)


def make_conch_v1_5() -> PooledVit:
    """CONCH v1.5: ViT-L/16 at 448 px, 768 numbers per tile."""
    return PooledVit("vit_large_patch16_224", Conch15Pooler(768, 1024), 768, img_size=448, init_values=1.0)
