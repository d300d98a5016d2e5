"""The ViTs and Midnight-12k of kaiko.ai."""

from mil.encoders.entry import HALF, Entry, enter
from mil.encoders.state import load_huggingface, load_timm
from mil.encoders.vit import vit
from mil.encoders.weights import HubFile

for name, architecture, width, parameters in (
    ("kaiko_vits16", "vit_small_patch16_224", 384, 21_665_664),
    ("kaiko_vits8", "vit_small_patch8_224", 384, 21_670_272),
    ("kaiko_vitb16", "vit_base_patch16_224", 768, 85_798_656),
    ("kaiko_vitb8", "vit_base_patch8_224", 768, 85_807_872),
    ("kaiko_vitl14", "vit_large_patch14_reg4_dinov2", 1024, 303_230_976),
):
    enter(
        Entry(
            name=name,
            summary=f"kaiko.ai {architecture.split('_')[1]} ViT on TCGA ({architecture})",
            make=vit(architecture, "class", img_size=224),
            width=width,
            input_px=224,
            mean=HALF,
            std=HALF,
            mpp=None,  # trained at 2, 1, 0.5 and 0.25 microns
            pooling="class token",
            parameters=parameters,
            published={384: 21.7e6, 768: 85.8e6, 1024: 303.3e6}[width],
            source=HubFile(
                f"1aurent/{architecture}.kaiko_ai_towards_large_pathology_fms", "model.safetensors", gated=False
            ),
            load=load_timm,
            licence="Apache-2.0 (timm)",
            weights_licence="kaiko.ai's, see github.com/kaiko-ai/towards_large_pathology_fms",
            reference="kaiko.ai 2024, https://doi.org/10.48550/arXiv.2404.15217",
        )
    )
enter(
    Entry(
        name="midnight_12k",
        summary="Midnight-12k: ViT-g/14 on 12,000 TCGA slides",
        make=vit("vit_giant_patch14_dinov2", "class+mean", img_size=224),
        width=3072,
        input_px=224,
        mean=HALF,
        std=HALF,
        mpp=None,  # trained at 2, 1, 0.5 and 0.25 microns
        pooling="class token and mean of the patch tokens",
        parameters=1_134_769_664,
        published=1.14e9,  # with the positions of 518 px, which are resized when loaded
        source=HubFile(
            "kaiko-ai/midnight", "model.safetensors", gated=False, revision="adc6b15679c981cce6f9b018bbad09d16eeeda9f"
        ),
        load=load_huggingface,
        licence="Apache-2.0 (timm)",
        weights_licence="MIT",
        reference="Karasikov et al. 2025, https://doi.org/10.48550/arXiv.2504.05186",
    )
)
