"""Phikon and Phikon-v2 of Owkin."""

from functools import partial

import torch

from mil.encoders.entry import IMAGENET_MEAN, IMAGENET_STD, Entry, enter
from mil.encoders.state import load_huggingface
from mil.encoders.vit import vit
from mil.encoders.weights import HubFile

enter(
    Entry(
        name="phikon",
        summary="Phikon: ViT-B/16, iBOT on TCGA",
        make=vit("vit_base_patch16_224", "class", norm_layer=partial(torch.nn.LayerNorm, eps=1e-12)),
        width=768,
        input_px=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        mpp=0.5,
        pooling="class token",
        parameters=85_798_656,
        published=85.8e6,
        source=HubFile(
            "owkin/phikon", "model.safetensors", gated=False, revision="057cc0295895c2df3dd7681a89680da6015cbefe"
        ),
        load=load_huggingface,
        licence="Apache-2.0 (timm)",
        weights_licence="Owkin non-commercial licence",
        reference="Filiot et al. 2023, https://doi.org/10.1101/2023.07.21.23292757",
    )
)
enter(
    Entry(
        name="phikon_v2",
        summary="Phikon-v2: ViT-L/16, DINOv2 on public cohorts",
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
            "owkin/phikon-v2", "model.safetensors", gated=False, revision="2ae989a9c40cffaa27f0a6cb29cc94d1d6f9a5fd"
        ),
        load=load_huggingface,
        licence="Apache-2.0 (timm)",
        weights_licence="Owkin non-commercial licence",
        reference="Filiot et al. 2024, https://doi.org/10.48550/arXiv.2409.09173",
    )
)
