"""Encoders of groups that published one: Prov-GigaPath, GPFM, Lunit DINO, CTransPath."""

from typing import Any

import timm
import torch
from timm.layers.norm import LayerNorm

from mil.encoders.entry import IMAGENET_MEAN, IMAGENET_STD, RGB, Entry, enter
from mil.encoders.state import from_old_swin, load_timm, translated
from mil.encoders.vit import vit
from mil.encoders.weights import HubFile

LUNIT_MEAN: RGB = (0.70322989, 0.53606487, 0.66096631)
LUNIT_STD: RGB = (0.21716536, 0.26081574, 0.20723464)


class ConvStem(torch.nn.Module):
    """CTransPath's patch embedding: two strided convolutions, then a 1 x 1 one; (n, 3, h, w) -> (n, h/4, w/4, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        channels = 3
        for wider in (width // 8, width // 4):
            layers += [
                torch.nn.Conv2d(channels, wider, kernel_size=3, stride=2, padding=1, bias=False),
                torch.nn.BatchNorm2d(wider),
                torch.nn.ReLU(inplace=True),
            ]
            channels = wider
        self.proj = torch.nn.Sequential(*layers, torch.nn.Conv2d(channels, width, kernel_size=1))
        self.norm = LayerNorm(width)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """The plane of tokens."""
        return self.norm(self.proj(tiles).permute(0, 2, 3, 1))


def ctranspath() -> torch.nn.Module:
    """Swin-T whose patches come from a convolutional stem."""
    net: Any = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0)
    net.patch_embed = ConvStem(96)
    return net


enter(
    Entry(
        name="prov_gigapath",
        summary="Prov-GigaPath's tile encoder: ViT-g/16, DINOv2 on 171,189 slides",
        make=vit(
            "vit_giant_patch14_dinov2",
            "class",
            img_size=224,
            patch_size=16,
            embed_dim=1536,
            depth=40,
            num_heads=24,
            mlp_ratio=5.33334,
            init_values=1e-5,
        ),
        width=1536,
        input_px=224,
        resize_px=256,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=0.5,
        interpolation="bicubic",
        pooling="class token",
        parameters=1_134_953_984,
        published=1_134_953_984,
        source=HubFile(
            "prov-gigapath/prov-gigapath",
            "pytorch_model.bin",
            gated=True,
            revision="64f9e26c15019f2d4f6d9113c6822f88bb16b01b",
        ),
        load=load_timm,
        licence="Apache-2.0 (timm)",
        weights_licence="Apache-2.0 with conditions (research use)",
        reference="Xu et al. 2024, https://doi.org/10.1038/s41586-024-07441-w",
    )
)
enter(
    Entry(
        name="gpfm",
        summary="GPFM: ViT-L/14 distilled from UNI, CONCH and Phikon",
        make=vit("vit_large_patch14_dinov2", "class", img_size=224),
        width=1024,
        input_px=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=0.5,
        interpolation="bicubic",
        pooling="class token",
        parameters=303_227_904,
        published=303e6,
        source=HubFile("majiabo/GPFM", "GPFM.pth", gated=False),
        load=load_timm,
        licence="Apache-2.0 (timm)",
        weights_licence="see the model page",
        reference="Ma et al. 2025, https://doi.org/10.1038/s41551-025-01488-4",
    )
)
for name, architecture, parameters in (
    ("lunit_dino_s16", "vit_small_patch16_224", 21_665_664),
    ("lunit_dino_s8", "vit_small_patch8_224", 21_670_272),
):
    enter(
        Entry(
            name=name,
            summary=f"Lunit DINO ({architecture}) on 19 M tiles of TCGA",
            make=vit(architecture, "class"),
            width=384,
            input_px=224,
            mean=LUNIT_MEAN,
            std=LUNIT_STD,
            mpp=None,  # trained at 0.5 and 0.25 microns
            interpolation="bicubic",
            pooling="class token",
            parameters=parameters,
            published=21.7e6,
            source=HubFile(f"1aurent/{architecture}.lunit_dino", "model.safetensors", gated=False),
            load=load_timm,
            licence="Apache-2.0 (timm)",
            weights_licence="Lunit's, research use only",
            reference="Kang et al. 2023, https://doi.org/10.48550/arXiv.2212.04690",
        )
    )
enter(
    Entry(
        name="ctranspath",
        summary="CTransPath: Swin-T with a convolutional stem, contrastive on TCGA and PAIP",
        make=ctranspath,
        width=768,
        input_px=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=None,
        pooling="mean of the tokens",
        parameters=27_520_038,
        published=27.5e6,
        source=HubFile("jamesdolezal/CTransPath", "ctranspath.pth", gated=False),
        load=translated(from_old_swin),
        licence="Apache-2.0 (timm)",
        weights_licence="GPL-3.0",
        reference="Wang et al. 2022, https://doi.org/10.1016/j.media.2022.102559",
    )
)
