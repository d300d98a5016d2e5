"""Hibou-B and Hibou-L of HistAI."""

from mil.encoders.entry import RGB, Entry, enter
from mil.encoders.state import load_huggingface
from mil.encoders.vit import vit
from mil.encoders.weights import HubFile

MEAN: RGB = (0.7068, 0.5755, 0.722)
STD: RGB = (0.195, 0.2316, 0.1816)

for name, repository, architecture, width, parameters, published in (
    ("hibou_b", "histai/hibou-b", "vit_base_patch14_reg4_dinov2", 768, 85_727_232, 85.7e6),
    ("hibou_l", "histai/hibou-L", "vit_large_patch14_reg4_dinov2", 1024, 303_230_976, 303.7e6),
):
    enter(
        Entry(
            name=name,
            summary=f"{repository.split('/')[1]}: {architecture.split('_')[1]} ViT/14 with 4 registers",
            make=vit(architecture, "class", img_size=224),
            width=width,
            input_px=224,
            mean=MEAN,
            std=STD,
            mpp=0.5,
            interpolation="bicubic",
            pooling="class token",
            parameters=parameters,
            published=published,
            source=HubFile(repository, "model.safetensors", gated=True),
            load=load_huggingface,
            licence="Apache-2.0 (timm)",
            weights_licence="Apache-2.0",
            reference="Nechaev et al. 2024, https://doi.org/10.48550/arXiv.2406.05074",
        )
    )
