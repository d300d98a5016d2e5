"""UNI, UNI2-h, CONCH and CONCH v1.5 of the Mahmood Lab."""

from typing import Any

import timm
import torch
from torch.nn.functional import scaled_dot_product_attention

from mil.encoders.entry import IMAGENET_MEAN, IMAGENET_STD, Entry, enter
from mil.encoders.state import StateDict, load_strictly, load_timm, resized_positions, unwrapped
from mil.encoders.vit import SWIGLU, vit
from mil.encoders.weights import HubFile

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NO_DERIVATIVES = "CC-BY-NC-ND-4.0 (non-commercial, no derivatives)"


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


enter(
    Entry(
        name="uni",
        summary="UNI: ViT-L/16, DINOv2 on 100,000 slides",
        make=vit("vit_large_patch16_224", "class", init_values=1e-5),
        width=1024,
        input_px=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=0.5,
        pooling="class token",
        parameters=303_350_784,
        published=303.4e6,
        source=HubFile(
            "MahmoodLab/UNI",
            "pytorch_model.bin",
            gated=True,
            revision="b55a5ec6cade1a39edfe6534189a9b8ca7a022f0",
            sha256="56ef09b44a25dc5c7eedc55551b3d47bcd17659a7a33837cf9abc9ec4e2ffb40",
        ),
        load=load_timm,
        licence="Apache-2.0 (timm)",
        weights_licence=NO_DERIVATIVES,
        reference="Chen et al. 2024, https://doi.org/10.1038/s41591-024-02857-3",
    )
)
enter(
    Entry(
        name="uni2_h",
        summary="UNI2-h: ViT-H/14 with 8 registers, 350,000 slides",
        make=vit(
            "vit_giant_patch14_224",
            "class",
            img_size=224,
            patch_size=14,
            depth=24,
            num_heads=24,
            init_values=1e-5,
            embed_dim=1536,
            mlp_ratio=2.66667 * 2,
            no_embed_class=True,
            reg_tokens=8,
            **SWIGLU,
        ),
        width=1536,
        input_px=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=0.5,
        pooling="class token",
        parameters=681_394_176,
        published=681.4e6,
        source=HubFile(
            "MahmoodLab/UNI2-h",
            "pytorch_model.bin",
            gated=True,
            revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
            sha256="6e077eda234bebc595868d918d3458d9dd32a050199b0ff04443b2f46a0a3b1e",
        ),
        load=load_timm,
        licence="Apache-2.0 (timm)",
        weights_licence=NO_DERIVATIVES,
        reference="https://huggingface.co/MahmoodLab/UNI2-h",
    )
)
enter(
    Entry(
        name="conch",
        summary="CONCH: image tower (ViT-B/16 at 448 px) of a vision-language model",
        make=lambda: PooledVit("vit_base_patch16_224", ConchPooler(512, 768), 512, img_size=448),
        width=512,
        input_px=448,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        mpp=0.5,
        interpolation="bicubic",
        pooling="attentional, before the contrastive projection",
        parameters=87_567_104,
        # published for the whole vision-language model only
        source=HubFile(
            "MahmoodLab/CONCH",
            "pytorch_model.bin",
            gated=True,
            revision="f9ca9f877171a28ade80228fb195ac5d79003357",
            sha256="40a9644b9ba0e83a74576e0a5e5f7313599fa9c9cdaf3c20f8a3e271b0e9ae7c",
        ),
        load=load_pooled,
        licence="Apache-2.0 (timm)",
        weights_licence=NO_DERIVATIVES,
        reference="Lu et al. 2024, https://doi.org/10.1038/s41591-024-02856-4",
    )
)
enter(
    Entry(
        name="conch_v1_5",
        summary="CONCH v1.5: ViT-L/16 at 448 px, the tile encoder of TITAN",
        make=lambda: PooledVit("vit_large_patch16_224", Conch15Pooler(768, 1024), 768, img_size=448, init_values=1.0),
        width=768,
        input_px=448,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=0.5,
        pooling="attentional",
        parameters=306_711_296,
        published=306e6,
        source=HubFile(
            "MahmoodLab/conchv1_5",
            "pytorch_model_vision.bin",
            gated=True,
            revision="3e5766a5d1500d53c73c03005e24c30c1f27be13",
        ),
        load=load_pooled,
        licence="Apache-2.0 (timm)",
        weights_licence=NO_DERIVATIVES,
        reference="Ding et al. 2024, https://doi.org/10.48550/arXiv.2411.19666",
    )
)
